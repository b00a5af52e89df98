"""If these fail, nobody can read why a run that was killed was slow or stuck, or a log that cannot be written ends a run that could go on."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.errors import StorageUnavailable
from pipeline.runlog import RunLog
from pipeline.storage import Storage

NAME = "runs/r1/log"
LIMIT = 60.0
log = logging.getLogger("pipeline.test")

LOGGED = """
import logging, sys, time
from pipeline.runlog import RunLog
from pipeline.storage import Storage
logging.basicConfig(level=logging.INFO)
with RunLog(Storage(sys.argv[1]), sys.argv[2], first=0.05, every=0.05):
    for number in range(100000):
        logging.info("line %d", number)
        time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not reached():
        assert time.monotonic() < end, f"not after {LIMIT:.0f} s"
        time.sleep(0.01)


def content(output: Path) -> str:
    path = output / NAME
    return path.read_text() if path.is_file() else ""


def test_log_of_a_killed_run_is_there_and_nothing_else_is(tmp_path: Path) -> None:
    output, temporary = tmp_path / "output", tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", LOGGED, str(output), NAME]
    run = subprocess.Popen(command, env=os.environ | {"TMPDIR": str(temporary)}, stderr=subprocess.DEVNULL)
    try:
        until(lambda: "line 20" in content(output))
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    lines = content(output).splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == [str(number) for number in range(len(lines))]
    assert list(temporary.iterdir()) == []


def test_a_run_that_goes_on_keeps_what_was_logged_before(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    for line in ("first attempt", "second attempt"):
        with RunLog(storage, NAME, first=0.01, every=0.01):
            log.info("%s", line)
            until(lambda line=line: line in content(tmp_path))  # type: ignore[misc]
            log.info("end of %s", line)
    found = [line.partition("test: ")[2] for line in content(tmp_path).splitlines()]
    assert found == ["first attempt", "end of first attempt", "second attempt", "end of second attempt"]


def test_why_a_run_stopped_is_its_last_line_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "correct-horse-battery")
    with pytest.raises(ValueError), RunLog(Storage(str(tmp_path)), NAME):
        raise ValueError("the key correct-horse-battery is unknown")
    assert content(tmp_path).endswith("the run stopped: ValueError: the key *** is unknown\n")


def test_log_that_cannot_be_written_fails_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with RunLog(Storage(str(tmp_path)), NAME, first=0.01, every=0.01):
        log.info("line")
        until(lambda: "could not be written" in caplog.text)
    assert (tmp_path / "runs").read_text() == "a file where a folder should be"


def test_log_that_cannot_be_written_does_not_hide_why_the_run_stopped(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where a folder should be")
    with pytest.raises(StorageUnavailable, match="does not answer"), RunLog(Storage(str(tmp_path)), NAME):
        raise StorageUnavailable("the store does not answer")


def test_a_run_that_logs_nothing_has_an_empty_log(tmp_path: Path) -> None:
    """Every record of a run holds the same files."""
    with RunLog(Storage(str(tmp_path)), NAME):
        pass
    assert Storage(str(tmp_path)).read_bytes(NAME) == b""
