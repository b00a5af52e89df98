"""If these fail, an analyst who asks about a place gets another place's answer, or a map's text says what its rasters do not show."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from pyproj import Transformer

from pipeline import cli
from pipeline.areas import PixelAreas
from pipeline.errors import JobError
from pipeline.explain import NoDataAtPlace, NoSuchPlace, PlaceExplanation, explain_place, parse_place
from pipeline.explanation_problems import explanation_problems
from pipeline.explanations import TileStatistics, count_block, count_borders, explanation_json
from pipeline.grid import Grid, PixelBox
from pipeline.mosaic import make_rasters, sha256_of
from pipeline.series import Series
from pipeline.validate import validate_output
from pipeline.vrt import VrtTile, landcover_vrt, vrt_path
from stac.canonical import canonical_json
from stac.geometry import footprint_of
from stac.modelcard import ModelFile, ModelRecord, model_item
from stac.publish import catalog, collection, collection_path, item, model_path
from stac.records import ItemEntry, ItemKey, MapClass, ModelReference, PublishedFile, SeriesRecord, TileRecord
from stac.scenes import Scene

CLASSES = (
    MapClass(1, "vegetation", "Vegetation", "#1b7f3b"),
    MapClass(2, "water", "Water", "#2b6cb0"),
    MapClass(3, "bare", "Bare ground", "#c2a878"),
)
MODEL = ModelReference("spex-small", "SPEX small", "ab" * 32)
CREATED = datetime(2023, 9, 1, tzinfo=UTC)
GRID = Grid("EPSG:32633", 10.0, (499980.0, 5200020.0), 512)
BANDS = ("blue", "green", "red", "nir", "swir16")
SPECTRA = {0: (0, 0, 0, 0, 0), 1: (0.03, 0.06, 0.04, 0.4, 0.2), 2: (0.05, 0.05, 0.03, 0.02, 0.01), 254: (0.1, 0.15, 0.2, 0.25, 0.3)}
SCENES = tuple(
    Scene(
        f"S2_{day}",
        "s2",
        "sentinel-2",
        datetime(2023, 8, day, 10, tzinfo=UTC),
        footprint_of(GRID.geobox(PixelBox(0, 0, 512, 1024))),
        {},
        None,
        cloud_cover=float(day),
    )
    for day in (13, 18)
)
BOXES = {"epsg32633-10m-e0000-s0001": PixelBox(40, 30, 500, 512), "epsg32633-10m-e0001-s0001": PixelBox(40, 512, 500, 700)}
PLACES = {"land": (100, 60), "lake": (300, 400), "other": (450, 100), "shade": (41, 505), "hole": (41, 511), "gap": (42, 511), "outside": (43, 511)}


def planes_of(box: PixelBox, lake: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Planes and harmonised numbers: plants, a lake, a corner that is no class, and each reason for no data."""
    y, x = np.mgrid[box.top : box.bottom, box.left : box.right]
    landcover = np.select([np.hypot(y - 300, x - 400) < lake, (y > 400) & (x < 200)], [2, 254], 1).astype(np.uint8)
    quality = (1 + x % 3).astype(np.uint8)
    quality[(y == 41) & (x == 505)] = 0
    for row, code in ((41, 253), (42, 252), (43, 251)):
        landcover[(y == row) & (x == 511)] = 0
        quality[(y == row) & (x == 511)] = code
    empty = landcover == 0
    planes = {
        "landcover": landcover,
        "confidence": np.where(empty, 255, 20 + (x * 7 + y * 3) % 81).astype(np.uint8),
        "source": np.where(empty, 0, np.where(x < 256, 1, 2)).astype(np.uint16),
        "quality": quality,
    }
    numbers = np.zeros((len(BANDS), *box.shape), np.uint16)
    for code, spectrum in SPECTRA.items():
        numbers[:, landcover == code] = np.rint((np.array(spectrum)[:, None] + 0.1) * 1e4) if code else 0
    return planes, numbers


def publish(root: Path, tile: str, period: tuple[date, date], lake: int, explain: bool = True) -> tuple[str, dict[str, Any]]:
    key, box = ItemKey("styria", tile, *period, 1), BOXES[tile]
    planes, numbers = planes_of(box, lake)
    rasters = make_rasters([(box, planes)], box, GRID, CLASSES, root / key.folder, key.id)
    statistics = TileStatistics()
    for cell in box.lattice(256):
        part = cell.intersect(box)
        cut = part.within(box)
        statistics.add(count_block({name: plane[cut] for name, plane in planes.items()}, numbers[(slice(None), *cut)], BANDS, part, PixelAreas(GRID)))
    count_borders(statistics, lambda part: planes["landcover"][part.within(box)], box)
    files = dict(rasters.published)
    if explain:
        path = root / key.folder / key.file_name("explanation")
        path.write_bytes(explanation_json(key.id, statistics, CLASSES))
        files["explanation"] = PublishedFile(path.name, path.stat().st_size, sha256_of(path))
    geobox, areas = GRID.geobox(box), statistics.class_areas(CLASSES)
    software, made = {"spexmap": "0.1.0"}, f"{lake:064x}"
    record = TileRecord(key, geobox, footprint_of(geobox), files, CLASSES, SCENES, (), areas, MODEL, made, {}, CREATED, "CC-BY-4.0", software)
    return key.path, item(record)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiles in July, one of them again in August, where the lake is larger; the second tile has no explanation."""
    root = tmp_path_factory.mktemp("published")
    first, second = BOXES
    july, august = (date(2023, 7, 1), date(2023, 7, 31)), (date(2023, 8, 1), date(2023, 8, 31))
    items = dict([publish(root, first, july, 20), publish(root, first, august, 100), publish(root, second, july, 20, explain=False)])
    series = Series("styria", GRID, (), MODEL.fingerprint, "least-cloudy", 60.0)
    record = SeriesRecord("styria", "Styria", "Land cover.", "CC-BY-4.0", CLASSES, MODEL, software={"spexmap": "0.1.0"}, series=series.to_dict())
    weights = ModelFile("model.safetensors", "https://models.example/model.safetensors", 5, "cd" * 32)
    documents = {
        "catalog.json": catalog("maps", "Maps", "Maps.", {"styria": "Styria"}),
        collection_path("styria"): collection(record, [ItemEntry.of(path, document) for path, document in items.items()]),
        model_path("styria", MODEL.id): model_item("styria", ModelRecord(MODEL, "SPEX", BANDS, 3, (weights,), CLASSES, CREATED)),
        **items,
    }
    for path, document in documents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(canonical_json(document))
    for period, tiles in ((july, (first, second)), (august, (first,))):
        keys = [ItemKey("styria", tile, *period, 1) for tile in tiles]
        vrt = landcover_vrt([VrtTile(f"{k.folder}/{k.file_name('landcover')}", BOXES[k.tile]) for k in keys], GRID, CLASSES, keys[0].period_folder)
        (root / vrt_path(keys[0].period_folder)).write_bytes(vrt)
    return root


def degrees(place: str | tuple[int, int]) -> tuple[float, float]:
    """Longitude and latitude of the centre of a global pixel (row, column)."""
    row, column = PLACES[place] if isinstance(place, str) else place
    x, y = GRID.transform @ (column + 0.5, row + 0.5)
    return Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True).transform(x, y)


def ask(output: Path | str, place: str | tuple[int, int]) -> PlaceExplanation:
    (found,) = explain_place(str(output), *degrees(place))
    return found


def test_a_place_is_told_with_what_its_own_pixel_holds(published: Path) -> None:
    lake = ask(published, "lake")
    assert (lake.code, lake.title, lake.series, lake.version) == (2, "Water", "styria", 1)
    assert lake.period == "2023-08-01/2023-08-31"
    assert lake.confidence == 20 + (400 * 7 + 300 * 3) % 81 and lake.clear_observations == 1 + 400 % 3
    assert lake.scene is not None and (lake.scene.id, lake.scene.datetime[:10], lake.scene.cloud_cover) == ("S2_18", "2023-08-18", 18.0)
    assert lake.text.startswith("Water covers") and "100 % of it has MNDWI above 0 (mean 0.67), consistent with water." in lake.text
    assert (published / lake.item).is_file()
    land = ask(published, "land")
    assert land.title == "Vegetation" and land.scene is not None and land.scene.id == "S2_13"


def test_every_pixel_answers_for_itself(published: Path) -> None:
    for row, column in ((40, 30), (40, 510), (499, 30), (499, 511), (255, 256), (256, 255)):
        assert ask(published, (row, column)).confidence == 20 + (column * 7 + row * 3) % 81
    assert ask(published, (100, 600)).period == "2023-07-01/2023-07-31"  # the newest period that has this tile


def test_no_class_and_no_clear_observation_are_said(published: Path) -> None:
    other = ask(published, "other")
    assert other.title == "Other" and other.text.startswith("Scene of ")
    assert ask(published, "shade").clear_observations == 0


def test_a_map_without_explanations_still_answers(published: Path) -> None:
    assert ask(published, (100, 600)).text == "" and ask(published, (100, 600)).title == "Vegetation"


def test_an_output_on_another_file_system_answers_alike(published: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(published), "/explained", recursive=True)
    try:
        assert ask("memory://explained", "lake") == ask(published, "lake")
    finally:
        memory.rm("/explained", recursive=True)


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("hole", "always cloud or shadow; map a longer period, or raise source.max_cloud_cover"),
        ("gap", "never observed; map a longer period, or a catalog with scenes of this place"),
        ("outside", "outside the region; ask for a place inside the region"),
    ],
)
def test_no_data_says_why_and_what_to_do(published: Path, place: str, why: str) -> None:
    with pytest.raises(NoDataAtPlace, match=why):
        ask(published, place)


@pytest.mark.parametrize("pixel", [(39, 100), (100, 29), (500, 100), (100, 700), (5000, 100)])
def test_a_place_beside_the_map_is_refused_with_what_the_map_covers(published: Path, pixel: tuple[int, int]) -> None:
    with pytest.raises(NoSuchPlace, match=r"no tile covers .* styria covers 15\.00"):
        ask(published, pixel)


@pytest.mark.parametrize("text", ["", "15", "15,47,3", "a,b", "15;47", "nan,47", "15,91", "181,0", "inf,0"])
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(NoSuchPlace):
        parse_place(text)


def test_what_is_no_output_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"no catalog\.json"):
        explain_place(str(tmp_path), 15, 47)


def test_a_raster_that_is_gone_is_named(published: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    for path in broken.rglob("*_confidence.tif"):
        path.unlink()
    with pytest.raises(JobError, match=r"confidence\.tif cannot be read.*spexmap validate"):
        ask(broken, "lake")


def item_path(tile: str = next(iter(BOXES))) -> str:
    return ItemKey("styria", tile, date(2023, 8, 1), date(2023, 8, 31), 1).path


DEEP = b"[" * 200_000
DAMAGES = [("catalog.json", content) for content in (b"", b"{", b"5", b"null", b"{}", DEEP, b'{"links": [5]}', b'{"links": [{"rel": "child"}]}')]
DAMAGES += [(collection_path("styria"), content) for content in (b"", b"{}", b'{"id": "styria", "extent": null, "links": []}', None)]
DAMAGES += [(item_path(), content) for content in (b"", b"{}", b"[]", b'"\\ud800"', DEEP, None)]
DAMAGES += [(item_path().replace(".json", "_explanation.json"), content) for content in (b"", b"{}", b'{"classes": null}', None)]


@pytest.mark.parametrize(("path", "content"), DAMAGES)
def test_a_document_that_is_damaged_or_gone_is_named(published: Path, tmp_path: Path, path: str, content: bytes | None) -> None:
    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    if content is None:
        (broken / path).unlink()
    else:
        (broken / path).write_bytes(content)
    doomed = "it" if content is not None else ""
    if path.endswith("_explanation.json"):
        doomed = f".*{item_path()}"  # a run makes it again with its tile, which counts as made while it has its item
    advice = f"{f'delete {doomed} and ' if doomed else ''}run the job again; spexmap validate .* lists what else is wrong"
    with pytest.raises(JobError, match=f"{path} is (damaged .*|not there); {advice}"):
        ask(broken, "lake")


@pytest.mark.parametrize("scenes", [[], [{"rank": 7}], None, [{"rank": 2, "id": "S", "datetime": "", "cloud_cover": "none"}]])
def test_an_item_that_lacks_the_scene_of_a_pixel_is_named(published: Path, tmp_path: Path, scenes: Any) -> None:
    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    document = json.loads((broken / item_path()).read_bytes())
    document["properties"]["spexmap:scenes"] = scenes
    (broken / item_path()).write_bytes(canonical_json(document))
    with pytest.raises(JobError, match=r"_v1\.json is damaged"):
        ask(broken, "lake")


@pytest.mark.parametrize("href", ["../../../../../../etc/passwd", "/etc/passwd", "https://elsewhere.example/x.tif"])
def test_what_leads_out_of_the_output_is_not_opened(published: Path, tmp_path: Path, href: str) -> None:
    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    document = json.loads((broken / item_path()).read_bytes())
    document["assets"]["confidence"]["href"] = href
    (broken / item_path()).write_bytes(canonical_json(document))
    with pytest.raises(JobError, match="which leads out of the output and is not read"):
        ask(broken, "lake")


@pytest.mark.parametrize(
    "grid", [{"crs": "nonsense"}, {"resolution": 0}, {"resolution": "10"}, {"origin": []}, {"origin": [1e999, 0]}, {"tile": 0}, {"tile": None}]
)
def test_a_collection_whose_grid_is_none_is_named(published: Path, tmp_path: Path, grid: dict[str, Any]) -> None:
    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    path = broken / collection_path("styria")
    document = json.loads(path.read_bytes())
    document["spexmap:series"]["grid"].update(grid)
    path.write_text(json.dumps(document))
    with pytest.raises(JobError, match=r"styria/collection\.json is damaged"):
        ask(broken, "lake")


def test_a_folder_in_the_place_of_the_catalog_is_named(published: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(published, tmp_path / "broken"))
    (broken / "catalog.json").unlink()
    (broken / "catalog.json").mkdir()
    with pytest.raises(JobError, match=r"catalog\.json is damaged \(IsADirectoryError"):
        ask(broken, "lake")


def test_a_link_that_is_no_tiles_is_passed_over(published: Path, tmp_path: Path) -> None:
    odd = Path(shutil.copytree(published, tmp_path / "odd"))
    path = odd / collection_path("styria")
    document = json.loads(path.read_bytes())
    document["links"].append({"rel": "item", "href": "./x.json"})
    path.write_bytes(canonical_json(document))
    assert ask(odd, "lake") == ask(published, "lake")


@pytest.fixture
def spexmap(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            cli.app(list(arguments), prog_name="spexmap")
        shown = capsys.readouterr()
        return int(leaving.value.code or 0), shown.out, shown.err

    return run


def test_the_command_prints_words_or_json(published: Path, spexmap: Callable[..., tuple[int, str, str]]) -> None:
    at = "{},{}".format(*degrees("lake"))
    status, out, _ = spexmap("explain", str(published), "--at", at)
    assert status == 0
    assert "Water, confidence" in out and "S2_18 of 2023-08-18T10:00:00Z, 18 % cloud" in out and "2 clear observations" in out
    status, out, _ = spexmap("explain", str(published), "--at", at, "--json")
    (place,) = json.loads(out)
    assert (status, place["title"], place["scene"]["id"], place["version"]) == (0, "Water", "S2_18", 1)
    status, out, err = spexmap("explain", str(published), "--at", "-111.5,57")
    assert (status, out) == (2, "") and err.startswith("spexmap: no tile covers -111.5,57")


def problems_of(root: Path, change: Callable[[dict[str, Any]], None]) -> Iterator[str]:
    """Return what the checker says of the lake's tile in August after a change of its explanation."""
    key = ItemKey("styria", next(iter(BOXES)), date(2023, 8, 1), date(2023, 8, 31), 1)
    paths = {asset: str(root / key.folder / key.file_name(asset)) for asset in ("landcover", "confidence", "quality", "explanation")}
    document = json.loads(Path(paths["explanation"]).read_bytes())
    change(document)
    Path(paths["explanation"]).write_bytes(canonical_json(document))
    series = json.loads((root / collection_path("styria")).read_bytes())["spexmap:series"]
    return explanation_problems(paths, json.loads((root / key.path).read_bytes()), series)


def rewrite(document: dict[str, Any], old: str, new: str) -> None:
    """Change one sentence wherever the document has it."""
    assert old in document["text"]
    document["text"] = document["text"].replace(old, new)
    document["scene"] = document["scene"].replace(old, new)
    for row in document["classes"]:
        row["text"] = row.get("text", "").replace(old, new)


def test_a_whole_output_has_explanations_that_hold(published: Path) -> None:
    assert validate_output(published, deep=True).problems == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: rewrite(d, "Water covers", "Bare ground covers"), "class: speaks of Bare ground"),
        (lambda d: rewrite(d, "has MNDWI above 0 (mean 0.67)", "has MNDWI below 0 (mean 0.67)"), "direction: "),
        (lambda d: rewrite(d, "Bare ground was not found", "Bare ground was found"), "negation: "),
        (lambda d: rewrite(d, " ha with a confidence above 70 %", " % with a confidence above 70 %"), "unit: "),
        (lambda d: rewrite(d, "always cloud or shadow", "read failure"), "class: lists read failure"),
        (lambda d: d["classes"][1].update(pixels=d["classes"][1]["pixels"] + 1), "says pixels"),
        (lambda d: d["classes"][0].update(area_ha=d["classes"][0]["area_ha"] + 0.01), "says area_ha"),
        (lambda d: d.update(text=d["text"] + " Trust me."), "has a text that is not that of its classes"),
    ],
)
def test_an_explanation_that_contradicts_its_rasters_is_found(
    published: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    copy = Path(shutil.copytree(published, tmp_path / "copy"))
    assert list(problems_of(copy, lambda document: None)) == []
    assert any(problem.startswith(reason) for problem in problems_of(copy, change))
    found = [problem.reason for problem in validate_output(copy, deep=True).problems if problem.path.endswith("explanation.json")]
    assert any(each.startswith(reason) for each in found)
