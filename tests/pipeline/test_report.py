"""If these fail, the page after a run misses tiles, hides failures, adds areas up wrongly, or cannot be opened alone."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest

from pipeline.areas import PixelAreas
from pipeline.explanations import TileStatistics, count_block
from pipeline.grid import Grid, PixelBox
from pipeline.mosaic import make_rasters
from pipeline.period import Period
from pipeline.plan import WHOLE, Plan, TilePlan
from pipeline.region import Region
from pipeline.report import collect, render, write_report
from pipeline.runs import RunRecord, TileCounts, TileRecord
from pipeline.series import MapClass as SeriesClass
from pipeline.series import Series
from pipeline.storage import Storage
from stac.canonical import canonical_json
from stac.geometry import footprint_of
from stac.publish import item
from stac.records import ItemKey, LeftOut, MapClass, ModelReference
from stac.records import TileRecord as TileDocument
from stac.scenes import Scene

GRID = Grid("EPSG:32633", 10.0, (499980.0, 5200020.0), 512)
LEGEND = (
    MapClass(1, "vegetation", "Vegetation", "#1b7f3b"),
    MapClass(2, "building", "Buildings <b>", "#d7301f"),
    MapClass(3, "water", "Water", "#2b6cb0"),
    MapClass(4, "bare", "Bare ground", "#c2a878"),
)
SERIES = Series("styria", GRID, tuple(SeriesClass(c.code, c.name, c.title, c.title, 0.3, c.color) for c in LEGEND), "ab" * 32, "least-cloudy", 60.0)
OUTER = PixelBox(-512, 0, 424, 1400)
SCENES = tuple(
    Scene(
        name,
        "s2",
        "sentinel-2",
        datetime(2023, 8, day, 10, 8, tzinfo=UTC),
        footprint_of(GRID.geobox(OUTER)),
        {},
        None,
        cloud,
        calibration="offset in the numbers",
    )
    for name, day, cloud in (("S2A_33TWM", 13, 0.4), ("S2B_33TWM", 18, 45.0))
)
PERIOD = Period(date(2023, 8, 10), date(2023, 8, 20))


def make_plan() -> Plan:
    cells = [cell.intersect(OUTER) for cell in OUTER.lattice(GRID.tile)]
    names = [GRID.tile_id(cell) for cell in OUTER.lattice(GRID.tile)]
    tiles = [
        TilePlan(name, box, tuple(scene.id for scene in SCENES), f"{number:064x}", WHOLE)
        for number, (name, box) in enumerate(zip(names, cells, strict=True))
    ]
    region = Region(footprint_of(GRID.geobox(OUTER)))
    tiles.sort(key=lambda tile: tile.id)
    created = datetime(2023, 9, 1, tzinfo=UTC)
    return Plan(
        SERIES,
        PERIOD,
        region,
        ("red", "nir"),
        SCENES,
        tuple(tiles),
        created,
        (6.0, 6.0),
        True,
        320,
        256,
        "key",
        refused=(("S2C_33TWM", "it has no nir & no red"),),
    )


def landcover_of(box: PixelBox) -> np.ndarray:
    y, x = np.mgrid[box.top : box.bottom, box.left : box.right]
    height = np.sin(x / 130) + np.cos(y / 90) + 0.5 * np.sin((x + 2 * y) / 47) + 0.25 * np.sin(x / 11) * np.sin(y / 9)
    river = np.abs(x - 500 - 160 * np.sin(y / 150)) < 14 + 6 * np.sin(y / 60)
    codes = np.select([river, height > 1.5, height < -1.6], [3, 2, 4], 1).astype(np.uint8)
    codes[np.hypot(y - 100, x - 1150) < 60] = 254
    codes[x + y < -260] = 0
    return codes


def publish_tile(storage: Storage, root: Path, plan: Plan, tile: TilePlan) -> dict[str, float]:
    key = ItemKey("styria", tile.id, PERIOD.start, PERIOD.end, 1)
    landcover = landcover_of(tile.box)
    empty = landcover == 0
    planes = {
        "landcover": landcover,
        "confidence": np.where(empty, 255, 80).astype(np.uint8),
        "source": np.where(empty, 0, 1).astype(np.uint16),
        "quality": np.where(empty, 253, 2).astype(np.uint8),
    }
    statistics = TileStatistics()
    statistics.add(count_block(planes, np.full((2, *tile.box.shape), 2000, np.uint16), plan.bands, tile.box, PixelAreas(GRID)))
    rasters = make_rasters([(tile.box, planes)], tile.box, GRID, LEGEND, root / key.folder, key.id)
    areas = statistics.class_areas(LEGEND)
    document = TileDocument(
        key=key,
        geobox=GRID.geobox(tile.box),
        footprint=footprint_of(GRID.geobox(tile.box)),
        files=rasters.published,
        classes=LEGEND,
        scenes=SCENES[:1],
        left_out=(LeftOut("S2B_33TWM", "nir: timed out"),),
        class_areas=areas,
        model=ModelReference("spex-small", "SPEX small", "ab" * 32),
        fingerprint=tile.fingerprint,
        identity={},
        created=plan.created,
        license="CC-BY-4.0",
        software={"spexmap": "0.1.0"},
    )
    storage.write_bytes(key.path, canonical_json(item(document)))
    return areas


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, RunRecord, Plan, list[TileRecord]]:
    root = tmp_path_factory.mktemp("run")
    storage, plan = Storage(str(root)), make_plan()
    *made, skipped, failed = plan.tiles
    records = [TileRecord(tile.id, "done", 1, "", 12.5 + number, publish_tile(storage, root, plan, tile)) for number, tile in enumerate(made)]
    publish_tile(storage, root, plan, skipped)
    records += [TileRecord(skipped.id, "skipped", 1), TileRecord(failed.id, "failed", 0, "its actor died 3 times")]
    record = RunRecord(
        run_id="20230901-abcdef",
        state="failed",
        key="key",
        series=SERIES.to_dict(),
        period=str(PERIOD),
        plan_identity="cd" * 32,
        identity={"runtime": "torch 2.13.0", "threads": 1},
        started="2023-09-01T06:00:00+00:00",
        ended="2023-09-01T06:04:10+00:00",
        tiles=TileCounts(4, 1, 1),
        message="4 tiles made, 1 were there, 1 failed",
    )
    return storage, record, plan, records


def test_page_names_every_tile_with_its_state_and_reason(run: tuple[Storage, RunRecord, Plan, list[TileRecord]]) -> None:
    storage, record, plan, records = run
    page = render(collect(storage, record, plan, records)).decode()
    for tile in plan.tiles:
        assert tile.id in page
    assert "its actor died 3 times" in page
    assert "4 tiles made, 1 were there, 1 failed" in page
    assert "4 min 10 s" in page


def test_page_is_self_contained_and_escapes_what_it_is_told(run: tuple[Storage, RunRecord, Plan, list[TileRecord]]) -> None:
    page = render(collect(*run)).decode()
    assert not re.search(r"""(src|href)=["'](https?:|//)""", page)
    assert "<script" not in page
    assert "Buildings &lt;b&gt;" in page and "no nir &amp; no red" in page
    assert page.count("data:image/png;base64,") == 5


def test_areas_are_added_up_with_those_of_skipped_tiles(run: tuple[Storage, RunRecord, Plan, list[TileRecord]]) -> None:
    report = collect(*run)
    published = [landcover_of(tile.box) for tile in run[2].tiles[:-1]]
    for entry, code in zip(report.classes, (1, 2, 3, 4, 254), strict=True):
        pixels = sum(int((codes == code).sum()) for codes in published)
        assert entry.hectares == pytest.approx(pixels / 100, rel=2e-3)
    assert sum(entry.share for entry in report.classes) == pytest.approx(100)
    assert report.no_data_ha == pytest.approx(sum(int((codes == 0).sum()) for codes in published) / 100, rel=2e-3)


def test_scenes_say_where_they_were_used_and_left_out(run: tuple[Storage, RunRecord, Plan, list[TileRecord]]) -> None:
    scenes = {scene.id: scene for scene in collect(*run).scenes}
    assert scenes["S2A_33TWM"].tiles == 5 and scenes["S2A_33TWM"].left_out == {}
    assert scenes["S2B_33TWM"].tiles == 0
    assert set(scenes["S2B_33TWM"].left_out.values()) == {"nir: timed out"}


def test_map_without_seams_is_said_to_have_none(run: tuple[Storage, RunRecord, Plan, list[TileRecord]]) -> None:
    report = collect(*run)
    assert len(report.seams) == 5
    assert sum(tile.seam.within for tile in report.seams if tile.seam) >= 4


def test_links_lead_from_the_report_to_the_items(run: tuple[Storage, RunRecord, Plan, list[TileRecord]]) -> None:
    storage, record, plan, records = run
    path = write_report(storage, record, plan, records)
    assert path == "runs/20230901-abcdef/report.html"
    folder = Path(storage.url(path)).parent
    linked = [tile.href for tile in collect(storage, record, plan, records).tiles if tile.href]
    assert len(linked) == 5
    assert all((folder / href).resolve().is_file() for href in linked)


def test_run_that_made_nothing_has_a_page(run: tuple[Storage, RunRecord, Plan, list[TileRecord]]) -> None:
    storage, record, plan, _ = run
    failed = [TileRecord(tile.id, "failed", 0, "no scene could be read") for tile in plan.tiles]
    report = collect(storage, replace(record, ended=None, message=""), plan, failed)
    assert report.tile_seconds == {} and report.duration == "" and report.seams == ()
    assert b"no scene could be read" in render(report)
