"""The three kinds of source, told apart by looking: a STAC API, a static catalog, an item collection (GeoJSON, GeoParquet).

Each gives item documents with the place that their relative hrefs stand against. What an item means is not decided here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stac.documents import Documents, absolute, failure, is_broken, is_http, is_url, links_of, local_path, public, shown
from stac.errors import CatalogError, CatalogLinkBroken, CatalogMissing, CatalogNotJson, UnknownCollection
from stac.geoparquet import geoparquet_items
from stac.items import self_href
from stac.query import Query

MOST_DOCUMENTS = 1_000_000
_READERS = 8
_DEEPEST = 64
"""Levels of children beyond which a static catalog is taken to have no end."""
_STATIC = ("Catalog", "Collection")
_PARQUET = (".parquet", ".geoparquet")


@dataclass(frozen=True)
class Found:
    """An item document as a catalog holds it."""

    document: Mapping[str, Any]
    base: str
    """Path or URL against which its relative hrefs stand."""
    href: str | None
    """The item's own document, None where it has none."""
    problem: str = ""
    """Why there is no document to use, where the catalog names an item that is not there or is none."""


def find_items(query: Query) -> Iterator[Found]:
    """Yield the items of a catalog's collection; an API filters by region and period, other sources give all that they hold.

    Raises
    ------
    CatalogError
        The catalog cannot be read, or is none.
    UnknownCollection
        It does not hold the collection.
    """
    location = _location(query.catalog)
    documents = Documents(query.catalog, query.headers)
    if location.lower().endswith(_PARQUET):
        yield from _of_collection(_parquet(documents, location), query)
        return
    root = documents.json(location)
    if isinstance(root, list) or (isinstance(root, Mapping) and root.get("type") in ("FeatureCollection", "Feature")):
        yield from _of_collection(_members(root, location), query)
    elif isinstance(root, Mapping) and is_http(location) and _search_link(root):
        yield from _search(documents, root, location, query)
    elif isinstance(root, Mapping) and isinstance(root.get("links"), list) and ("stac_version" in root or root.get("type") in _STATIC):
        yield from _StaticCatalog(documents, query.collection).items(root, location)
    else:
        raise CatalogError(f"{public(location)} is neither a STAC API, a STAC catalog nor an item collection")


def _location(catalog: str) -> str:
    """Return the catalog's document: a folder stands for the catalog.json or collection.json in it."""
    if is_url(catalog):
        return catalog
    try:
        path = Path(local_path(catalog)).resolve()
        if path.is_dir():
            path = next((path / name for name in ("catalog.json", "collection.json") if (path / name).is_file()), path / "catalog.json")
        is_there, is_file = path.exists(), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a loop of links is a RuntimeError until Python 3.13
        raise CatalogError(f"{shown(catalog)!r} is neither a path nor a URL: {failure(error)}") from None
    if not is_file:
        raise CatalogError(f"there is no catalog at {path}{' (it is a pipe or a device, not a file)' if is_there else ''}")
    return str(path)


# ---------------------------------------------------------------------------------------------------------------- item collections


def _parquet(documents: Documents, location: str) -> Iterator[Found]:
    source = documents.content(location) if is_url(location) else location
    for document in geoparquet_items(source, public(location)):
        yield _member(document, location)


def _members(root: Any, location: str) -> Iterator[Found]:
    listed = root if isinstance(root, list) else root.get("features", [root])
    if not isinstance(listed, list):
        raise CatalogError(f"{public(location)} is not an item collection: its features are not a list")
    yield from (_member(document, location) for document in listed)


def _member(document: Any, location: str) -> Found:
    if not isinstance(document, Mapping):
        return Found({}, location, None, f"{public(location)} has it as {type(document).__name__}, not as an item")
    own = self_href(document)
    return Found(document, own or location, own)


def _of_collection(found: Iterable[Found], query: Query) -> Iterator[Found]:
    """Yield the members of the collection asked for; where there are none, say which ones there are."""
    if query.collection is None:
        yield from found
        return
    others: set[str] = set()
    any_found = any_member = False
    for member in found:
        any_member = True
        name = member.document.get("collection")
        if name == query.collection or member.problem:
            any_found = True
            yield member
        elif isinstance(name, str):
            others.add(name)
    if any_member and not any_found:
        raise unknown_collection(query.collection, others, query.catalog)


def unknown_collection(name: str, others: Iterable[str], catalog: str) -> UnknownCollection:
    """Return the error that names the collections that a catalog has, the nearest first."""
    nearest = sorted(set(others), key=lambda other: (-difflib.SequenceMatcher(None, name.lower(), other.lower()).ratio(), other))
    has = f"it has {', '.join(nearest[:10])}" if nearest else "its items name no collection"
    more = f" and {len(nearest) - 10} more" if len(nearest) > 10 else ""
    return UnknownCollection(f"{public(catalog)} has no collection {name!r}; {has}{more}")


# ---------------------------------------------------------------------------------------------------------------- static catalogs


class _StaticCatalog:
    """One walk through a static catalog: every document once, children level by level."""

    def __init__(self, documents: Documents, collection: str | None) -> None:
        self._documents = documents
        self._wanted = collection
        self._seen: set[str] = set()
        self._collections: set[str] = set()

    def items(self, root: Mapping[str, Any], location: str) -> Iterator[Found]:
        """Yield the items under a catalog or collection document."""
        self._seen.add(location)
        level: list[tuple[Mapping[str, Any], str, str | None]] = [(root, location, None)]
        depth = 0
        while level:
            depth += 1
            if depth > _DEEPEST:
                raise CatalogError(f"{public(location)} does not end: {public(level[0][1])} lies more than {_DEEPEST} levels below it")
            children: list[tuple[str, str | None]] = []
            members: list[tuple[str, str | None]] = []
            for document, href, inherited in level:
                name = str(document.get("id")) if document.get("type") == "Collection" or "extent" in document else inherited
                self._note(document, href, name)
                children += ((child, name) for child in self._links(document, href, "child"))
                if self._wanted in (None, name) or name is None:
                    members += ((item, name) for item in self._links(document, href, "item"))
            yield from self._read_items(members)
            level = [(document, href, name) for (href, name), document in zip(children, self._read(h for h, _ in children), strict=True)]
        if self._wanted is not None and self._wanted not in self._collections:
            raise unknown_collection(self._wanted, self._collections, location)

    def _note(self, document: Mapping[str, Any], href: str, name: str | None) -> None:
        if name:
            self._collections.add(name)
        relations = {str(link.get("rel")) for link in links_of(document)}
        if "items" in relations and not relations & {"item", "child"}:
            raise CatalogError(f"{public(href)} is a collection of a STAC API: give the API's root as catalog and {name!r} as collection")

    def _links(self, document: Mapping[str, Any], base: str, relation: str) -> list[str]:
        """Return the absolute hrefs of the document's links that were not followed before."""
        fresh = []
        for link in links_of(document):
            if link.get("rel") == relation:
                href = absolute(link["href"], base)
                if href not in self._seen and (is_url(href) or is_broken(href) or not is_url(base)):
                    self._seen.add(href)
                    fresh.append(href)
        if len(self._seen) > MOST_DOCUMENTS:
            raise CatalogError(f"{public(base)} belongs to a catalog of more than {MOST_DOCUMENTS} documents; use its API, or an item collection")
        return fresh

    def _read_items(self, members: list[tuple[str, str | None]]) -> Iterator[Found]:
        for (href, name), document in zip(members, self._read((h for h, _ in members), self._item), strict=True):
            if isinstance(document, Found):
                yield document
                continue
            if name and not document.get("collection"):
                document = {**document, "collection": name}
            belongs = document.get("collection")
            if isinstance(belongs, str):
                self._collections.add(belongs)
            if self._wanted in (None, belongs):
                yield Found(document, href, self_href(document) or href)

    def _read(self, hrefs: Iterable[str], read: Callable[[str], Any] | None = None) -> Iterator[Any]:
        """Yield what `read` (by default `_object`) makes of `hrefs` in their order; remote ones are read several at a time."""
        listed, read = list(hrefs), read or self._object
        if not any(is_url(href) for href in listed):
            yield from map(read, listed)
            return
        with ThreadPoolExecutor(_READERS) as pool:
            yield from pool.map(read, listed)

    def _item(self, href: str) -> Mapping[str, Any] | Found:
        """Return an item's document; one that is not there, or is none, costs that item only."""
        try:
            document = self._documents.json(href)
        except (CatalogMissing, CatalogLinkBroken, CatalogNotJson) as error:
            return Found({}, href, href, str(error))
        return document if isinstance(document, Mapping) else Found({}, href, href, f"{shown(href)} is not a STAC document")

    def _object(self, href: str) -> Mapping[str, Any]:
        document = self._documents.json(href)
        if not isinstance(document, Mapping):
            raise CatalogError(f"{public(href)} is not a STAC document")
        return document


# ---------------------------------------------------------------------------------------------------------------- STAC APIs


def _search_link(root: Mapping[str, Any]) -> str | None:
    """Return where an API's landing page says that it is searched, None where it is no API."""
    links = [link for link in links_of(root) if link.get("rel") == "search"]
    posted = [link for link in links if str(link.get("method", "")).upper() == "POST"]
    return next((str(link["href"]) for link in posted or links), None)


def _search(documents: Documents, root: Mapping[str, Any], location: str, query: Query) -> Iterator[Found]:
    collections = _link(root, location, "data") or absolute("collections", location.rstrip("/") + "/")
    if query.collection is None:
        held = ", ".join(sorted(_collection_ids(documents, collections))[:10])
        raise UnknownCollection(f"{public(location)} is a STAC API, so the job has to name a collection; it has {held}")
    _require_collection(documents, collections, query)
    from stac.item_search import pages

    for page in pages(documents, absolute(str(_search_link(root)), location), query):
        yield from _members(page, location)


def _require_collection(documents: Documents, collections: str, query: Query) -> None:
    # Only a plain "no" counts: servers that hide or forbid single collections may still search them.
    if documents.status(f"{collections}/{quote(str(query.collection), safe='')}") == 404:
        raise unknown_collection(str(query.collection), _collection_ids(documents, collections), query.catalog)


def _collection_ids(documents: Documents, collections: str) -> set[str]:
    """Return the names of an API's collections, from at most twenty pages."""
    names: set[str] = set()
    page: str | None = collections
    seen: set[str] = set()
    while page and page not in seen and len(seen) < 20:
        seen.add(page)
        listed = documents.json(page)
        entries = listed.get("collections") if isinstance(listed, Mapping) else None
        if not isinstance(entries, list):
            raise CatalogError(f"{public(page)} is not a list of collections")
        names |= {str(entry["id"]) for entry in entries if isinstance(entry, Mapping) and "id" in entry}
        page = _link(listed, page, "next")
    return names


def _link(document: Mapping[str, Any], base: str, relation: str) -> str | None:
    href = next((link["href"] for link in links_of(document) if link.get("rel") == relation), None)
    return None if href is None else absolute(href, base)
