"""The loss of a cluster's control service: calls of Ray would wait for it, so the process ends itself."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pipeline.cluster import cluster
from pipeline.errors import RunInterrupted

_WATCHED = """
import socket, sys, time
from functools import partial
from pipeline.cluster import _answers, _watched

service = socket.create_server(("127.0.0.1", 0))
with _watched("a cluster", 0.5, partial(_answers, "127.0.0.1:%d" % service.getsockname()[1])) as ended:
    time.sleep(1)
    if sys.argv[1] == "ends first":
        ended.set()
    if sys.argv[1] != "stays":
        service.close()
    time.sleep(2)
    print("still here")
"""


def _watched(how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _WATCHED, how], capture_output=True, text=True, timeout=60, check=False)


def test_a_lost_control_service_ends_the_run_with_status_3_and_a_sentence() -> None:
    ended = _watched("goes")
    assert ended.returncode == 3
    assert "was lost; the same command goes on from here" in ended.stderr
    assert "still here" not in ended.stdout


def test_a_control_service_that_answers_or_a_run_that_has_ended_is_left_alone() -> None:
    for how in ("stays", "ends first"):
        ended = _watched(how)
        assert (ended.returncode, ended.stdout) == (0, "still here\n")


def test_an_address_at_which_nothing_answers_is_said_at_once() -> None:
    started = time.monotonic()
    with pytest.raises(RunInterrupted, match=r"nothing answers at 127\.0\.0\.1:1"), cluster("127.0.0.1:1"):
        pass
    assert time.monotonic() - started < 30
