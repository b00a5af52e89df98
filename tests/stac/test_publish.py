"""If these fail, catalogs do not open in STAC tools, leak signatures, break when moved, or change bytes between runs."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pystac
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo import CRS
from odc.geo.geobox import GeoBox
from publishing import CLASSES, GEOBOX, SECRET, key, model_record, series_record, tile_record
from pystac_client import Client
from shapely.geometry import shape

from stac.canonical import canonical_json
from stac.geometry import bounds_of, footprint_of, union_of
from stac.legend import rgba
from stac.modelcard import model_item
from stac.publish import catalog, collection, collection_path, item, model_path, rfc3339, supersede, unsigned
from stac.records import ItemEntry, ItemKey
from stac.validation import DocumentValidator

CLASSIFICATION = "https://stac-extensions.github.io/classification/v{}/schema.json"


@pytest.fixture(scope="session")
def validator(stac_schemas: Path) -> DocumentValidator:
    """All extension schemas; classification 2.0.0 is derived here from 1.1.0, as the differences (`color_hint`, `name` required) are known."""
    text = (stac_schemas / "classification" / "v1.1.0" / "schema.json").read_text()
    derived = json.loads(text.replace("color-hint", "color_hint").replace("/v1.1.0/", "/v2.0.0/"))
    derived["definitions"]["class_object"]["required"] = ["value", "name"]
    derived["definitions"]["class_object"]["properties"]["name"]["pattern"] = "^[0-9A-Za-z_-]+$"
    return DocumentValidator(stac_schemas, {CLASSIFICATION.format("2.0.0"): derived})


def write_output(root: Path, documents: dict[str, dict[str, Any]]) -> Path:
    for path, document in documents.items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(canonical_json(document))
    return root / "catalog.json"


def output_documents(versions: int = 2) -> dict[str, dict[str, Any]]:
    """Catalog, collection, model and one tile in several versions, and another tile in one."""
    items = {key(version).path: item(tile_record(version)) for version in range(1, versions + 1)}
    for version in range(1, versions):
        path = key(version).path
        items[path] = supersede(items[path], items[key(version + 1).path], items[key(versions).path])
    neighbour = key(tile="epsg32633-10m-e0001-s0001")
    items[neighbour.path] = item(tile_record(key=neighbour, geobox=GEOBOX.translate_pix(400, 0)))
    entries = [ItemEntry.of(path, document) for path, document in items.items()]
    return {
        "catalog.json": catalog("maps", "Maps", "Published by spexmap.", {"styria": "Land cover of Styria"}),
        collection_path("styria"): collection(series_record(), entries),
        model_path("styria", "spex-small"): model_item("styria", model_record()),
        **items,
    }


def hrefs_of(document: dict[str, Any]) -> list[tuple[str, str]]:
    links = [(entry["rel"], entry["href"]) for entry in document["links"]]
    return links + [("asset", asset["href"]) for asset in document.get("assets", {}).values()]


def test_every_document_is_valid_against_core_and_every_extension(validator: DocumentValidator) -> None:
    for path, document in output_documents(3).items():
        read_back = json.loads(canonical_json(document))
        assert validator.problems(read_back) == [], path
        assert validator.unchecked(read_back) == []


def test_validator_sees_what_is_wrong(validator: DocumentValidator) -> None:
    document = item(tile_record())
    document["properties"]["proj:shape"] = ["wide"]
    document["assets"]["landcover"]["classification:classes"][1]["name"] = "two words"
    del document["properties"]["renders"]
    assert len(validator.problems(json.loads(canonical_json(document)))) == 3


def test_pystac_reads_items_with_their_extensions(tmp_path: Path) -> None:
    catalog_path = write_output(tmp_path, output_documents())
    tile = pystac.Item.from_file(str(catalog_path.parent / key(2).path))
    assert tile.ext.proj.code == "EPSG:32633"
    assert tile.ext.proj.shape == [512, 400]
    assert tile.ext.proj.transform[:6] == [10, 0, 500000, 0, -10, 5200000]
    landcover = tile.assets["landcover"]
    assert [(entry.value, entry.name, entry.title) for entry in landcover.ext.classification.classes] == [
        (0, "no-data", "No data"),
        (1, "vegetation", "Vegetation"),
        (2, "water", "Water bodies"),
        (254, "other", "Other"),
    ]
    assert landcover.ext.file.size == 1002
    assert landcover.ext.file.checksum == "1220" + "cd" * 32
    assert landcover.ext.raster.bands[0].nodata == 0
    assert tile.get_datetime() is None
    assert rfc3339(tile.common_metadata.end_datetime) == "2023-08-20T23:59:59Z"


def test_pystac_client_walks_the_catalog_and_meets_only_current_maps(tmp_path: Path) -> None:
    client = Client.open(str(write_output(tmp_path, output_documents(3))))
    walked = list(client.get_items(recursive=True))
    assert sorted(entry.id for entry in walked) == sorted([key(3).id, key(tile="epsg32633-10m-e0001-s0001").id])
    assert all(set(entry.assets) == {"landcover", "confidence", "source", "quality", "thumbnail", "explanation"} for entry in walked)
    assert {child.id for child in client.get_collections()} == {"styria"}


def test_nothing_inside_the_output_is_absolute_and_every_document_linked_exists(tmp_path: Path) -> None:
    documents = output_documents(3)
    write_output(tmp_path, documents)
    for path, document in documents.items():
        for relation, href in hrefs_of(document):
            if relation == "derived_from" or "models.example" in href:
                continue
            assert "://" not in href and not href.startswith("/")
            if relation != "asset":
                assert (tmp_path / path).parent.joinpath(href).resolve().is_file(), (path, relation, href)


def test_layout_is_the_contract() -> None:
    assert key(2).path == ("styria/2023-08-10_2023-08-20/epsg32633-10m-e0000-s0001/v2/styria_epsg32633-10m-e0000-s0001_2023-08-10_2023-08-20_v2.json")
    assert key(2).file_name("thumbnail") == "styria_epsg32633-10m-e0000-s0001_2023-08-10_2023-08-20_v2_preview.png"


def test_no_signature_reaches_a_document() -> None:
    for document in output_documents().values():
        assert SECRET.encode() not in canonical_json(document)
    derived = {entry["title"]: entry["href"] for entry in item(tile_record())["links"] if entry["rel"] == "derived_from"}
    assert derived == {
        "S2A_33TWM_20230813": "https://store.example/items/S2A_33TWM_20230813.json",
        "S2B_33TWM_20230818": "https://store.example/items/S2B_33TWM_20230818.json?collection=s2",
    }


@pytest.mark.parametrize(
    ("href", "expected"),
    [
        ("https://user:pass@a.example/i.json", "https://a.example/i.json"),
        ("https://b.example/i?X-Amz-Signature=1&X-Amz-Date=2", "https://b.example/i"),
        ("https://b.example/i?token=abc", "https://b.example/i"),
        ("s3://bucket/i.json", "s3://bucket/i.json"),
        ("/data/items/i.json", "/data/items/i.json"),
        ("https://c.example/i?select=a", "https://c.example/i?select=a"),
    ],
)
def test_unsigned_keeps_the_address_and_drops_the_secret(href: str, expected: str) -> None:
    assert unsigned(href) == expected


def test_scene_table_is_what_the_source_raster_points_into() -> None:
    rows = item(tile_record())["properties"]["spexmap:scenes"]
    assert [(row["rank"], row["id"]) for row in rows] == [(1, "S2A_33TWM_20230813"), (2, "S2B_33TWM_20230818"), (3, "S2B_33TWL_20230810")]
    assert rows[0]["datetime"] == "2023-08-13T10:08:02.123Z"
    assert "900" in rows[0]["calibration"]


def test_scene_left_out_is_named_with_its_reason() -> None:
    assert item(tile_record())["properties"]["spexmap:scenes_left_out"] == [{"id": "S2A_33TWL_20230810", "reason": "nir: read failed after 3 tries"}]


def test_fields_that_hold_one_name_are_left_out_where_scenes_differ() -> None:
    properties = item(tile_record())["properties"]
    assert properties["constellation"] == "sentinel-2"
    assert properties["instruments"] == ["msi"]
    assert "platform" not in properties


def test_supersede_retires_the_old_item_and_chains_versions() -> None:
    documents = output_documents(3)
    links = {version: {entry["rel"]: entry["href"] for entry in documents[key(version).path]["links"]} for version in (1, 2, 3)}
    assert documents[key(1).path]["properties"]["deprecated"] is True
    assert documents[key(3).path]["properties"]["deprecated"] is False
    assert links[1]["successor-version"] == f"../v2/{key(2).id}.json"
    assert links[1]["latest-version"] == links[2]["latest-version"] == f"../v3/{key(3).id}.json"
    assert links[3]["predecessor-version"] == f"../v2/{key(2).id}.json"
    assert "successor-version" not in links[3]


def test_supersede_twice_is_supersede_once() -> None:
    first, second = item(tile_record(1)), item(tile_record(2))
    once = supersede(first, second)
    assert canonical_json(supersede(once, second)) == canonical_json(once)
    assert first["properties"]["deprecated"] is False


def test_crs_without_a_code_is_written_out(validator: DocumentValidator) -> None:
    custom = GeoBox((10, 10), Affine(10, 0, 0, 0, -10, 0), CRS("+proj=laea +lat_0=47 +lon_0=15 +datum=WGS84"))
    document = item(tile_record(geobox=custom))
    assert document["properties"]["proj:code"] is None
    assert "Lambert Azimuthal" in document["properties"]["proj:wkt2"]
    assert validator.problems(json.loads(canonical_json(document))) == []


def test_ground_sample_distance_is_in_metres() -> None:
    degrees = GeoBox((10, 10), Affine(0.001, 0, 14, 0, -0.001, 47), CRS("EPSG:4326"))
    feet = GeoBox((10, 10), Affine(100, 0, 2e6, 0, -100, 7e5), CRS("EPSG:2263"))
    assert item(tile_record())["properties"]["gsd"] == 10
    assert item(tile_record(geobox=degrees))["properties"]["gsd"] == pytest.approx(111.319)
    assert item(tile_record(geobox=feet))["properties"]["gsd"] == pytest.approx(30.480061)


def test_same_records_same_bytes_in_any_order() -> None:
    record = tile_record()
    shuffled = replace(
        record,
        files=dict(reversed(record.files.items())),
        class_areas=dict(reversed(record.class_areas.items())),
        left_out=record.left_out * 2,
    )
    assert canonical_json(item(shuffled)) == canonical_json(item(record))
    entries = [
        ItemEntry(f"styria/p/t{number}/v1/i.json", (number, 0, number + 1, 1), "2023-01-01T00:00:00Z", "2023-01-31T23:59:59Z") for number in range(9)
    ]
    mixed = random.Random(1).sample(entries, len(entries))
    assert canonical_json(collection(series_record(), mixed)) == canonical_json(collection(series_record(), entries))


def test_collection_covers_its_items_in_space_and_time() -> None:
    entries = [
        ItemEntry("styria/a/t/v1/i.json", (14.0, 46.0, 15.0, 47.0), "2023-08-01T00:00:00Z", "2023-08-31T23:59:59Z", crs="EPSG:32633"),
        ItemEntry("styria/b/t/v1/i.json", (15.0, 46.5, 16.0, 48.0), "2023-09-01T00:00:00Z", "2023-09-30T23:59:59Z", crs="EPSG:32633"),
        ItemEntry("styria/c/t/v1/i.json", (100.0, 0.0, 101.0, 1.0), "2001-09-01T00:00:00Z", "2001-09-30T23:59:59Z", deprecated=True),
    ]
    document = collection(series_record(), entries)
    assert document["extent"]["spatial"]["bbox"] == [[14.0, 46.0, 16.0, 48.0]]
    assert document["extent"]["temporal"]["interval"] == [["2023-08-01T00:00:00Z", "2023-09-30T23:59:59Z"]]
    assert document["summaries"]["proj:code"] == ["EPSG:32633"]
    assert document["spexmap:series"]["composite"] == "least-cloudy"


def test_collection_needs_an_item() -> None:
    with pytest.raises(ValueError, match="no item"):
        collection(series_record(), [])


def test_footprint_follows_the_grid_and_winds_counter_clockwise() -> None:
    geometry = shape(item(tile_record())["geometry"])
    assert geometry.exterior.is_ccw
    assert geometry.bounds == pytest.approx(footprint_of(GEOBOX).bounds, abs=1e-6)
    assert len(geometry.exterior.coords) == 65


def test_footprint_across_the_antimeridian_is_split() -> None:
    fiji = GeoBox((2000, 2000), Affine(100, 0, 700000, 0, -100, 8100000), CRS("EPSG:32760"))
    footprint = footprint_of(fiji)
    west, south, east, north = bounds_of(footprint)
    assert footprint.geom_type == "MultiPolygon"
    assert west == pytest.approx(178.87, abs=0.1) and east == pytest.approx(-179.2, abs=0.1)
    assert south < north < 0
    assert item(tile_record(geobox=fiji))["bbox"][0] > item(tile_record(geobox=fiji))["bbox"][2]
    assert footprint.area < 5


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([(1, 2, 3, 4), (-5, 0, 2, 1)], (-5, 0, 3, 4)),
        ([(179, 0, 180, 1), (-180, 0, -179, 1)], (179, 0, -179, 1)),
        ([(179, 0, -179, 1), (170, 0, 175, 3)], (170, 0, -179, 3)),
        ([(-180, -90, 180, 90)], (-180, -90, 180, 90)),
        ([(178, 0, -178, 1), (-170, 0, -165, 1)], (178, 0, -165, 1)),
    ],
)
def test_union_of_boxes_crosses_the_antimeridian_only_where_they_do(boxes: list[Any], expected: Any) -> None:
    assert union_of(boxes) == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e300, 1e300) | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=12,
)


@given(st.dictionaries(st.text(), json_values))
def test_canonical_json_is_stable(document: dict[str, Any]) -> None:
    written = canonical_json(document)
    assert canonical_json(json.loads(written)) == written
    assert canonical_json(dict(reversed(document.items()))) == written
    assert written.endswith(b"}\n") and not written.endswith(b"\n\n")


def test_canonical_json_sorts_links_and_refuses_what_json_cannot_hold() -> None:
    links = [{"rel": "b", "href": "x"}, {"rel": "a", "href": "y"}, {"rel": "a", "href": "x"}]
    assert canonical_json({"links": links}) == canonical_json({"links": links[::-1]})
    assert b"-0.0" not in canonical_json({"zero": -0.0})
    with pytest.raises(ValueError):
        canonical_json({"mean": float("nan")})


def test_colors_are_six_hexadecimal_digits() -> None:
    assert rgba("#1b7f3b") == (0x1B, 0x7F, 0x3B, 255)
    for wrong in ("green", "#fff", "#12345g", "1b7f3b0"):
        with pytest.raises(ValueError):
            rgba(wrong)


def test_model_item_names_bands_classes_and_weights() -> None:
    document = model_item("styria", model_record())
    assert document["properties"]["mlm:input"][0]["bands"] == ["blue", "green", "red", "nir"]
    assert [entry["value"] for entry in document["properties"]["mlm:output"][0]["classification:classes"]] == [entry.code for entry in CLASSES]
    assert document["assets"]["model.safetensors"]["roles"] == ["mlm:model"]
    assert "collection" not in document


def test_dates_sort_as_text() -> None:
    days = [date(2023, 9, 1), date(2023, 10, 1), date(2022, 12, 31)]
    periods = [ItemKey("s", "t", day, day, 1).period for day in days]
    assert sorted(periods) == [ItemKey("s", "t", day, day, 1).period for day in sorted(days)]
