"""Pages of a search in a STAC API, to their end. Loaded only where a catalog is an API, for its client takes a while."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import shapely
from pystac_client.exceptions import APIError
from pystac_client.item_search import ItemSearch
from pystac_client.stac_api_io import StacApiIO
from shapely.geometry import MultiPolygon, mapping
from shapely.geometry.base import BaseGeometry

from stac.documents import TIMEOUT, Documents, absolute, failure, links_of, public
from stac.errors import CatalogError
from stac.query import Query

PAGE = 100
"""Items asked of an API at a time; some servers fail on answers of more than a few megabytes."""
MOST_PAGES = 4000
MOST_VERTICES = 500
"""Vertices beyond which an API is asked about the region's hull: long request bodies are refused by some."""
_STALE_PAGES = 3
"""Pages that hold nothing but items of earlier pages, one after another, at which a search is taken to have no end."""


def pages(documents: Documents, url: str, query: Query) -> Iterator[Mapping[str, Any]]:
    """Yield the pages of a search, asked by POST; a server that cannot is asked by GET."""
    reader = _PageReader(url, timeout=TIMEOUT, max_retries=None)
    reader.session = documents.session
    for method in ("POST", "GET"):
        search = ItemSearch(
            url,
            method=method,
            stac_io=reader,
            collections=[str(query.collection)],
            intersects=mapping(search_area(query.region)),
            # Whole seconds are what the client sends, so the end is rounded up; the exact period is applied to what comes back.
            datetime=(query.start.replace(microsecond=0), query.end.replace(microsecond=0) + timedelta(seconds=1)),
            limit=PAGE,
        )
        try:
            yield from _guarded(search.pages_as_dicts(), url)
        except APIError as error:
            status = getattr(error, "status_code", None)
            if method == "POST" and status in (404, 405, 501):
                continue
            raise CatalogError(f"the search at {public(url)} failed: {status or ''} {failure(error)}".strip()) from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise CatalogError(f"the search at {public(url)} answers what is not a page of items: {failure(error)}") from None
        return


class _PageReader(StacApiIO):
    """Reads pages of items; what else a server answers, with whatever status, is an error and not the end of the search."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(**options)
        self._url = url

    def read_json(self, source: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return a page; raises `CatalogError` where it has no list of items."""
        page: Any = super().read_json(source, *args, **kwargs)
        if not isinstance(page, Mapping) or not isinstance(page.get("features"), list):
            raise CatalogError(f"the search at {public(self._url)} answers what is not a page of items: it has no list of features")
        return {**page, "links": [{"rel": "", **link, "href": absolute(link["href"], self._url)} for link in links_of(page)]}


def _guarded(pages: Iterable[Mapping[str, Any]], url: str) -> Iterator[Mapping[str, Any]]:
    """Yield pages until a server's next links go round in a circle or there are too many."""
    seen: set[str] = set()
    known: set[str] = set()
    stale = 0
    for count, page in enumerate(pages, start=1):
        yield page
        following = [json.dumps(link, sort_keys=True) for link in links_of(page) if link.get("rel") == "next"]
        ids = {str(document.get("id")) for document in page["features"] if isinstance(document, Mapping)}
        stale = stale + 1 if ids <= known else 0
        known |= ids
        if seen & set(following) or count >= MOST_PAGES or (following and stale >= _STALE_PAGES):
            raise CatalogError(f"the search at {public(url)} does not end: page {count} leads back to a page seen before, or to too many")
        seen.update(following)


def search_area(region: BaseGeometry) -> BaseGeometry:
    """Return what an API is asked about: the region, or hulls of its western and eastern parts where it has very many vertices."""
    if shapely.get_num_coordinates(region) <= MOST_VERTICES:
        return region
    parts = list(getattr(region, "geoms", [region]))
    sides: tuple[Callable[[BaseGeometry], bool], ...] = (lambda part: part.centroid.x < 0, lambda part: part.centroid.x >= 0)
    hulls = [MultiPolygon([p for p in parts if side(p)]).convex_hull for side in sides if any(side(p) for p in parts)]
    return hulls[0] if len(hulls) == 1 else MultiPolygon(hulls)
