"""Who asks for the status wants to know what is missing and why, while the run is under way and after it was killed too."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from affine import Affine
from published_items import published_item
from shapely.geometry import box

from pipeline.errors import JobError
from pipeline.job import JobSpec
from pipeline.period import Period
from pipeline.plan import Plan
from pipeline.planning import make_plan
from pipeline.region import load_region
from pipeline.reports import byte_words, plan_document, print_plan, print_status
from pipeline.runs import RunRecord, TileCounts, TileRecord, tiles_from_parquet, tiles_to_parquet
from pipeline.series import ModelFacts
from pipeline.snap import AssetGrid
from pipeline.status import read_status, status_document
from pipeline.storage import Storage
from stac.records import ItemKey
from stac.scenes import BandSource, Scene


@dataclass(frozen=True)
class Resolved:
    name: str
    title: str = "Water"
    instruction: str = "segment water"
    threshold: float = 0.5
    color: str = "#112233"


@pytest.fixture(scope="module")
def plan() -> Plan:
    job = JobSpec.model_validate(
        {
            "name": "styria",
            "region": [15.0, 46.0, 15.1, 46.1],
            "period": "2023-08-10/2023-08-20",
            "source": {"catalog": "c"},
            "output": "o",
            "classes": ["water"],
            "grid": {"tile": 512},
        }
    )
    bands = {"red": BandSource("https://example.com/red.tif")}
    scene = Scene("A", "c", "sentinel-2", datetime(2023, 8, 12, tzinfo=UTC), box(14, 45, 16, 47), bands, None, 5.0)
    return make_plan(
        job,
        load_region(job.region),
        Period(date(2023, 8, 10), date(2023, 8, 20)),
        [scene],
        ModelFacts("f" * 64, ("red",), ("red",), (Resolved("water"),)),
        asset_grid_of=lambda band: AssetGrid("", Affine.identity()),
        refused=[("B", "no SCL")],
    )


def record(plan: Plan, run_id: str = "20230901T000000-abc", **changes: object) -> RunRecord:
    made = RunRecord(run_id, "running", plan.key, plan.series.to_dict(), str(plan.period), plan.identity, started="2023-09-01T00:00:00+00:00")
    return replace(made, **changes)  # type: ignore[arg-type]


def write_run(output: Path, plan: Plan, run: RunRecord, tiles: list[TileRecord] | None = None) -> None:
    storage = Storage(str(output))
    storage.write_bytes(f"runs/{run.run_id}/plan.parquet", plan.to_parquet())
    storage.write_bytes(f"runs/{run.run_id}/run.json", run.to_json())
    if tiles is not None:
        storage.write_bytes(f"runs/{run.run_id}/tiles.parquet", tiles_to_parquet(tiles))


def test_records_come_back_from_their_files_unchanged(plan: Plan) -> None:
    run = record(plan, identity={"threads": 2}, versions={"spexmap": "0.1.0"}, tiles=TileCounts(3, 2, 1), ended="2023-09-02T00:00:00+00:00")
    assert RunRecord.from_json(run.to_json()) == run
    tiles = [TileRecord("b", "failed", reason="disk"), TileRecord("a", "done", 2, seconds=1.5, areas={"water": 12.5, "bare": 0.0})]
    assert tiles_from_parquet(tiles_to_parquet(tiles)) == (tiles[1], tiles[0])
    assert tiles_from_parquet(tiles_to_parquet([])) == ()


def test_a_run_that_ended_tells_what_failed_and_why(tmp_path: Path, plan: Plan) -> None:
    names = [tile.id for tile in plan.tiles]
    tiles = [TileRecord(name, "done", 1) for name in names[2:]]
    tiles += [TileRecord(names[0], "skipped", 1), TileRecord(names[1], "failed", reason="no scene could be read")]
    write_run(tmp_path, plan, record(plan, state="failed", message="1 tile failed"), tiles)
    (run,) = read_status(str(tmp_path))
    assert (run.tiles, run.done, run.skipped, run.left, run.state) == (len(names), len(names) - 2, 1, 0, "failed")
    assert [(tile.tile, tile.reason) for tile in run.failed] == [(names[1], "no scene could be read")]
    assert json.loads(json.dumps(status_document((run,))))[0]["failed"][0]["tile"] == names[1]


def test_a_killed_run_counts_the_tiles_whose_items_are_there(tmp_path: Path, plan: Plan) -> None:
    write_run(tmp_path, plan, record(plan))
    (run,) = read_status(str(tmp_path))
    assert (run.done, run.left) == (0, len(plan.tiles))
    for tile, fingerprint in ((plan.tiles[0], plan.tiles[0].fingerprint), (plan.tiles[1], "of an older run")):
        key = ItemKey("styria", tile.id, plan.period.start, plan.period.end, 1)
        Storage(str(tmp_path)).write_bytes(key.path, json.dumps(published_item(fingerprint)).encode())
    (run,) = read_status(str(tmp_path))
    assert (run.done, run.left) == (1, len(plan.tiles) - 1)


def test_runs_are_told_in_the_order_in_which_they_began(tmp_path: Path, plan: Plan) -> None:
    write_run(tmp_path, plan, record(plan, "b", started="2023-09-01T00:00:00+00:00"), [])
    write_run(tmp_path, plan, record(plan, "a", started="2023-10-01T00:00:00+00:00"), [])
    assert [run.run_id for run in read_status(str(tmp_path))] == ["b", "a"]


def test_the_status_of_an_output_on_any_file_system_can_be_read(plan: Plan) -> None:
    storage = Storage("memory://maps/styria")
    storage.write_bytes("runs/r/run.json", record(plan, "r").to_json())
    (run,) = read_status("memory://maps/styria")
    assert (run.run_id, run.tiles) == ("r", 0)


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="holds no run; is it the `output` of a job"):
        read_status(str(tmp_path))


def test_what_is_printed_says_what_there_is_to_do(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan)
    shown = capsys.readouterr().out
    assert "styria, 2023-08-10/2023-08-20, EPSG:32633 at 10, bands red" in shown
    assert all(words in shown for words in (plan.tiles[0].id, "windows", "to read, about", "GPU-hours", "left out: B: no SCL"))
    write_run(tmp_path, plan, record(plan, state="failed"), [TileRecord(plan.tiles[0].id, "failed", reason="disk [full]")])
    print_status(read_status(str(tmp_path)))
    assert "failed: disk [full]" in capsys.readouterr().out


def test_a_name_that_looks_like_markup_is_printed_as_it_is(plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, plan, record(plan, series={"name": "[/b]"}))
    print_status(read_status(str(tmp_path)))
    assert "[/b]" in capsys.readouterr().out


def test_a_plan_as_json_has_no_href(plan: Plan) -> None:
    document = plan_document(plan)
    assert "https" not in json.dumps(document)
    assert document["estimate"]["tiles"] == len(document["tiles"]) == len(plan.tiles)


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (999, "999 B"), (23_319_812, "23.3 MB"), (1.6e11, "160.0 GB"), (3e15, "3.0 PB")])
def test_bytes_are_written_as_people_read_them(count: float, words: str) -> None:
    assert byte_words(count) == words
