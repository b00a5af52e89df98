"""If these fail, areas in hectares are wrong, explanations change with the size of blocks, or a sentence says what the map does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pyproj import Geod

from pipeline.areas import PixelAreas, hectares
from pipeline.explanations import TileStatistics, count_block, count_borders, explanation_json
from pipeline.grid import Grid, PixelBox
from stac.records import MapClass

GRID = Grid("EPSG:32633", 10.0, (300000.0, 5300040.0), 10240)
BANDS = ("blue", "green", "red", "nir", "swir16")
CLASSES = (
    MapClass(1, "vegetation", "Vegetation", "#1b7f3b"),
    MapClass(2, "water", "Water", "#2b6cb0"),
    MapClass(5, "bare", "Bare ground", "#c2a878"),
)
BOX = PixelBox(-300, 100, 600, 900)
REFLECTANCE = {0: (0, 0, 0, 0, 0), 1: (0.03, 0.06, 0.04, 0.4, 0.2), 2: (0.05, 0.05, 0.03, 0.02, 0.01), 5: (0.1, 0.15, 0.2, 0.25, 0.3)}


def block_of(box: PixelBox) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Planes and harmonised numbers that depend on the global pixel only."""
    y, x = np.mgrid[box.top : box.bottom, box.left : box.right]
    landcover = np.select([np.hypot(y, x - 500) < 90, (x // 40 + y // 60) % 3 == 0, x < 130], [2, 5, 0], 1).astype(np.uint8)
    landcover[(x == 700) & (y % 5 == 0)] = 254
    confidence = np.where(landcover == 0, 255, (x * 7 + y * 3) % 101).astype(np.uint8)
    quality = np.where(landcover == 0, 253, 1 + x % 3).astype(np.uint8)
    numbers = np.zeros((len(BANDS), *box.shape), np.uint16)
    for code, spectrum in REFLECTANCE.items():
        numbers[:, landcover == code] = np.rint((np.array(spectrum)[:, None] + 0.1) * 1e4)
    numbers[:, landcover == 0] = 0
    return {"landcover": landcover, "confidence": confidence, "quality": quality}, numbers


def statistics_of(box: PixelBox, side: int, reverse: bool = False) -> TileStatistics:
    areas, statistics = PixelAreas(GRID), TileStatistics()
    cells = [cell.intersect(box) for cell in box.lattice(side)]
    for cell in reversed(cells) if reverse else cells:
        planes, numbers = block_of(cell)
        statistics.add(json.loads(json.dumps(count_block(planes, numbers, BANDS, cell, areas))))
    count_borders(statistics, lambda part: block_of(part)[0]["landcover"], box)
    return statistics


def test_explanation_does_not_depend_on_blocks_or_their_order() -> None:
    bytes_of = {explanation_json("item", statistics_of(BOX, side, reverse), CLASSES) for side in (256, 300, 512, 2560) for reverse in (False, True)}
    assert len(bytes_of) == 1


def test_counts_are_those_of_the_map() -> None:
    statistics, planes = statistics_of(BOX, 512), block_of(BOX)[0]
    landcover, confidence = planes["landcover"], planes["confidence"]
    for code in (0, 1, 2, 5, 254):
        assert statistics.of(code).pixels == (landcover == code).sum()
    water = confidence[landcover == 2]
    assert statistics.of(2).certain_pixels == (water > 70).sum()
    assert statistics.of(2).possible_pixels == (water > 30).sum()
    assert statistics.of(2).confidence == water.sum()
    assert statistics.of(0).confidence == 0
    assert statistics.quality == {253: (landcover == 0).sum(), **{number: (planes["quality"] == number).sum() for number in (1, 2, 3)}}


def test_mean_indices_are_those_of_the_spectra() -> None:
    statistics = statistics_of(BOX, 512)
    assert statistics.of(1).mean_index("NDVI") == pytest.approx((0.4 - 0.04) / 0.44, abs=1e-3)
    assert statistics.of(2).mean_index("MNDWI") == pytest.approx((0.05 - 0.01) / 0.06, abs=1e-3)
    assert statistics.of(0).indices == {}


def test_areas_are_those_on_the_ellipsoid() -> None:
    """A UTM pixel of 100 square metres on the map is 0.998 to 1.0008 of that on the ground, depending on where it lies."""
    areas = PixelAreas(GRID)
    assert areas.of_cell(0, 0) == pytest.approx(99.983e6, rel=1e-5)
    assert areas.of_cell(0, 20000 // 256 * 256) == pytest.approx(100.080e6, rel=1e-5)


@pytest.mark.parametrize(
    ("crs", "resolution", "origin"), [("EPSG:6933", 100.0, (1_000_000.0, 5_000_000.0)), ("EPSG:3035", 20.0, (4_321_000.0, 3_210_000.0))]
)
def test_equal_area_grids_have_equal_pixels(crs: str, resolution: float, origin: tuple[float, float]) -> None:
    areas = PixelAreas(Grid(crs, resolution, origin, 10240))
    assert areas.of_cell(0, 0) == pytest.approx(resolution**2 * 1e6, rel=1e-6)
    assert areas.of_cell(-5120, 7680) == pytest.approx(resolution**2 * 1e6, rel=1e-6)


def test_pixels_in_degrees_shrink_towards_the_pole() -> None:
    areas = PixelAreas(Grid("EPSG:4326", 0.001, (14.0, 47.0), 10240))
    longitude, latitude = [14.0, 14.256, 14.256, 14.0], [46.744, 46.744, 47.0, 47.0]
    expected = abs(Geod(ellps="WGS84").polygon_area_perimeter(longitude, latitude)[0]) / 256**2
    assert areas.of_cell(0, 0) == pytest.approx(expected * 1e6, rel=1e-4)
    assert areas.of_cell(-25600, 0) < areas.of_cell(0, 0)


def test_class_areas_sum_to_the_tile() -> None:
    statistics = statistics_of(BOX, 512)
    areas = statistics.class_areas(CLASSES)
    assert set(areas) == {"vegetation", "water", "bare", "other", "no-data"}
    assert sum(areas.values()) == pytest.approx(900 * 800 * 100 / 1e4, rel=1e-3)
    assert areas["no-data"] + hectares(statistics.mapped_area) == pytest.approx(sum(areas.values()))


def test_document_says_class_by_class_what_was_counted() -> None:
    statistics = statistics_of(BOX, 512)
    document = json.loads(explanation_json("item-1", statistics, CLASSES))
    assert document["item"] == "item-1"
    rows = {row["name"]: row for row in document["classes"]}
    assert list(rows) == ["vegetation", "water", "bare", "other"]
    assert rows["water"]["area_ha"] == round(hectares(statistics.of(2).area), 4)
    assert sum(row["share_percent"] for row in rows.values()) == pytest.approx(100, abs=1e-3)
    assert sum(rows["bare"]["border_percent"].values()) == pytest.approx(100, abs=0.05)
    assert f"{rows['water']['area_ha']:,.1f} ha" in rows["water"]["text"]
    assert document["no_data"]["reasons"]["always-cloud"] == statistics.quality[253]
    assert document["text"].startswith(rows["vegetation"]["text"])


def test_evidence_is_counted_on_both_sides_and_elsewhere() -> None:
    rows = {row["name"]: row for row in json.loads(explanation_json("item", statistics_of(BOX, 512), CLASSES))["classes"]}
    water = {entry["index"]: entry for entry in rows["water"]["evidence"]}
    assert water["MNDWI"] == {
        "index": "MNDWI",
        "usual": "above",
        "limit": 0.0,
        "usual_percent": 100.0,
        "unusual_percent": 0.0,
        "elsewhere_percent": pytest.approx(0),
        "specific": True,
    }
    bare = rows["bare"]["evidence"][0]
    assert (bare["index"], bare["usual"], bare["usual_percent"]) == ("NDVI", "below", 100.0)
    assert "100 % of it has MNDWI above 0 (mean 0.67), consistent with water." in rows["water"]["text"]


def test_runner_up_is_told_where_the_planes_say_it_and_does_not_depend_on_blocks() -> None:
    def statistics(side: int) -> TileStatistics:
        areas, total = PixelAreas(GRID), TileStatistics()
        for cell in (cell.intersect(BOX) for cell in BOX.lattice(side)):
            planes, numbers = block_of(cell)
            x = np.broadcast_to(np.arange(cell.left, cell.right), cell.shape)
            second = np.where(planes["landcover"] == 1, np.where(x % 4 == 0, 2, 5), 1).astype(np.uint8)
            margin = np.where(x % 10 == 0, 19, 20).astype(np.uint8)
            total.add(json.loads(json.dumps(count_block(planes | {"runner_up": second, "margin": margin}, numbers, BANDS, cell, areas))))
        return total

    small, large = (explanation_json("item", statistics(side), CLASSES) for side in (256, 2560))
    assert small == large
    rows = {row["name"]: row for row in json.loads(small)["classes"]}
    landcover = block_of(BOX)[0]["landcover"]
    assert rows["water"]["runner_up"]["name"] == "vegetation" and rows["water"]["runner_up"]["percent"] == 100
    columns = np.broadcast_to(np.arange(BOX.left, BOX.right), BOX.shape)[landcover == 1]
    assert rows["vegetation"]["runner_up"] == {
        "name": "bare",
        "percent": pytest.approx(100 * (columns % 4 != 0).mean(), abs=1e-3),
        "close_percent": pytest.approx(100 * (columns % 10 == 0).mean(), abs=1e-3),
    }
    assert "Second is bare ground on" in rows["vegetation"]["text"]


@pytest.mark.parametrize(
    ("name", "instruction", "told"),
    [
        ("lakes", "Segment the water.", "has MNDWI above 0"),
        ("water_or_bare", "", "has NDVI below 0.25"),
        ("solar", "Segment the solar panels.", "No spectral index"),
    ],
)
def test_evidence_follows_what_was_asked_not_what_it_is_called(name: str, instruction: str, told: str) -> None:
    renamed = (CLASSES[0], MapClass(2, name, name.capitalize(), "#2b6cb0", instruction), CLASSES[2])
    assert told in json.loads(explanation_json("item", statistics_of(BOX, 512), renamed))["classes"][1]["text"]


def test_the_scene_is_told_with_what_is_empty_and_why() -> None:
    statistics = statistics_of(BOX, 512)
    scene = json.loads(explanation_json("item", statistics, CLASSES))["scene"]
    assert scene.startswith(f"Scene of {hectares(statistics.mapped_area):,.1f} ha with data: 63 % vegetation, 33 % bare ground")
    assert scene.endswith("2.5 % of all 720,000 pixels have no data: 2.5 % always cloud or shadow.")


def test_class_that_does_not_occur_is_said_to_be_absent() -> None:
    absent = (*CLASSES, MapClass(9, "building", "Buildings", "#d7301f"))
    row = json.loads(explanation_json("item", statistics_of(BOX, 512), absent))["classes"][3]
    assert row["pixels"] == 0 and row["area_ha"] == 0 and row["mean_confidence_percent"] is None
    assert "not found" in row["text"]


def test_tile_without_data_has_an_explanation() -> None:
    document = json.loads(explanation_json("item", TileStatistics(), CLASSES))
    assert document["mapped_area_ha"] == 0
    assert all(row["share_percent"] is None for row in document["classes"])


def test_sentences_of_another_writer_are_kept() -> None:
    document = json.loads(explanation_json("item", statistics_of(BOX, 512), CLASSES, ["A.", "B.", "C."]))
    assert document["text"] == f"A. B. C. {document['scene']}"
