"""STAC APIs, against a real server on this machine that speaks the search protocol over real items."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import shapely
from shapely.geometry import shape
from stac_servers import Reply, Request, Server

from stac.errors import CatalogError, UnknownCollection
from stac.item_search import MOST_VERTICES, search_area
from stac.search import find_scenes

YEAR_2022 = {"start": datetime(2022, 1, 1, tzinfo=UTC), "end": datetime(2022, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)}


class StacApi:
    """Answers like a STAC API: landing page, collections, search by POST or GET with pages of `page` items."""

    def __init__(self, items: Iterable[dict[str, Any]], page: int = 4, methods: tuple[str, ...] = ("POST", "GET")) -> None:
        self.items = list(items)
        self.page = page
        self.methods = methods
        self.faults: list[Reply] = []
        self.endless = False
        self.url = ""

    def __call__(self, request: Request) -> Reply:
        if request.path == "/":
            return Reply(self._landing())
        if request.path == "/collections":
            return Reply({"collections": [{"id": name} for name in self._names()], "links": []})
        if request.path.startswith("/collections/"):
            return Reply({"id": "known"}) if request.path.rsplit("/", 1)[1] in self._names() else Reply({"code": "NotFound"}, 404)
        if request.path == "/search" and request.method in self.methods:
            return self.faults.pop(0) if self.faults else self._search(request)
        return Reply({}, 405)

    def _names(self) -> list[str]:
        return sorted({item["collection"] for item in self.items})

    def _landing(self) -> dict[str, Any]:
        search = [{"rel": "search", "type": "application/geo+json", "href": f"{self.url}/search", "method": method} for method in self.methods]
        links = [{"rel": "self", "href": self.url}, {"rel": "data", "href": f"{self.url}/collections"}, *search]
        conforms = ["https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search"]
        return {"type": "Catalog", "id": "test", "stac_version": "1.0.0", "description": "test", "conformsTo": conforms, "links": links}

    def _search(self, request: Request) -> Reply:
        asked = request.body or {key: values[0] for key, values in request.query.items()}
        if not request.body:
            asked |= {"collections": asked["collections"].split(","), "intersects": json.loads(asked["intersects"])}
        start, end = (datetime.fromisoformat(part) for part in asked["datetime"].split("/"))
        area = shape(asked["intersects"])
        matching = [
            item
            for item in self.items
            if item["collection"] in asked["collections"]
            and start <= datetime.fromisoformat(item["properties"]["datetime"]) <= end
            and shape(item["geometry"]).intersects(area)
        ]
        first = int(asked.get("token", 0))
        links = []
        if first + self.page < len(matching) or self.endless:
            following = 0 if self.endless else first + self.page
            links = [{"rel": "next", "href": f"{self.url}/search", "method": "POST", "merge": True, "body": {"token": following}}]
        return Reply({"type": "FeatureCollection", "features": matching[first : first + self.page], "links": links})


@pytest.fixture
def start(serve: Callable[..., Server]) -> Callable[[StacApi], Server]:
    def begin(api: StacApi) -> Server:
        server = serve(api)
        api.url = server.url
        return server

    return begin


def test_a_search_is_posted_and_paged_and_carries_the_headers(earth_search_items: Any, start: Any, everything: Any) -> None:
    server = start(StacApi(earth_search_items))
    query = everything(server.url, collection="sentinel-2-l2a", headers={"X-Api-Key": "a-secret"})
    result = find_scenes(query, probe=None)
    assert [scene.id for scene in result.scenes] == sorted(item["id"] for item in earth_search_items)
    searches = [request for request in server.requests if request.path == "/search"]
    assert [request.method for request in searches] == ["POST"] * 4
    assert [request.body.get("token", 0) for request in searches] == [0, 4, 8, 12]
    assert all(request.body["collections"] == ["sentinel-2-l2a"] for request in searches)
    assert {request.headers.get("x-api-key") for request in server.requests} == {"a-secret"}
    assert "a-secret" not in repr(query)
    assert all("a-secret" not in json.dumps(scene.to_dict()) for scene in result.scenes)


def test_region_and_period_are_asked_of_the_server_and_held_to(earth_search_items: Any, start: Any, everything: Any) -> None:
    server = start(StacApi(earth_search_items))
    inside = shapely.box(15.5, 47, 15.6, 47.1)
    found = find_scenes(everything(server.url, collection="sentinel-2-l2a", region=inside, **YEAR_2022), probe=None)
    assert [scene.datetime.year for scene in found.scenes] == [2022] * 3
    assert find_scenes(everything(server.url, collection="sentinel-2-l2a", region=shapely.box(0, 0, 1, 1)), probe=None).scenes == ()


def test_the_last_second_of_the_period_is_asked_for(earth_search_items: Any, start: Any, everything: Any) -> None:
    item = json.loads(json.dumps(earth_search_items[0]))
    for text, found in (("2022-12-31T23:59:59.600Z", 1), ("2023-01-01T00:00:00Z", 0)):
        item["properties"]["datetime"] = text
        result = find_scenes(everything(start(StacApi([item])).url, collection="sentinel-2-l2a", **YEAR_2022), probe=None)
        assert len(result.scenes) == found


def test_429_and_503_do_not_end_a_search(earth_search_items: Any, start: Any, everything: Any, answered_pauses: list[float]) -> None:
    api = StacApi(earth_search_items)
    api.faults = [Reply({}, 429, {"Retry-After": "7"}), Reply({}, 503, {"Retry-After": "3"}), Reply({}, 502)]
    server = start(api)
    result = find_scenes(everything(server.url, collection="sentinel-2-l2a"), probe=None)
    assert len(result.scenes) == len(earth_search_items)
    assert answered_pauses[:2] == [7, 3]
    assert len([request for request in server.requests if request.path == "/search"]) == 7


def test_a_server_that_keeps_failing_ends_in_an_error_without_secrets(
    earth_search_items: Any, start: Any, everything: Any, answered_pauses: Any
) -> None:
    api = StacApi(earth_search_items)
    api.faults = [Reply({}, 503, {"Retry-After": "86400"})] * 50
    server = start(api)
    with pytest.raises(CatalogError, match="503") as caught:
        find_scenes(everything(f"{server.url}/?token=secret", collection="sentinel-2-l2a"), probe=None)
    assert "secret" not in str(caught.value)
    assert max(answered_pauses) <= 120


def test_an_answer_that_breaks_off_is_asked_for_again(earth_search_items: Any, start: Any, everything: Any) -> None:
    api = StacApi(earth_search_items)
    api.faults = [Reply(b'{"type": "Feat', headers={"Content-Length": "100000", "Connection": "close"})]
    result = find_scenes(everything(start(api).url, collection="sentinel-2-l2a"), probe=None)
    assert len(result.scenes) == len(earth_search_items)


def test_headers_reach_no_other_host_and_no_log(serve: Any, everything: Any, caplog: pytest.LogCaptureFixture) -> None:
    elsewhere = serve(lambda request: Reply({"type": "FeatureCollection", "features": []}))
    near = serve(lambda request: Reply({}, 307, {"Location": f"{elsewhere.url}/items.json"}))
    caplog.set_level(logging.DEBUG)
    find_scenes(everything(f"{near.url}/items.json", headers={"Authorization": "Bearer a-secret"}))
    assert near.requests[0].headers["authorization"] == "Bearer a-secret"
    assert "authorization" not in elsewhere.requests[0].headers
    assert "a-secret" not in caplog.text


def test_searching_leaves_no_secret_in_debug_logs(earth_search_items: Any, start: Any, everything: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = start(StacApi(earth_search_items))
    caplog.set_level(logging.DEBUG)
    find_scenes(everything(server.url, collection="sentinel-2-l2a", headers={"X-Api-Key": "a-secret"}), probe=None)
    assert "a-secret" not in caplog.text


def test_pages_that_go_round_in_a_circle_end(earth_search_items: Any, start: Any, everything: Any) -> None:
    api = StacApi(earth_search_items)
    api.endless = True
    server = start(api)
    with pytest.raises(CatalogError, match="does not end"):
        find_scenes(everything(server.url, collection="sentinel-2-l2a"), probe=None)
    assert len([request for request in server.requests if request.path == "/search"]) == 2


def test_a_server_without_post_is_asked_by_get(earth_search_items: Any, start: Any, everything: Any) -> None:
    server = start(StacApi(earth_search_items, page=100, methods=("GET",)))
    result = find_scenes(everything(server.url, collection="sentinel-2-l2a", **YEAR_2022), probe=None)
    assert len(result.scenes) == 3


def test_an_api_needs_a_collection_that_it_has(earth_search_items: Any, start: Any, everything: Any) -> None:
    other = {**earth_search_items[0], "collection": "landsat-c2-l2"}
    server = start(StacApi([*earth_search_items, other]))
    with pytest.raises(UnknownCollection, match="it has sentinel-2-l2a, landsat-c2-l2"):
        find_scenes(everything(server.url, collection="sentinel-2-l1c"), probe=None)
    with pytest.raises(UnknownCollection, match="has to name a collection"):
        find_scenes(everything(server.url), probe=None)


def test_a_collection_of_an_api_says_what_to_give_instead(serve: Any, everything: Any) -> None:
    collection = {"type": "Collection", "id": "naip", "stac_version": "1.0.0", "extent": {}, "links": [{"rel": "items", "href": "items"}]}
    server = serve(lambda request: Reply(collection))
    with pytest.raises(CatalogError, match="API's root"):
        find_scenes(everything(f"{server.url}/collections/naip"))


def test_a_server_that_is_not_there_is_said_so(serve: Any, everything: Any, answered_pauses: list[float]) -> None:
    server = serve(lambda request: Reply({}))
    server.close()
    with pytest.raises(CatalogError, match="cannot read"):
        find_scenes(everything(f"{server.url}/catalog.json?key=secret"))


def test_a_static_catalog_is_read_over_http_pixels_included(shared_data: Path, serve: Any, everything: Any) -> None:
    folder = shared_data / "scenes" / "styria-s2"

    def file(request: Request) -> Reply:
        path = folder / request.path.lstrip("/")
        if not path.is_file():
            return Reply({}, 404)
        content = path.read_bytes()
        wanted = request.headers.get("range")
        if not wanted:
            return Reply(content, headers={"Accept-Ranges": "bytes"})
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        piece = content[int(first) : int(last or len(content)) + 1]
        return Reply(piece, 206, {"Content-Range": f"bytes {first}-{int(first) + len(piece) - 1}/{len(content)}"})

    server = serve(file)
    near = find_scenes(everything(folder / "catalog.json"))
    far = find_scenes(everything(f"{server.url}/catalog.json"))
    assert [scene.calibration for scene in far.scenes] == [scene.calibration for scene in near.scenes]
    assert far.scenes[0].bands["blue"].href == f"{server.url}/sentinel-2-l2a/{far.scenes[0].id}/B02.tif"
    assert far.scenes[0].href == f"{server.url}/sentinel-2-l2a/{far.scenes[0].id}/{far.scenes[0].id}.json"


def test_a_remote_catalog_cannot_name_local_files(earth_search_items: Any, serve: Any, everything: Any) -> None:
    item = json.loads(json.dumps(earth_search_items[0]))
    item["links"] = []
    item["assets"]["blue"]["href"] = "file:///etc/passwd"
    item["assets"]["red"]["href"] = "/vsicurl/http://127.0.0.1/x"
    server = serve(lambda request: Reply({"type": "FeatureCollection", "features": [item]}))
    (scene,) = find_scenes(everything(f"{server.url}/items.geojson"), probe=None).scenes
    assert not {"blue", "red"} & set(scene.bands)


def test_large_regions_are_asked_about_by_hulls_that_cover_them() -> None:
    west = shapely.Point(-170, 10).buffer(9, quad_segs=200)
    east = shapely.Point(175, 10).buffer(4.9, quad_segs=200)
    region = shapely.MultiPolygon([west, east])
    asked = search_area(region)
    assert shapely.get_num_coordinates(region) > MOST_VERTICES
    assert asked.covers(region.buffer(-1e-9))
    assert asked.area < 1.01 * region.area
    assert search_area(shapely.box(0, 0, 1, 1)) == shapely.box(0, 0, 1, 1)
