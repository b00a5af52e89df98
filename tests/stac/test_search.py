"""Search in static catalogs and item collections: which scenes a map gets, each once, and why others are left out."""

from __future__ import annotations

import copy
import json
import os
import shutil
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from rasterio.warp import transform_geom
from shapely.geometry import mapping, shape
from stac_servers import Reply, Request

from stac.errors import CatalogError, UnknownCollection
from stac.probe import sample_numbers
from stac.scenes import BandSource, Scene
from stac.search import SearchResult, find_scenes
from stac.sensors.sentinel2 import Sentinel2


def ids(result: SearchResult) -> list[str]:
    return [scene.id for scene in result.scenes]


# ---------------------------------------------------------------------------------------------------------------- static catalogs


def test_styria_gives_six_scenes_whose_offset_is_already_removed(shared_data: Path, everything: Any) -> None:
    result = find_scenes(everything(shared_data / "scenes" / "styria-s2" / "catalog.json", collection="sentinel-2-l2a"))
    assert ids(result) == sorted(
        f"{sat}_{tile}_202308{day}_0_L2A" for sat, day in (("S2A", 18), ("S2B", 10), ("S2B", 13)) for tile in ("33TWL", "33TWM")
    )
    assert result.refused == ()
    for scene in result.scenes:
        assert list(scene.bands) == ["blue", "green", "red", "nir"]
        assert {band.offset for band in scene.bands.values()} == {0.0}
        assert "baseline 05.09" in scene.calibration
        assert "lie below 900" in scene.calibration
        assert all(Path(band.href).is_file() for band in scene.bands.values())


def test_vegetation_in_styria_reflects_as_vegetation_does(shared_data: Path, everything: Any) -> None:
    for scene in find_scenes(everything(shared_data / "scenes" / "styria-s2")).scenes:
        assert scene.mask is not None
        vegetation = sample_numbers(BandSource(scene.mask.href), 900) == 4
        for name, low, high in (("blue", 0.005, 0.06), ("red", 0.01, 0.08), ("nir", 0.2, 0.5)):
            band = scene.bands[name]
            numbers = sample_numbers(band, 900)
            assert numbers is not None
            assert low < float(np.median(numbers[vegetation]) * band.scale + band.offset) < high


def test_styria_is_right_even_where_pixels_cannot_be_read(shared_data: Path, everything: Any) -> None:
    result = find_scenes(everything(shared_data / "scenes" / "styria-s2"), probe=lambda band, wanted: None)
    assert {scene.bands["blue"].offset for scene in result.scenes} == {0.0}
    assert all("boa_offset_applied is true" in scene.calibration and "could not be read" in scene.calibration for scene in result.scenes)


def test_fort_mcmurray_gives_one_scene(shared_data: Path, everything: Any) -> None:
    (scene,) = find_scenes(everything(shared_data / "scenes" / "fort-mcmurray-s2")).scenes
    assert (scene.cloud_cover, scene.processing, scene.bands["swir16"].offset) == (15.27, "baseline 02.12", 0.0)


def test_a_file_url_is_a_path(shared_data: Path, everything: Any) -> None:
    url = (shared_data / "scenes" / "fort-mcmurray-s2" / "catalog.json").resolve().as_uri()
    assert len(find_scenes(everything(url)).scenes) == 1


def test_period_region_cloud_and_exclusion_choose_scenes(shared_data: Path, everything: Any) -> None:
    styria = shared_data / "scenes" / "styria-s2" / "catalog.json"
    day = {"start": datetime(2023, 8, 13, tzinfo=UTC), "end": datetime(2023, 8, 13, 23, 59, 59, 999999, tzinfo=UTC)}
    assert ids(find_scenes(everything(styria, **day))) == ["S2B_33TWL_20230813_0_L2A", "S2B_33TWM_20230813_0_L2A"]
    assert ids(find_scenes(everything(styria, **day, exclude=("S2B_33TWL_20230813_0_L2A",)))) == ["S2B_33TWM_20230813_0_L2A"]
    south = shapely.box(15.2, 45.3, 15.4, 45.5)
    assert ids(find_scenes(everything(styria, region=south, max_cloud_cover=50))) == ["S2A_33TWL_20230818_0_L2A", "S2B_33TWL_20230813_0_L2A"]


def test_the_period_includes_both_ends(shared_data: Path, everything: Any) -> None:
    styria = shared_data / "scenes" / "styria-s2" / "catalog.json"
    (scene,) = [s for s in find_scenes(everything(styria)).scenes if s.id == "S2A_33TWM_20230818_0_L2A"]
    for start, end, found in ((0, 0, 1), (1, 5, 0), (-5, -1, 0)):
        period = {"start": scene.datetime + timedelta(microseconds=start), "end": scene.datetime + timedelta(microseconds=end)}
        assert len(find_scenes(everything(styria, **period)).scenes) == found


def test_an_unknown_collection_names_the_nearest(shared_data: Path, everything: Any) -> None:
    with pytest.raises(UnknownCollection, match="sentinel-2-l2a"):
        find_scenes(everything(shared_data / "scenes" / "styria-s2", collection="sentinel2-l2a"))


@pytest.mark.parametrize(("text", "message"), [("{}", "neither"), ("not json", "not JSON"), (None, "no catalog at")])
def test_what_is_no_catalog_is_said_so(tmp_path: Path, everything: Any, text: str | None, message: str) -> None:
    path = tmp_path / "catalog.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(CatalogError, match=message):
        find_scenes(everything(path))


def test_a_catalog_that_links_to_itself_ends(tmp_path: Path, everything: Any, shared_data: Path) -> None:
    folder = shutil.copytree(shared_data / "scenes" / "fort-mcmurray-s2", tmp_path / "c", ignore=shutil.ignore_patterns("*.tif"))
    for name in ("catalog.json", "collection.json"):
        document = json.loads((folder / name).read_text())
        document["links"] += [{"rel": "child", "href": "./catalog.json"}, {"rel": "child", "href": "collection.json"}]
        document["links"] += [link for link in document["links"] if link["rel"] == "item"]
        (folder / name).write_text(json.dumps(document))
    assert len(find_scenes(everything(folder / "catalog.json"), probe=None).scenes) == 1


@pytest.mark.parametrize("content", [None, b"<html>", b"[]"])
def test_an_item_that_is_not_there_costs_that_item_only_and_names_its_path(
    tmp_path: Path, everything: Any, shared_data: Path, content: bytes | None
) -> None:
    folder = shutil.copytree(shared_data / "scenes" / "styria-s2", tmp_path / "c", ignore=shutil.ignore_patterns("*.tif"))
    item = sorted(folder.glob("*/*/*.json"))[0]
    item.unlink()
    if content is not None:
        item.write_bytes(content)
    result = find_scenes(everything(folder), probe=None)
    assert len(result.scenes) == 5
    ((name, reason),) = [(refusal.id, refusal.reason) for refusal in result.refused]
    assert item.name in name and item.name in reason


def linked(folder: Path, relation: str, href: str) -> Path:
    """A static catalog with one more link in its collection."""
    path = folder / "sentinel-2-l2a" / "collection.json"
    document = json.loads(path.read_text())
    document["links"].append({"rel": relation, "href": href})
    path.write_text(json.dumps(document))
    return folder


@pytest.fixture
def styria(tmp_path: Path, shared_data: Path) -> Path:
    """The static catalog of six scenes without their files, a pipe and a loop of links beside its collection."""
    folder = shutil.copytree(shared_data / "scenes" / "styria-s2", tmp_path / "c", ignore=shutil.ignore_patterns("*.tif"))
    os.mkfifo(folder / "sentinel-2-l2a" / "pipe.json")
    (folder / "sentinel-2-l2a" / "loop.json").symlink_to("loop.json")
    return folder


BROKEN = ("a\0b.json", "x" * 5000 + ".json", "loop.json", "half\ud800.json", "http://[x", "//[x/y.json", "http:///y.json", "pipe.json", "/dev/zero")
"""Links that can name no document, or what is no file."""


@pytest.mark.parametrize("href", BROKEN, ids=range(len(BROKEN)))
def test_a_link_that_can_name_no_item_costs_that_item_only(href: str, styria: Path, everything: Any) -> None:
    result = find_scenes(everything(linked(styria, "item", href)), probe=None)
    assert len(result.scenes) == 6
    ((name, reason),) = [(refusal.id, refusal.reason) for refusal in result.refused]
    assert "cannot read" in reason
    assert (name + reason).isprintable() and len(name + reason) < 1500


@pytest.mark.parametrize("href", BROKEN, ids=range(len(BROKEN)))
def test_a_link_that_can_name_no_child_ends_the_search(href: str, styria: Path, everything: Any) -> None:
    with pytest.raises(CatalogError, match="cannot read"):
        find_scenes(everything(linked(styria, "child", href)), probe=None)


@pytest.mark.parametrize(
    ("name", "reason"), [("pipe.json", "not a file"), ("loop.json", "neither a path|no catalog"), ("x" * 5000, "too long")], ids=range(3)
)
def test_a_catalog_that_is_no_file_is_said_so(name: str, reason: str, styria: Path, everything: Any) -> None:
    with pytest.raises(CatalogError, match=reason):
        find_scenes(everything(styria / "sentinel-2-l2a" / name), probe=None)


@pytest.mark.parametrize("relation", ["item", "child"])
def test_a_broken_link_of_a_remote_catalog_is_not_passed_over(relation: str, serve: Any, everything: Any) -> None:
    links = [{"rel": relation, "href": "//[x/y.json"}]
    server = serve(lambda request: Reply({"type": "Catalog", "id": "c", "stac_version": "1.0.0", "links": links}))
    if relation == "child":
        with pytest.raises(CatalogError, match="neither a URL"):
            find_scenes(everything(f"{server.url}/catalog.json"))
    else:
        assert "neither a URL" in find_scenes(everything(f"{server.url}/catalog.json")).refused[0].reason


def test_a_server_that_fails_is_no_missing_item(serve: Any, everything: Any, answered_pauses: Any) -> None:
    def answer(request: Request) -> Reply:
        links = [{"rel": "item", "href": "/item.json"}]
        return Reply({"type": "Catalog", "id": "c", "stac_version": "1.0.0", "links": links}, status=503 if "item" in request.path else 200)

    with pytest.raises(CatalogError, match="503"):
        find_scenes(everything(f"{serve(answer).url}/catalog.json"))


def test_a_missing_child_catalog_ends_the_search_with_its_path(tmp_path: Path, everything: Any, shared_data: Path) -> None:
    folder = shutil.copytree(shared_data / "scenes" / "styria-s2", tmp_path / "c", ignore=shutil.ignore_patterns("*.tif"))
    (folder / "sentinel-2-l2a" / "collection.json").unlink()
    with pytest.raises(CatalogError, match=r"collection\.json"):
        find_scenes(everything(folder))


# ---------------------------------------------------------------------------------------------------------------- item collections


def naip_items(shared_data: Path) -> list[dict[str, Any]]:
    items = []
    for path in sorted((shared_data / "scenes" / "potholes-naip").glob("*.tif")):
        with rasterio.open(path) as source:
            geometry = transform_geom(source.crs, "EPSG:4326", mapping(shapely.box(*source.bounds)))
        day = path.stem.rpartition("_")[2]
        names = ("red", "green", "blue", "nir")
        items.append(
            {
                "type": "Feature",
                "stac_version": "1.0.0",
                "id": path.stem,
                "collection": "naip",
                "geometry": geometry,
                "bbox": list(shape(geometry).bounds),
                "properties": {"datetime": f"{day[:4]}-{day[4:6]}-{day[6:]}T12:00:00Z", "gsd": 5},
                "links": [],
                "assets": {
                    "image": {"href": str(path), "type": "image/tiff", "eo:bands": [{"name": n, "common_name": n} for n in names], "roles": ["data"]},
                },
            }
        )
    return items


def test_potholes_are_three_acquisitions_of_one_place(shared_data: Path, item_collection: Any, everything: Any) -> None:
    result = find_scenes(everything(item_collection(naip_items(shared_data)), collection="naip"))
    assert [scene.datetime.year for scene in result.scenes] == [2009, 2017, 2019]
    assert result.superseded == ()
    for scene in result.scenes:
        assert {name: band.index for name, band in scene.bands.items()} == {"blue": 3, "green": 2, "red": 1, "nir": 4}
        assert scene.bands["nir"].nodata == 0


def test_relative_hrefs_stand_against_the_file(shared_data: Path, tmp_path: Path, item_collection: Any, everything: Any) -> None:
    item = naip_items(shared_data)[0]
    item["assets"]["image"]["href"] = "../images/one.tif"
    (tmp_path / "sub").mkdir()
    path = item_collection([item], "sub/items.geojson")
    (scene,) = find_scenes(everything(path)).scenes
    assert scene.bands["red"].href == str(tmp_path.resolve() / "images" / "one.tif")
    assert scene.href is None


def test_items_that_cannot_be_used_are_named_with_a_reason(earth_search_items: Any, item_collection: Any, everything: Any) -> None:
    bad = {name: copy.deepcopy(earth_search_items[0]) for name in ("no footprint", "../../etc/passwd", "no time", "radar", "signed")}
    for name, item in bad.items():
        item["id"] = name
    bad["no footprint"]["geometry"] = None
    bad["no time"]["properties"]["datetime"] = None
    bad["radar"].update(collection="sentinel-1-grd", properties={"datetime": "2020-01-01T00:00:00Z", "platform": "sentinel-1a"}, assets={})
    bad["signed"]["assets"]["blue"]["href"] += "?X-Amz-Signature=0123456789"
    bad["signed"]["properties"]["datetime"] = "2001-01-01T00:00:00Z"
    result = find_scenes(everything(item_collection(list(bad.values()))), probe=None)
    assert result.scenes == ()
    reasons = {refusal.id: refusal.reason for refusal in result.refused}
    assert set(reasons) == set(bad)
    for name, word in (
        ("no footprint", "footprint"),
        ("../../etc/passwd", "path"),
        ("no time", "acquired"),
        ("radar", "radar"),
        ("signed", "signed"),
    ):
        assert word in reasons[name]
    assert "0123456789" not in repr(result)


def test_items_outside_region_and_period_are_not_even_refused(earth_search_items: Any, item_collection: Any, everything: Any) -> None:
    item = {**copy.deepcopy(earth_search_items[0]), "id": "bad/id"}
    path = item_collection([item])
    assert find_scenes(everything(path, region=shapely.box(0, 0, 1, 1))) == SearchResult((), (), ())
    assert find_scenes(everything(path, end=datetime(2001, 1, 1, tzinfo=UTC))) == SearchResult((), (), ())


def test_a_scene_that_does_not_say_its_cloud_cover_passes(earth_search_items: Any, item_collection: Any, everything: Any) -> None:
    silent = copy.deepcopy(earth_search_items[0])
    del silent["properties"]["eo:cloud_cover"]
    result = find_scenes(everything(item_collection([silent, *earth_search_items[1:]]), max_cloud_cover=0), probe=None)
    assert ids(result) == [silent["id"]]


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError])
@pytest.mark.parametrize("method", ["acquisition", "to_scene"])
def test_an_item_that_a_sensor_does_not_understand_costs_that_item_only(
    error: type[Exception], method: str, earth_search_items: Any, item_collection: Any, everything: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    understood = getattr(Sentinel2, method)

    def read(profile: Sentinel2, item: Any, *rest: Any) -> Any:
        if item.id == earth_search_items[0]["id"]:
            raise error("odd")
        return understood(profile, item, *rest)

    monkeypatch.setattr(Sentinel2, method, read)
    result = find_scenes(everything(item_collection(earth_search_items)), probe=None)
    assert len(result.scenes) == len(earth_search_items) - 1
    ((name, reason),) = [(refusal.id, refusal.reason) for refusal in result.refused]
    assert name == earth_search_items[0]["id"]
    assert reason.startswith(f"it is not understood ({error.__name__}: ") and "odd" in reason


@pytest.mark.parametrize("error", [CatalogError("gone"), UnknownCollection("none"), MemoryError(), AssertionError(), OSError("disk")])
@pytest.mark.parametrize("method", ["acquisition", "to_scene"])
def test_what_is_no_fault_of_an_item_still_ends_the_search(
    error: Exception, method: str, earth_search_items: Any, item_collection: Any, everything: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise error

    monkeypatch.setattr(Sentinel2, method, fail)
    with pytest.raises(type(error)):
        find_scenes(everything(item_collection(earth_search_items[:2])), probe=None)


# ---------------------------------------------------------------------------------------------------------------- GeoParquet


def as_table(items: list[dict[str, Any]]) -> pa.Table:
    """Items as stac-geoparquet lays them out: properties as columns, geometry as WKB."""
    rows = []
    for item in items:
        properties = {k: v for k, v in item["properties"].items() if k in ("platform", "constellation", "eo:cloud_cover", "s2:processing_baseline")}
        flag = item["properties"].get("earthsearch:boa_offset_applied")
        rows.append(
            {
                **{key: item[key] for key in ("type", "stac_version", "stac_extensions", "id", "collection", "links", "assets")},
                **properties,
                "datetime": datetime.fromisoformat(item["properties"]["datetime"]),
                "created": datetime.fromisoformat(item["properties"]["created"]),
                "earthsearch:boa_offset_applied": flag,
                "geometry": shape(item["geometry"]).wkb,
                "bbox": dict(zip(("xmin", "ymin", "xmax", "ymax"), item["bbox"], strict=True)),
            }
        )
    return pa.Table.from_pylist(rows)


def comparable(scene: Scene) -> dict[str, Any]:
    kept = scene.to_dict()
    return {key: kept[key] for key in ("id", "datetime", "footprint", "bands", "mask", "cloud_cover", "calibration", "href", "collection")}


def test_geoparquet_gives_the_same_scenes_as_geojson(earth_search_items: Any, item_collection: Any, tmp_path: Path, everything: Any) -> None:
    poorer = {**earth_search_items[0], "assets": {k: v for k, v in earth_search_items[0]["assets"].items() if k in ("green", "scl")}}
    items = [poorer, *earth_search_items[1:]]
    pq.write_table(as_table(items), tmp_path / "items.parquet", row_group_size=5)
    table = find_scenes(everything(tmp_path / "items.parquet", collection="sentinel-2-l2a"), probe=None)
    plain = find_scenes(everything(item_collection(items), collection="sentinel-2-l2a"), probe=None)
    assert [comparable(scene) for scene in table.scenes] == [comparable(scene) for scene in plain.scenes]
    assert len(table.scenes) == len(earth_search_items)


def test_tables_of_the_common_writer_are_read(earth_search_items: Any, item_collection: Any, tmp_path: Path, everything: Any) -> None:
    arrow = pytest.importorskip("stac_geoparquet").arrow
    batches = arrow.parse_stac_items_to_arrow(earth_search_items)
    arrow.to_parquet(batches, tmp_path / "items.parquet")
    table = find_scenes(everything(tmp_path / "items.parquet"), probe=None)
    plain = find_scenes(everything(item_collection(earth_search_items)), probe=None)
    assert [scene.to_dict()["bands"] for scene in table.scenes] == [scene.to_dict()["bands"] for scene in plain.scenes]
    assert [scene.processing for scene in table.scenes] == [scene.processing for scene in plain.scenes]


def test_a_table_without_items_is_said_so(tmp_path: Path, everything: Any) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "items.parquet")
    with pytest.raises(CatalogError, match="assets, geometry"):
        find_scenes(everything(tmp_path / "items.parquet"))


@pytest.mark.parametrize(
    ("column", "text"),
    [("assets", "{"), ("id", "[x"), ("collection", "{y"), ("properties", "{"), ("properties", "text"), ("properties", "[1]")],
)
def test_a_row_of_a_table_that_is_no_item_costs_itself_only(column: str, text: str, earth_search_items: Any, tmp_path: Path, everything: Any) -> None:
    rows = [{"id": item["id"], "collection": item["collection"], "assets": json.dumps(item["assets"])} for item in earth_search_items[:2]]
    for row, item in zip(rows, earth_search_items, strict=False):
        row |= {"properties": json.dumps(item["properties"]), "geometry": shapely.to_wkb(shape(item["geometry"])), "type": "Feature"}
    rows[0][column] = text
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    result = find_scenes(everything(tmp_path / "items.parquet"), probe=None)
    assert earth_search_items[1]["id"] in ids(result)
    assert len(result.scenes) + len(result.refused) == 2


DAY = date(2021, 7, 12)


@pytest.mark.parametrize(
    "column",
    [
        pa.array([DAY] * 3),
        pa.array([Decimal("1.5")] * 3),
        pa.array([time(1, 2)] * 3),
        pa.array([timedelta(1)] * 3),
        pa.array([[DAY]] * 3),
        pa.array([{"day": DAY, "amount": Decimal(1)}] * 3),
        pa.array([2**60] * 3, pa.timestamp("us")),
        pa.array([2**31 - 1] * 3, pa.date32()),
        pa.array([0] * 3, pa.timestamp("us", "No/Where")),
        pa.array([b"\xff"] * 3).view(pa.string()),
        pa.array([[b"\xff"]] * 3),
    ],
    ids=lambda column: str(column.type),
)
def test_a_column_that_nobody_reads_refuses_no_scene(column: pa.Array, earth_search_items: Any, tmp_path: Path, everything: Any) -> None:
    pq.write_table(as_table(earth_search_items[:3]).append_column("extra", column), tmp_path / "items.parquet")
    result = find_scenes(everything(tmp_path / "items.parquet"), probe=None)
    assert (len(result.scenes), result.refused) == (3, ())


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("datetime", lambda good: pa.array([2**60, *good.cast(pa.int64()).to_pylist()[1:]], good.type)),
        ("id", lambda good: pa.array([b"\xff", *(text.encode() for text in good.to_pylist()[1:])]).view(pa.string())),
    ],
)
def test_a_value_of_a_table_that_python_cannot_hold_costs_its_row_only(
    name: str, column: Any, earth_search_items: Any, tmp_path: Path, everything: Any
) -> None:
    table = as_table(earth_search_items[:3])
    spoiled = table.set_column(table.column_names.index(name), name, column(table[name].combine_chunks()))
    pq.write_table(spoiled, tmp_path / "items.parquet")
    result = find_scenes(everything(tmp_path / "items.parquet"), probe=None)
    assert ids(result) == sorted(item["id"] for item in earth_search_items[1:3])
    assert len(result.refused) == 1


def test_clouds_that_a_table_counts_in_decimals_are_clouds(earth_search_items: Any, tmp_path: Path, everything: Any) -> None:
    table = as_table(earth_search_items[:1])
    column = pa.array([Decimal("99.50")], pa.decimal128(5, 2))
    pq.write_table(table.set_column(table.column_names.index("eo:cloud_cover"), "eo:cloud_cover", column), tmp_path / "items.parquet")
    assert find_scenes(everything(tmp_path / "items.parquet", max_cloud_cover=50), probe=None) == SearchResult((), (), ())


# ---------------------------------------------------------------------------------------------------------------- reprocessing


def processed_again(item: dict[str, Any], baseline: str, seconds: float = 0, **changes: Any) -> dict[str, Any]:
    """The same acquisition as a newer processing publishes it: other id and baseline, a time that differs a little."""
    again = copy.deepcopy(item)
    moment = datetime.fromisoformat(item["properties"]["datetime"]) + timedelta(seconds=seconds)
    again["properties"].update({"datetime": moment.isoformat(), "s2:processing_baseline": baseline, **changes})
    again["id"] = f"{item['id'].rsplit('_', 2)[0]}_{baseline.replace('.', '')}_L2A"
    again["links"] = []
    return again


def test_only_the_newest_processing_of_an_acquisition_is_used(earth_search_items: Any, item_collection: Any, everything: Any) -> None:
    first = earth_search_items[0]
    newer, newest = processed_again(first, "02.14", seconds=0.4), processed_again(first, "05.00", seconds=-3)
    result = find_scenes(everything(item_collection([newer, first, newest, earth_search_items[1]])), probe=None)
    assert ids(result) == sorted([newest["id"], earth_search_items[1]["id"]])
    assert result.superseded == tuple(sorted([first["id"], newer["id"]]))


def test_clouds_of_the_newest_processing_count_and_cloudy_scenes_are_not_probed(
    earth_search_items: Any, item_collection: Any, everything: Any
) -> None:
    first = {**earth_search_items[0], "properties": {**earth_search_items[0]["properties"], "eo:cloud_cover": 5}}
    path = item_collection([first, processed_again(first, "05.00", **{"eo:cloud_cover": 90})])

    def read(band: object, wanted: int) -> None:
        raise AssertionError("reads cost a request for each scene")

    assert find_scenes(everything(path, max_cloud_cover=50), probe=read) == SearchResult((), (), ())


def test_an_older_processing_stands_in_where_the_newest_cannot_be_used(earth_search_items: Any, item_collection: Any, everything: Any) -> None:
    first = earth_search_items[0]
    broken = processed_again(first, "05.00")
    del broken["assets"]["scl"]
    result = find_scenes(everything(item_collection([broken, first])), probe=None)
    assert ids(result) == [first["id"]]
    assert [refusal.id for refusal in result.refused] == [broken["id"]]
    assert result.superseded == ()


def test_both_halves_of_a_tile_that_two_datastrips_share_are_kept(stac_items: Path, item_collection: Any, everything: Any) -> None:
    names = ("S2B_OPER_MSI_L2A_TL_2BPS_20230512T234921_A032288_T01VCG", "S2B_OPER_MSI_L2A_TL_2BPS_20230513T005426_A032288_T01VCG")
    halves = [json.loads((stac_items / "mapchete_eo" / f"{name}.json").read_text()) for name in names]
    result = find_scenes(everything(item_collection(halves)), probe=None)
    assert ids(result) == sorted(names)


def test_a_landsat_scene_that_moves_up_a_tier_replaces_its_real_time_version(stac_items: Path, item_collection: Any, everything: Any) -> None:
    final = json.loads((stac_items / "odc_stac/tests/data/LC08_L2SP_028030_20200114_20200824_02_T1_SR.json").read_text())
    early = copy.deepcopy(final)
    early["id"] = "LC08_L2SP_028030_20200114_20200115_02_RT_SR"
    early["properties"]["landsat:collection_category"] = "RT"
    result = find_scenes(everything(item_collection([early, final])), probe=None)
    assert (ids(result), result.superseded) == ([final["id"]], (early["id"],))


def test_the_order_in_which_a_catalog_lists_items_never_matters(earth_search_items: Any, item_collection: Any, everything: Any) -> None:
    base = [{**item, "assets": {k: v for k, v in item["assets"].items() if k in ("blue", "nir", "scl")}} for item in earth_search_items]
    members = [*base, *(processed_again(item, "05.00", seconds=1) for item in base[:6]), processed_again(base[2], "05.10", seconds=-50)]
    reference = find_scenes(everything(item_collection(members)), probe=None)
    assert len(reference.scenes) == len(base)
    assert len(reference.superseded) == 7

    @settings(max_examples=15, deadline=None, phases=[Phase.generate])
    @given(order=st.permutations(range(len(members))), repeats=st.integers(0, 4))
    def check(order: list[int], repeats: int) -> None:
        listed = [members[index] for index in [*order, *order[:repeats]]]
        assert find_scenes(everything(item_collection(listed)), probe=None) == reference

    check()
