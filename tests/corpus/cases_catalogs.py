"""Bad catalogs: what lies where a catalog, a collection or a search should be."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from typing import Any

import geopandas as gpd
from corpus import Case, Outcome
from shapely.geometry import box
from spoiling import BEST, COLLECTION, EDGE, OLDER, Spoil, World, catalog_is, job, link

RIGHT, REFUSED, LEFT_OUT, SENTENCE = Outcome.RIGHT, Outcome.REFUSED, Outcome.LEFT_OUT, Outcome.SENTENCE
HTML = "<!DOCTYPE html><html><body>Please sign in</body></html>"
DEEP = '{"links": ' + "[" * 100_000 + "]" * 100_000 + "}"
DIGITS = '{"type": "Catalog", "stac_version": "1.0.0", "links": [], "id": ' + "9" * 10_000 + "}"


def collection_edit(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    return lambda world: world.edit(world.collection, change)


def item_is(content: bytes) -> Spoil:
    return lambda world: world.item().write_bytes(content)


def encoded(encode: Callable[[bytes], bytes]) -> Spoil:
    """Write catalog, collection and items in another encoding."""

    def spoil(world: World) -> None:
        for path in (world.catalog, world.collection, *(world.item(name) for name in (BEST, OLDER, EDGE))):
            path.write_bytes(encode(path.read_bytes()))

    return spoil


def items_are(content: Callable[[list[dict[str, Any]]], Any]) -> Spoil:
    """Make an item collection the job's catalog."""
    return lambda world: world.write_items(content(world.documents()))


def features(documents: list[Any]) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": documents}


def many(documents: list[dict[str, Any]]) -> dict[str, Any]:
    """Three sound items among 5,000 of other places."""
    far = {**documents[0], "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 0], [1, 1], [0, 0]]]}, "assets": {}}
    return features([{**far, "id": f"far-{number}"} for number in range(5000)] + documents)


def parquet(content: Callable[[World], bytes]) -> Spoil:
    def spoil(world: World) -> None:
        (world.root / "items.parquet").write_bytes(content(world))
        world.set("source.catalog", "items.parquet")

    return spoil


def table_of_places(world: World) -> bytes:
    path = world.root / "places.parquet"
    gpd.GeoDataFrame({"name": ["a"]}, geometry=[box(11, 45, 12, 46)], crs="EPSG:4326").to_parquet(path)
    return path.read_bytes()


def table_without_geometry(world: World) -> bytes:
    """A table of the three items, one of whose geometries is null."""
    path = world.root / "table.parquet"
    documents = world.documents()
    shapes = [None if document["id"] == BEST else box(*document["bbox"]) for document in documents]
    columns = {key: [json.dumps(d[key]) if key in ("assets", "properties") else d[key] for d in documents] for key in _COLUMNS}
    gpd.GeoDataFrame(columns, geometry=shapes, crs="EPSG:4326").to_parquet(path)
    return path.read_bytes()


_COLUMNS = ("id", "collection", "stac_version", "assets", "properties")


def served(answer: Callable[[str], bytes | None] = lambda path: None, catalog: str = "/catalog.json") -> Spoil:
    """Read the catalog from a server; `answer` decides what it says."""
    return lambda world: world.set("source.catalog", world.serve(answer) + catalog)


def api(search: Callable[[int], bytes], collection: bytes = b'{"id": "sentinel-2-l2a"}') -> Spoil:
    """Search an API that answers a collection and, to the nth search, `search(n)`."""
    asked: list[str] = []

    def answer(path: str) -> bytes | None:
        if path.startswith("/search"):
            asked.append(path)
            return search(len(asked))
        if path.startswith("/collections"):
            return collection
        links = [{"rel": "search", "href": "/search"}, {"rel": "data", "href": "/collections"}]
        return json.dumps({"type": "Catalog", "id": "api", "stac_version": "1.0.0", "links": links}).encode()

    return served(answer, "/")


def page(number: int, **changes: Any) -> bytes:
    """A page of one item, always the same, that leads to the next one."""
    links = [{"rel": "next", "href": f"/search?page={number + 1}", "method": "GET"}]
    return json.dumps({"type": "FeatureCollection", "features": [{"id": "a"}], "links": links, **changes}).encode()


def endless(path: str) -> bytes | None:
    """A catalog whose every child has another child."""
    number = int(path.strip("/").partition(".")[0] or 0) if path.strip("/").partition(".")[0].isdigit() else 0
    child = {"rel": "child", "href": f"/{number + 1}.json"}
    return json.dumps({"type": "Catalog", "id": f"c{number}", "stac_version": "1.0.0", "links": [child]}).encode()


def served_files(world: World) -> None:
    """Serve the catalog; its items name their files by paths of this machine."""
    for name in (BEST, OLDER, EDGE):
        folder = world.item(name).parent
        world.edit(world.item(name), lambda d, folder=folder: [a.update(href=f"file://{folder / a['href']}") for a in d["assets"].values()])
    served()(world)


CASES = (
    Case("catalog-html", "a sign-in page in place of the catalog", catalog_is(HTML), SENTENCE, "source.catalog"),
    Case("catalog-empty-file", "the catalog's file has no byte", catalog_is(""), SENTENCE, "is not JSON"),
    Case("catalog-truncated", "the catalog's file ends in the middle", catalog_is('{"type": "Catalog", "links": ['), SENTENCE, "is not JSON"),
    Case("catalog-number", "the catalog is the number 5", catalog_is("5"), SENTENCE, "neither a STAC API"),
    Case("catalog-null", "the catalog is null", catalog_is("null"), SENTENCE, "neither a STAC API"),
    Case("catalog-deep", "the catalog is nested 100,000 deep", catalog_is(DEEP), SENTENCE, "nested too deep"),
    Case("catalog-digits", "the catalog has a number of 10,000 digits", catalog_is(DIGITS), SENTENCE, "is not JSON"),
    Case("catalog-binary", "the catalog is a picture", catalog_is(b"\x89PNG\r\n\x1a\n" + bytes(100)), SENTENCE, "is not JSON"),
    Case("catalog-missing", "there is no catalog", lambda world: world.catalog.unlink(), SENTENCE, "there is no catalog"),
    Case("catalog-path-nul", "the catalog's path has a NUL character", job(source__catalog="a\0b"), SENTENCE, "source.catalog"),
    Case("catalog-bad-url", "the catalog's URL is none", job(source__catalog="http://[::1/catalog.json"), SENTENCE, "source.catalog"),
    Case("catalog-passwd", "the catalog is /etc/passwd", job(source__catalog="/etc/passwd"), SENTENCE, "is not JSON"),
    Case(
        "collection-links-null",
        "the collection's links are null",
        collection_edit(lambda c: c.update(links=None)),
        SENTENCE,
        "no scene",
        exit_status=0,
    ),
    Case(
        "collection-links-words",
        "some links are words, numbers or null",
        collection_edit(lambda c: c["links"].extend(["item", 3, None, {"rel": "item"}])),
        RIGHT,
    ),
    Case("collection-unknown", "the catalog does not hold the collection", job(source__collection="sentinel2-l2a"), SENTENCE, COLLECTION),
    Case("collection-id-number", "the collection's id is a number", collection_edit(lambda c: c.update(id=7)), SENTENCE, "it has 7"),
    Case(
        "child-missing", "the catalog links to a collection that is not there", lambda world: world.collection.unlink(), SENTENCE, "collection.json"
    ),
    Case(
        "item-missing", "the collection links to an item that is not there", link("item", "./gone.json"), REFUSED, "gone.json", scene="gone", like=()
    ),
    Case("item-html", "a sign-in page in place of an item", item_is(HTML.encode()), REFUSED, "is not JSON", scene=BEST),
    Case("item-list", "an item's document is a list", item_is(b"[1, 2]"), REFUSED, "is not a STAC document", scene=BEST),
    Case("item-directory", "the collection links to a folder as an item", link("item", f"./{BEST}"), REFUSED, "cannot read", scene=BEST, like=()),
    Case("cyclic", "a collection is a child of itself and has the catalog as child", link("child", "../catalog.json"), RIGHT),
    Case("endless", "every child catalog has another child", served(endless), SENTENCE, "does not end"),
    Case("encoded-bom", "documents begin with a byte order mark", encoded(lambda data: b"\xef\xbb\xbf" + data), RIGHT),
    Case("encoded-utf-16", "documents are UTF-16", encoded(lambda data: data.decode().encode("utf-16")), RIGHT),
    Case("encoded-gzip", "documents are packed by gzip", encoded(gzip.compress), RIGHT),
    Case("gzip-truncated", "the packed catalog ends in the middle", encoded(lambda data: gzip.compress(data)[:-20]), SENTENCE, "ends in the middle"),
    Case("latin-1", "documents are neither UTF-8 nor JSON", catalog_is('{"id": "ä"}'.encode("latin-1")), SENTENCE, "is not JSON"),
    Case("features-empty", "the item collection is empty", items_are(lambda d: features([])), SENTENCE, "no scene", exit_status=0),
    Case("features-null", "the item collection's features are null", items_are(lambda d: {**features([]), "features": None}), SENTENCE, "not a list"),
    Case("features-object", "features is an object", items_are(lambda d: {**features([]), "features": {}}), SENTENCE, "not a list"),
    Case("feature-null", "one of the features is null", items_are(lambda d: features([*d, None])), REFUSED, "NoneType", scene="(no id)", like=()),
    Case("features-many", "three items among 5,000 of other places", items_are(many), RIGHT),
    Case("one-item", "the catalog is one item", items_are(lambda d: next(i for i in d if i["id"] == BEST)), RIGHT),
    Case("list-of-items", "the catalog is a list of items", items_are(lambda d: d), RIGHT),
    Case("parquet-empty", "the GeoParquet file has no byte", parquet(lambda world: b""), SENTENCE, "not a GeoParquet file"),
    Case("parquet-truncated", "the GeoParquet file is cut", parquet(lambda w: table_without_geometry(w)[:-100]), SENTENCE, "GeoParquet"),
    Case("parquet-other-table", "the GeoParquet file holds no items", parquet(table_of_places), SENTENCE, "no column"),
    Case("parquet-geometry-null", "a geometry of the GeoParquet file is null", parquet(table_without_geometry), REFUSED, "no footprint"),
    Case("served-html", "the server answers the catalog with a sign-in page", served(lambda path: HTML.encode()), SENTENCE, "is not JSON"),
    Case("served-404", "the server does not know the catalog", served(catalog="/nowhere.json"), SENTENCE, "404"),
    Case("served-names-files", "a remote item names files of this machine", served_files, SENTENCE, "3 were refused", exit_status=0),
    Case("search-html", "the search answers with a sign-in page", api(lambda number: HTML.encode()), SENTENCE, "not a page of items"),
    Case("search-list", "the search answers with a list", api(lambda number: b"[]"), SENTENCE, "search"),
    Case("search-features-null", "a page's features are null", api(lambda n: page(n, features=None)), SENTENCE, "no list of features"),
    Case("search-circle", "the search's pages go round in a circle", api(lambda number: page(number % 2)), SENTENCE, "does not end"),
    Case("search-endless", "the search has page after page of the same item", api(page), SENTENCE, "does not end"),
    Case("search-refused", "the search answers an error as JSON", api(lambda n: b'{"code": "BadRequest"}'), SENTENCE, "search"),
)
