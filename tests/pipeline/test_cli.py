"""A scheduler sees nothing of a run but its exit status and one sentence; both must be right."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import yaml

from engine.errors import ModelNotFound
from engine.models import find_model
from pipeline import cli
from pipeline.errors import JobError, NoScenes, OutputHeld, RunInterrupted, SeriesChanged
from pipeline.job import JobSpec
from spexmap import SpexmapError
from stac.errors import CatalogError

JOB = """name: styria
region: region.geojson
period: 2023-08-10/2023-08-20
source:
  catalog: catalog.json
output: out
"""

Spexmap = Callable[..., tuple[int, str, str]]


@pytest.fixture
def spexmap(capsys: pytest.CaptureFixture[str]) -> Spexmap:
    """Run the command line in this process; returns exit status, stdout and stderr."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as leaving:
            cli.app([str(argument) for argument in arguments], prog_name="spexmap")
        shown = capsys.readouterr()
        return int(leaving.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB, encoding="utf-8")
    return path


def test_help_names_the_commands_and_needs_nothing_heavy(spexmap: Spexmap) -> None:
    status, out, _ = spexmap("--help")
    assert status == 0
    assert all(command in out for command in ("run", "plan", "status", "validate", "schema", "demo"))
    heavy = "import pipeline.cli, sys; assert not {'ray', 'torch', 'geopandas', 'rasterio', 'pydantic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", heavy], check=True)


def test_schema_is_the_json_schema_of_the_job_file(spexmap: Spexmap) -> None:
    status, out, _ = spexmap("schema")
    assert status == 0
    assert json.loads(out)["properties"].keys() == JobSpec.model_fields.keys()


@pytest.mark.parametrize("command", ["run", "plan"])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("source.max_cloud=20", "spexmap: --set source.max_cloud: unknown key; did you mean max_cloud_cover?"),
        ("region=[15, 46, 16, 96]", "spexmap: --set region: [15, 46, 16, 96] is not on Earth"),
        ("period=2023-08-20/2023-08-10", "spexmap: --set period: '2023-08-20/2023-08-10' ends before it begins"),
        ("classes=[water, water]", "spexmap: --set classes: the name water is there twice"),
    ],
)
def test_a_wrong_job_is_status_2_with_one_sentence_and_nothing_written(spexmap: Spexmap, job: Path, command: str, change: str, sentence: str) -> None:
    status, out, err = spexmap(command, job, "--set", change)
    assert (status, out) == (2, "")
    assert err.startswith(sentence)
    assert err.count("\n") == 1
    assert [path.name for path in job.parent.iterdir()] == ["job.yaml"]


@pytest.mark.parametrize("command", ["run", "plan"])
def test_an_error_found_after_loading_names_file_and_line_too(spexmap: Spexmap, job: Path, command: str) -> None:
    status, out, err = spexmap(command, job)
    assert (status, out) == (2, "")
    assert err == f"spexmap: {job} line 2: region: there is no file {job.parent}/region.geojson; paths are relative to the job file\n"
    assert [path.name for path in job.parent.iterdir()] == ["job.yaml"]


def test_a_job_file_that_is_not_there_is_status_2(spexmap: Spexmap, tmp_path: Path) -> None:
    status, _, err = spexmap("run", tmp_path / "none.yaml")
    assert status == 2
    assert "there is no job file" in err


@pytest.mark.parametrize("arguments", [("fly",), ("run",), ("run", "a", "b"), ("run", "a", "--workers", "0"), ("run", "a", "--fast")])
def test_a_wrong_command_line_is_status_2(spexmap: Spexmap, arguments: tuple[str, ...]) -> None:
    assert spexmap(*arguments)[0] == 2


@pytest.mark.parametrize("command", ["status", "validate"])
def test_a_folder_that_is_no_output_is_status_2(spexmap: Spexmap, tmp_path: Path, command: str) -> None:
    status, _, err = spexmap(command, tmp_path)
    assert status == 2
    assert "output" in err


def test_a_page_in_the_place_of_a_model_is_said_by_its_url() -> None:
    with fsspec.open("memory://pages/model/config.json", "wb") as stream:
        stream.write(b"<html>not here</html>")
    with pytest.raises(ModelNotFound, match=r"model 'memory://pages/model': config\.json could not be read \(JSONDecodeError"):
        find_model("memory://pages/model")


@pytest.mark.parametrize("url", ["http://user:geheim@host/a.yaml", "https://host/a?auth=geheim", "s3://user:geheim@bucket/m"])
def test_no_error_prints_what_opens_a_url(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._fail(f"there is no job file {url}, nor '{url}'", 2) == 2
    with pytest.raises(ModelNotFound, match="could not be read") as caught:
        find_model(url if url.startswith("s3") else "none-such://user:geheim@host/m")
    cli._fail(str(caught.value), 2)
    assert "geheim" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (JobError("x"), 2),
        (SeriesChanged("x"), 2),
        (CatalogError("x"), 2),
        (SpexmapError("x"), 2),
        (NoScenes("x"), 0),
        (RunInterrupted("x"), 3),
        (OutputHeld("x"), 4),
        (KeyboardInterrupt(), 130),
        (cli.Terminated(), 143),
        (SystemExit(signal.SIGTERM.value), 143),
        (SystemExit(1), 1),
        (SystemExit(None), 0),
        (RuntimeError("x"), 3),
    ],
)
def test_every_way_to_end_has_its_documented_status(error: BaseException, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    @cli._command
    def command() -> int:
        raise error

    with pytest.raises(SystemExit) as leaving:
        command()
    assert leaving.value.code == status
    shown = capsys.readouterr()
    assert shown.out == ""
    assert not isinstance(error, SpexmapError) or shown.err == "spexmap: x\n"


@pytest.mark.parametrize(("signal_name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_ends_the_command_with_its_status_and_no_traceback(signal_name: str, status: int) -> None:
    program = f"""
import os, signal
from pipeline import cli

@cli.app.command()
@cli._command
def wait() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started the tests in the background has it ignored
    os.kill(os.getpid(), signal.{signal_name})
    signal.pause()

cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program, "wait"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status
    assert done.stderr.startswith("spexmap: ")
    assert "Traceback" not in done.stderr


def test_an_error_that_nobody_foresaw_keeps_its_traceback_for_the_report(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    @cli._command
    def command() -> int:
        raise ZeroDivisionError("oh")

    with pytest.raises(SystemExit):
        command()
    assert "ZeroDivisionError" in caplog.text
    assert "please report it" in capsys.readouterr().err


def test_demo_writes_a_job_that_loads(spexmap: Spexmap, tmp_path: Path) -> None:
    status, out, _ = spexmap("demo", tmp_path / "demo", "--size", "128", "--seed", "3")
    assert status == 0
    assert f"spexmap run {tmp_path}/demo/job.yaml" in out
    assert yaml.safe_load((tmp_path / "demo" / "job.yaml").read_text(encoding="utf-8"))["name"] == "demo"
    assert spexmap("demo", tmp_path / "odd", "--size", "129")[0] == 2
