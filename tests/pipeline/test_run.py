"""One run from job file to published map, on a small simulated catalog with the shipped weights: what a scheduler relies on every month."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pystac
import pytest
import rasterio

from pipeline.cli import app
from pipeline.demo import write_demo
from pipeline.lease import PATH, Lease
from pipeline.storage import Storage

pytestmark = pytest.mark.cluster

TILE = ["--set", "grid.tile=256", "--block", "256"]


def run_app(arguments: list[str]) -> int:
    """Return the exit status of the command `spexmap` with these arguments."""
    with pytest.raises(SystemExit) as leaving:
        app(arguments, prog_name="spexmap")
    return int(leaving.value.code or 0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, seed=7, size=256)
    return folder


@pytest.fixture(scope="module")
def output(demo: Path) -> Path:
    assert run_app(["run", str(demo / "job.yaml"), *TILE]) == 0
    return demo / "output"


def files_of(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def items_of(output: Path) -> list[pystac.Item]:
    return list(pystac.Catalog.from_file(str(output / "catalog.json")).get_items(recursive=True))


def changed_catalog(demo: Path, folder: Path) -> Path:
    """Copy the demo's catalog, so that a test may change it."""
    shutil.copytree(demo, folder, ignore=shutil.ignore_patterns("output", "truth"))
    return folder


def item_paths(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.json") if json.loads(path.read_text()).get("type") == "Feature")


def test_every_tile_is_published_whole(demo: Path, output: Path) -> None:
    items = items_of(output)
    assert len(items) > 1
    for item in items:
        assert set(item.assets) == {"landcover", "confidence", "source", "quality", "thumbnail", "explanation"}
        for asset in item.assets.values():
            assert Path(asset.get_absolute_href() or "").stat().st_size == asset.extra_fields["file:size"]
    assert run_app(["validate", str(output), "--deep"]) == 0
    assert not (output / ".work").exists()


def test_map_shows_its_classes_and_says_why_where_it_does_not(output: Path) -> None:
    for item in items_of(output):
        with (
            rasterio.open(item.assets["landcover"].get_absolute_href()) as landcover,
            rasterio.open(item.assets["quality"].get_absolute_href()) as quality,
        ):
            classes, reasons = landcover.read(1), quality.read(1)
            assert landcover.tags(1)["CLASS_3"]
            assert landcover.colormap(1)[3] != landcover.colormap(1)[1]
        assert ((classes == 0) == (reasons >= 251)).all()


def test_run_is_recorded(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder,) = (output / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} == {"plan.parquet", "tiles.parquet", "run.json", "report.html", "log"}
    assert run_app(["status", str(output), "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)
    assert (run["state"], run["left"], run["failed"]) == ("done", 0, [])


def test_nothing_new_changes_nothing(demo: Path, output: Path) -> None:
    before = files_of(output)
    assert run_app(["run", str(demo / "job.yaml"), *TILE]) == 0
    assert files_of(output) == before


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("grid.resolution=20", "grid.resolution was 10"),
        ("classes=[water]", "classes was"),
        ("composite=latest", "composite was"),
        ("classes=[watr]", "water"),
        ("model=models/none", "no model"),
        ("region=[200, 10, 201, 11]", "region"),
        ("surce=1", "unknown key"),
        ("output=job.yaml/out", "cannot be written"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_written(demo: Path, output: Path, option: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(demo)
    assert run_app(["run", str(demo / "job.yaml"), *TILE, "--set", option]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert words in said
    assert files_of(demo) == before


def test_band_that_the_sensor_lacks_is_said(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog = changed_catalog(demo, tmp_path / "catalog")
    for path in item_paths(catalog):
        item = json.loads(path.read_text())
        del item["assets"]["red"]
        path.write_text(json.dumps(item))
    assert run_app(["run", str(catalog / "job.yaml")]) == 2
    assert "red" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (catalog / "output").exists()


def test_no_scene_is_a_sentence_or_an_error(demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = ["run", str(demo / "job.yaml"), "--set", "period=1999-01-01/1999-01-31", "--set", f"output={tmp_path / 'none'}"]
    assert run_app(empty) == 0
    assert "no scene" in "".join(capsys.readouterr())
    assert run_app([*empty, "--set", "fail_on_empty=true"]) == 2
    assert not (tmp_path / "none").exists()


def test_held_output_is_left_alone(demo: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Lease(Storage(str(output))):
        before = files_of(output)
        assert run_app(["run", str(demo / "job.yaml"), *TILE]) == 4
        assert {name: digest for name, digest in files_of(output).items() if name != PATH} == {k: v for k, v in before.items() if k != PATH}


def test_actor_that_is_killed_is_replaced_and_nothing_changes(demo: Path, output: Path, tmp_path: Path) -> None:
    """Kill -9 of the segmenting actor, as the kernel does when memory runs out: the run goes on and publishes the same bytes."""
    other = tmp_path / "output"
    command = [sys.executable, "-m", "pipeline", "run", str(demo / "job.yaml"), *TILE, "--set", f"output={other}"]
    with subprocess.Popen(command) as driver:
        killed = False
        while driver.poll() is None and not killed:
            time.sleep(0.05)
            if next(other.glob(".work/*/[!.]*.arrow"), None) is not None:
                actors = [child for child in psutil.Process(driver.pid).children(recursive=True) if "Segmenter" in "".join(child.cmdline())]
                for actor in actors:
                    actor.kill()
                killed = bool(actors)
        assert driver.wait(300) == 0
    assert killed
    published = {name: digest for name, digest in files_of(other).items() if not name.startswith("runs/")}
    assert published == {name: digest for name, digest in files_of(output).items() if not name.startswith("runs/")}
    (log,) = other.glob("runs/*/log")
    assert "actor died" in log.read_text()


def test_signals_in_mid_run_have_their_status_and_the_run_goes_on_from_there(
    demo: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a scheduler does to a run that takes too long; Ray's own handler would print a stack and abort."""
    other = tmp_path / "output"
    arguments = ["run", str(demo / "job.yaml"), *TILE, "--set", f"output={other}"]
    program = "import signal; from pipeline.cli import main; signal.signal(signal.SIGINT, signal.default_int_handler); main()"
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = set(other.glob(".work/*/[!.]*.arrow"))
        with subprocess.Popen([sys.executable, "-c", program, *arguments], stderr=subprocess.PIPE, text=True) as driver:
            while driver.poll() is None and not set(other.glob(".work/*/[!.]*.arrow")) - before:
                time.sleep(0.05)
            driver.send_signal(number)
            said = driver.communicate(timeout=120)[1]
        assert driver.returncode == status
        assert "the same command goes on from here" in said.splitlines()[-1]
        assert "Traceback" not in said and "***" not in said
        assert run_app(["status", str(other), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)[0]["state"] == "interrupted"
    assert run_app(arguments) == 0
    assert len(list((other / "runs").iterdir())) == 1
    published = {name: digest for name, digest in files_of(other).items() if not name.startswith("runs/")}
    assert published == {name: digest for name, digest in files_of(output).items() if not name.startswith("runs/")}


@pytest.fixture(scope="module")
def reprocessed(demo: Path, output: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The output after one scene was processed anew and another one's files were damaged."""
    catalog = changed_catalog(demo, tmp_path_factory.mktemp("new") / "catalog")
    first, second = item_paths(catalog)[:2]
    shutil.copytree(output, catalog / "output")
    item = json.loads(first.read_text())
    item["properties"]["s2:generation_time"] = "2031-01-01T00:00:00Z"
    first.write_text(json.dumps(item))
    damaged = json.loads(second.read_text())
    band = second.parent / damaged["assets"]["nir"]["href"]
    band.write_bytes(band.read_bytes()[:1000])
    assert run_app(["run", str(catalog / "job.yaml"), *TILE]) == 0
    return catalog / "output"


def test_changed_scenes_make_a_new_version_that_points_back(reprocessed: Path) -> None:
    newest = [item for item in items_of(reprocessed) if item.properties["version"] == "2"]
    assert newest
    for item in newest:
        (link,) = item.get_links("predecessor-version")
        old = pystac.Item.from_file(link.get_absolute_href() or "")
        assert old.properties["deprecated"] is True
        assert {link.rel for link in old.links} >= {"successor-version", "latest-version"}
        assert Path(old.assets["landcover"].get_absolute_href() or "").exists()
    assert run_app(["validate", str(reprocessed), "--deep"]) == 0


def test_scene_that_cannot_be_read_is_left_out_and_named(reprocessed: Path) -> None:
    named = {scene["id"]: scene["reason"] for item in items_of(reprocessed) for scene in item.properties["spexmap:scenes_left_out"]}
    assert len(named) == 1
    assert all(reason for reason in named.values())
