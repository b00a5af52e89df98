"""The same scenes from a STAC API as from the static catalog of the same items, and the same map from both; pixels come over HTTP in ranges."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jobs
import pytest
import shapely
from nginx import WebServer
from pgstac import StacApi

from stac.errors import UnknownCollection
from stac.item_search import PAGE
from stac.search import Query, find_scenes

pytestmark = [pytest.mark.services, pytest.mark.cluster]

EVERYWHERE = shapely.box(-180, -90, 180, 90)
ALWAYS = {"start": datetime(2000, 1, 1, tzinfo=UTC), "end": datetime(2030, 1, 1, tzinfo=UTC)}


def catalog_of(folder: Path, url: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the one collection of a static catalog and its items, hrefs under `url`."""
    (path,) = folder.rglob("collection.json")
    collection = json.loads(path.read_text()) | {"links": []}
    items = []
    for document in sorted(path.parent.rglob("*.json")):
        item = json.loads(document.read_text())
        if item.get("type") == "Feature":
            base = f"{url}/{document.parent.relative_to(folder).as_posix()}"
            for asset in item["assets"].values():
                asset["href"] = f"{base}/{asset['href'].removeprefix('./')}"
            items.append(item | {"links": [], "collection": collection["id"]})
    return collection, items


def seen(catalog: str, collection: str, **narrower: Any) -> list[dict[str, Any]]:
    """Return the scenes of a search, without the place of each item's own document."""
    query = {"region": EVERYWHERE, **ALWAYS, **narrower}
    found = find_scenes(Query(catalog=catalog, collection=collection, **query), probe=None)
    assert found.refused == ()
    return [scene.to_dict() | {"href": None} for scene in found.scenes]


@pytest.fixture(scope="module")
def collection(api: StacApi, web: WebServer, demo: Path) -> str:
    document, items = catalog_of(demo, web.url)
    api.load(document, items)
    return str(document["id"])


def test_api_and_static_catalog_give_the_same_scenes(api: StacApi, web: WebServer, collection: str) -> None:
    static = seen(f"{web.url}/catalog.json", collection)
    assert len(static) > 3
    assert seen(api.url, collection) == static
    middle = datetime.fromisoformat(static[0]["datetime"])
    for narrower in (
        {"end": middle},
        {"start": middle + timedelta(seconds=1)},
        {"region": shapely.geometry.shape(static[0]["footprint"]).centroid.buffer(1e-4)},
        {"max_cloud_cover": 20.0},
        {"exclude": (static[0]["id"],)},
    ):
        fewer = seen(f"{web.url}/catalog.json", collection, **narrower)
        assert 0 < len(fewer) < len(static), narrower
        assert seen(api.url, collection, **narrower) == fewer


def test_every_page_of_an_answer_is_read(api: StacApi, web: WebServer, demo: Path, tmp_path: Path) -> None:
    """Two and a half pages of acquisitions: a map of half a year must not be made of its first hundred scenes."""
    document, items = catalog_of(demo, web.url)
    many = []
    for number in range(5 * PAGE // 2):
        item = copy.deepcopy(items[0])
        when = datetime(2021, 1, 1, 10, tzinfo=UTC) + timedelta(days=number)
        item["id"] = f"S2A_32TQR_{when:%Y%m%d}_0_L2A"
        item["collection"] = "many"
        item["properties"] |= {"datetime": when.isoformat().replace("+00:00", "Z")}
        for key in [key for key in item["properties"] if key.startswith("s2:") and ("uri" in key or "id" in key)]:
            del item["properties"][key]
        many.append(item)
    api.load(document | {"id": "many"}, many)
    listed = tmp_path / "many.geojson"
    listed.write_text(json.dumps({"type": "FeatureCollection", "features": many}))
    expected = seen(str(listed), "many")
    assert len(expected) == len(many)
    assert seen(api.url, "many") == expected


@pytest.mark.parametrize("scenes", ["styria-s2", "fort-mcmurray-s2"])
def test_real_scenes_are_the_same_through_the_api(api: StacApi, shared_data: Path, scenes: str, tmp_path: Path) -> None:
    document, items = catalog_of(shared_data / "scenes" / scenes, "https://example.org")
    name = f"real-{scenes}"
    listed = [item | {"collection": name} for item in items]
    api.load(document | {"id": name}, listed)
    static = tmp_path / "items.geojson"
    static.write_text(json.dumps({"type": "FeatureCollection", "features": listed}))
    expected = seen(str(static), name)
    assert expected
    assert seen(api.url, name) == expected


def test_collection_that_the_api_lacks_is_named(api: StacApi, collection: str) -> None:
    with pytest.raises(UnknownCollection, match=f"it has .*{collection}"):
        find_scenes(Query(catalog=api.url, collection="sentinel-2-l2b", region=EVERYWHERE, **ALWAYS), probe=None)


def test_run_from_the_api_over_http_ranges_publishes_the_same_bytes(
    api: StacApi, web: WebServer, collection: str, demo: Path, undisturbed: dict[str, str], tmp_path: Path
) -> None:
    before = len(web.requests())
    run = jobs.spexmap(*jobs.run_arguments(demo, source__catalog=api.url, source__collection=collection, output=str(tmp_path / "output")))
    assert run.status == 0, run.err[-3000:]
    assert jobs.published(jobs.local_files(tmp_path / "output")) == undisturbed
    reads = [line for line in web.requests()[before:] if line.split()[1] == "GET" and line.endswith(".tif")]
    assert reads
    assert {line.split()[0] for line in reads} == {"206"}, "a whole file was fetched where a range was asked for"
