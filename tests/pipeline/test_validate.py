"""If these fail, a broken output passes as whole, or a whole one is called broken."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from pipeline.areas import PixelAreas
from pipeline.explanations import TileStatistics, count_block, count_borders, explanation_json
from pipeline.grid import Grid, PixelBox
from pipeline.mosaic import make_rasters, sha256_of
from pipeline.storage import Storage
from pipeline.validate import validate_output
from pipeline.vrt import VrtTile, landcover_vrt, vrt_path
from stac.canonical import canonical_json
from stac.geometry import footprint_of
from stac.modelcard import ModelFile, ModelRecord, model_item
from stac.publish import catalog, collection, collection_path, item, model_path, supersede
from stac.records import ItemEntry, ItemKey, MapClass, ModelReference, PublishedFile, SeriesRecord, TileRecord
from stac.scenes import Scene

CLASSES = (MapClass(1, "vegetation", "Vegetation", "#1b7f3b"), MapClass(2, "water", "Water", "#2b6cb0"))
MODEL = ModelReference("spex-small", "SPEX small", "ab" * 32)
CREATED = datetime(2023, 9, 1, tzinfo=UTC)
GRID = Grid("EPSG:32633", 10.0, (499980.0, 5200020.0), 1024)
SCENE = Scene("S2A_33TWM", "s2", "sentinel-2", datetime(2023, 8, 13, tzinfo=UTC), footprint_of(GRID.geobox(PixelBox(0, 0, 1024, 1024))), {}, None)
BOXES = {"one": PixelBox(0, 0, 700, 600), "two": PixelBox(0, 600, 700, 900)}
SERIES = SeriesRecord("styria", "Styria", "Land cover.", "CC-BY-4.0", CLASSES, MODEL, software={"spexmap": "0.1.0"})


def key_of(tile: str, version: int) -> ItemKey:
    return ItemKey("styria", tile, date(2023, 8, 10), date(2023, 8, 20), version)


def planes_of(box: PixelBox, version: int) -> dict[str, np.ndarray]:
    y, x = np.mgrid[box.top : box.bottom, box.left : box.right]
    landcover = np.where(np.hypot(y - 300, x - 500) < 100 * version, 2, 1).astype(np.uint8)
    landcover[x % 211 == 0] = 0
    empty = landcover == 0
    return {
        "landcover": landcover,
        "confidence": np.where(empty, 255, (x + y) % 101).astype(np.uint8),
        "source": np.where(empty, 0, 1).astype(np.uint16),
        "quality": np.where(empty, 252, 3).astype(np.uint8),
    }


def publish_tile(root: Path, tile: str, version: int) -> tuple[str, dict[str, Any]]:
    """Publish one version of a tile the way a run does; return where its item lies, and the item."""
    key, box = key_of(tile, version), BOXES[tile]
    planes = planes_of(box, version)
    rasters = make_rasters([(box, planes)], box, GRID, CLASSES, root / key.folder, key.id)
    statistics = TileStatistics()
    statistics.add(count_block(planes, np.full((2, *box.shape), 2000, np.uint16), ("red", "nir"), box, PixelAreas(GRID)))
    count_borders(statistics, lambda part: planes["landcover"][part.within(box)], box)
    explanation = root / key.folder / key.file_name("explanation")
    explanation.write_bytes(explanation_json(key.id, statistics, CLASSES))
    files = {**rasters.published, "explanation": PublishedFile(explanation.name, explanation.stat().st_size, sha256_of(explanation))}
    geobox = GRID.geobox(box)
    areas = statistics.class_areas(CLASSES)
    record = TileRecord(
        key,
        geobox,
        footprint_of(geobox),
        files,
        CLASSES,
        (SCENE,),
        (),
        areas,
        MODEL,
        f"{version:064x}",
        {},
        CREATED,
        "CC-BY-4.0",
        {"spexmap": "0.1.0"},
    )
    return key.path, item(record)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles, the first in two versions."""
    root = tmp_path_factory.mktemp("published")
    items = dict([publish_tile(root, "one", 1), publish_tile(root, "one", 2), publish_tile(root, "two", 1)])
    first, second = key_of("one", 1).path, key_of("one", 2).path
    items[first] = supersede(items[first], items[second])
    weights = ModelFile("model.safetensors", "https://models.example/model.safetensors", 5, "cd" * 32)
    model = ModelRecord(MODEL, "SPEX", ("red", "nir"), 3, (weights,), CLASSES, CREATED)
    documents = {
        "catalog.json": catalog("maps", "Maps", "Maps.", {"styria": "Styria"}),
        collection_path("styria"): collection(SERIES, [ItemEntry.of(path, document) for path, document in items.items()]),
        model_path("styria", MODEL.id): model_item("styria", model),
        **items,
    }
    for path, document in documents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(canonical_json(document))
    current = [key_of("one", 2), key_of("two", 1)]
    tiles = [VrtTile(f"{key.folder}/{key.file_name('landcover')}", BOXES[key.tile]) for key in current]
    (root / vrt_path(current[0].period_folder)).write_bytes(landcover_vrt(tiles, GRID, CLASSES, current[0].period_folder))
    return root


@pytest.fixture
def output(published: Path, tmp_path: Path) -> Path:
    """A copy of the output that a test may break."""
    return Path(shutil.copytree(published, tmp_path / "output"))


def file_of(output: Path, asset: str, tile: str = "one", version: int = 2) -> Path:
    key = key_of(tile, version)
    return output / key.folder / key.file_name(asset)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    document = json.loads(path.read_bytes())
    change(document)
    path.write_bytes(canonical_json(document))


def reasons(output: Path, deep: bool = False) -> str:
    return "\n".join(f"{problem.path}: {problem.reason}" for problem in validate_output(Storage(str(output)), deep).problems)


@pytest.mark.parametrize("deep", [False, True])
def test_whole_output_has_no_problem(published: Path, deep: bool) -> None:
    report = validate_output(published, deep)
    assert report.problems == ()
    assert report.ok
    assert report.files == 3 + 3 * 7 + 1


def test_output_is_valid_against_extension_schemas(published: Path, stac_schemas: Path) -> None:
    report = validate_output(published, schemas=stac_schemas)
    assert report.problems == ()
    assert report.unchecked == ("https://stac-extensions.github.io/classification/v2.0.0/schema.json",)


def test_moved_output_is_whole(output: Path) -> None:
    moved = output.rename(output.parent / "elsewhere")
    assert reasons(moved, deep=True) == ""


def test_remote_output_is_read_through_its_file_system(published: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(published), "/validated", recursive=True)
    try:
        assert validate_output("memory://validated", deep=True).problems == ()
        memory.pipe_file(f"/validated/{key_of('two', 1).folder}/{key_of('two', 1).file_name('source')}", b"II*\0")
        assert len(validate_output("memory://validated").problems) == 2
    finally:
        memory.rm("/validated", recursive=True)


@pytest.mark.parametrize("content", [b"", b"{", b"5", b"[]", b"{}", b"[" * 200_000, b'{"type": "Feature", "collection": "x", "links": [5]}'])
@pytest.mark.parametrize("path", ["catalog.json", collection_path("styria"), key_of("one", 2).path, model_path("styria", MODEL.id)])
def test_damaged_document_is_found_and_the_others_are_looked_at(output: Path, path: str, content: bytes) -> None:
    (output / path).write_bytes(content)
    file_of(output, "quality", "two", 1).unlink()
    found = reasons(output)
    assert f"{path}: is damaged" in found and "quality.tif: is not there" in found
    assert not any(words in found for words in ("does not link", "what follows it", "landcover.vrt"))


@pytest.mark.parametrize(
    ("key", "value"),
    [("assets", {"landcover": 5}), ("assets", None), ("assets", []), ("properties", None), ("properties", {}), ("properties", {"version": "two"})],
)
def test_damaged_part_of_an_item_is_found(output: Path, key: str, value: Any) -> None:
    edit(output / key_of("one", 2).path, lambda document: document.__setitem__(key, value))
    assert f"{key_of('one', 2).path}: is damaged" in reasons(output, deep=True)


@pytest.mark.parametrize(
    "link",
    [
        5,
        {"rel": "child"},
        {"rel": "child", "href": 5},
        {"rel": "derived_from", "href": "http://[x"},
        {"rel": "child", "href": "../.."},
        {"rel": "child", "href": "\ud800"},
    ],
)
def test_odd_link_of_the_catalog_costs_itself_only(output: Path, link: Any) -> None:
    document = json.loads((output / "catalog.json").read_bytes())
    document["links"].insert(0, link)
    (output / "catalog.json").write_text(json.dumps(document))
    file_of(output, "quality").unlink()
    found = reasons(output)
    assert found.encode()
    assert "catalog.json: " in found and "quality.tif: is not there" in found


def test_odd_names_of_schemas_are_listed_with_the_others(output: Path) -> None:
    edit(output / key_of("one", 2).path, lambda document: document["stac_extensions"].append(5))
    assert "5" in validate_output(output).unchecked


@pytest.mark.parametrize("href", ["../../../../../../etc/passwd", "/etc/passwd", "https://elsewhere.example/x.tif"])
def test_asset_out_of_the_output_is_named_and_not_opened(output: Path, href: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, open_raster = [], rasterio.open
    monkeypatch.setattr(rasterio, "open", lambda path, *rest, **more: (opened.append(str(path)), open_raster(path, *rest, **more))[1])
    edit(output / key_of("one", 2).path, lambda document: document["assets"]["landcover"].__setitem__("href", href))
    found = reasons(output)
    assert f"{key_of('one', 2).path}: asset landcover {href} leads out of the output" in found
    assert "landcover.vrt: lacks" not in found and opened and all(path.startswith(str(output)) for path in opened)


def test_collection_that_the_catalog_does_not_link_is_found(output: Path) -> None:
    edit(output / "catalog.json", lambda document: document.__setitem__("links", []))
    file_of(output, "quality").unlink()
    found = reasons(output)
    assert f"{collection_path('styria')}: is a collection that the catalog does not link" in found and "quality.tif: is not there" in found


@pytest.mark.parametrize(("asset", "content"), [("landcover", b""), ("explanation", b"[" * 200_000), ("explanation", b'{"classes": [{}]}')])
def test_damaged_file_of_an_item_is_named_by_its_own_path(output: Path, asset: str, content: bytes) -> None:
    grid = {"crs": GRID.crs, "resolution": GRID.resolution, "origin": GRID.origin, "tile": GRID.tile}
    edit(output / collection_path("styria"), lambda document: document.__setitem__("spexmap:series", {"grid": grid}))
    file_of(output, asset).write_bytes(content)
    assert f"{file_of(output, asset).relative_to(output)}: cannot be read" in reasons(output, deep=True)


@pytest.mark.parametrize("content", [b"", b"x", b"<?xml version='1.0' encoding='odd'?><a/>"])
def test_damaged_vrt_is_found(output: Path, content: bytes) -> None:
    (output / vrt_path(key_of("one", 1).period_folder)).write_bytes(content)
    assert "landcover.vrt: is no VRT" in reasons(output)


def test_damaged_item_that_nothing_links_is_found(output: Path) -> None:
    edit(output / collection_path("styria"), lambda document: document.__setitem__("links", []))
    (output / key_of("two", 1).path).write_bytes(b"")
    assert f"{key_of('two', 1).path}: is damaged" in reasons(output)


def test_missing_raster_is_found(output: Path) -> None:
    file_of(output, "quality").unlink()
    assert "quality.tif: is not there" in reasons(output)


def test_truncated_raster_is_found(output: Path) -> None:
    path = file_of(output, "confidence")
    path.write_bytes(path.read_bytes()[:-2000])
    assert "bytes, its item says" in reasons(output)


def test_changed_byte_is_found_only_by_reading_everything(output: Path) -> None:
    path = file_of(output, "thumbnail")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert reasons(output) == ""
    assert "preview.png: has checksum" in reasons(output, deep=True)


def test_edited_raster_is_found(output: Path) -> None:
    path = file_of(output, "landcover")
    with rasterio.open(path, "r+", IGNORE_COG_LAYOUT_BREAK="YES") as raster:
        raster.update_tags(1, CLASS_2="Lakes")
        raster.write(np.full((16, 16), 77, np.uint8), 1, window=rasterio.windows.Window(16, 16, 16, 16))
    found = reasons(output, deep=True)
    assert "cloud-optimized" in found
    assert "its item has other classes" in found
    assert "have a code that the item does not list" in found
    assert "overview 1 that are not the mode" in found


def test_raster_of_another_grid_is_found(output: Path) -> None:
    edit(output / key_of("two", 1).path, lambda document: document["properties"]["proj:transform"].__setitem__(2, 0.0))
    edit(output / key_of("two", 1).path, lambda document: document["properties"].__setitem__("proj:code", "EPSG:32632"))
    found = reasons(output)
    assert "has transform" in found and "has CRS" in found


def test_rasters_that_contradict_each_other_are_found(output: Path) -> None:
    box, key = BOXES["two"], key_of("two", 1)
    planes = planes_of(box, 1)
    planes["quality"][5, 1:6] = 253
    planes["source"][5, 7] = 2
    make_rasters([(box, planes)], box, GRID, CLASSES, output / key.folder, key.id)
    found = reasons(output, deep=True)
    assert "5 pixels have a land cover although quality says no data" in found
    assert "1 pixels name a source scene beyond the 1 of the item" in found


def test_broken_chain_of_versions_is_found(output: Path) -> None:
    edit(output / key_of("one", 1).path, lambda document: document["properties"].__setitem__("deprecated", False))
    assert "does not say what follows it" in reasons(output)


def test_item_that_no_collection_links_is_found(output: Path) -> None:
    edit(
        output / collection_path("styria"), lambda document: document.__setitem__("links", [x for x in document["links"] if "/two/" not in x["href"]])
    )
    assert f"{key_of('two', 1).path}: is an item that its collection does not link" in reasons(output)


def test_vrt_with_a_superseded_tile_is_found(output: Path) -> None:
    path = output / vrt_path(key_of("one", 1).period_folder)
    path.write_text(path.read_text().replace("v2", "v1"))
    found = reasons(output)
    assert "landcover.vrt: lacks" in found and "not current" in found


def test_absolute_and_dead_links_are_found(output: Path) -> None:
    edit(output / "catalog.json", lambda document: document["links"].append({"rel": "item", "href": "/tmp/else.json"}))
    edit(output / "catalog.json", lambda document: document["links"].append({"rel": "item", "href": "./gone.json"}))
    found = reasons(output)
    assert "cannot be moved" in found and "gone.json, which is not there" in found


def test_signed_link_is_found(output: Path) -> None:
    signed = {"rel": "derived_from", "href": "https://a.example/i.json?X-Amz-Signature=1", "title": "S2A"}
    edit(output / key_of("one", 2).path, lambda document: document["links"].append(signed))
    assert "signed link to S2A" in reasons(output)


def test_document_that_is_no_stac_is_found(output: Path) -> None:
    edit(output / key_of("two", 1).path, lambda document: document.pop("geometry"))
    (output / collection_path("styria")).write_bytes(b"{not json")
    assert f"{collection_path('styria')}: is damaged: JSONDecodeError" in reasons(output)
    (output / "catalog.json").write_bytes(b"[]")
    assert "catalog.json: is damaged: TypeError: it is list, not an object" in reasons(output)


def test_problem_order_does_not_depend_on_the_walk(output: Path) -> None:
    for tile in ("one", "two"):
        file_of(output, "source", tile, 1).unlink()
    problems = validate_output(output).problems
    assert list(problems) == sorted(problems)
    assert replace(problems[0]) == problems[0]
