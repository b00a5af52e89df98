"""Who may write an output when several want to: many takers at once, on stores with and without conditional writes, and a driver that comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jobs
import pytest
from processes import wait_for
from swift import ObjectStore, other_door

pytestmark = pytest.mark.services

TAKER = """
import sys
from datetime import timedelta
from pipeline.errors import OutputHeld
from pipeline.lease import Lease
from pipeline.storage import Storage
lease = Lease(Storage(sys.argv[1]), timedelta(minutes=10))
lease.refuse_if_held()
print("ready", flush=True)
sys.stdin.readline()
try:
    with lease:
        print("held", flush=True)
        sys.stdin.readline()
except OutputHeld as error:
    print(f"refused: {error}", flush=True)
"""
TAKERS = 4


@contextmanager
def takers(url: str, environment: dict[str, str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Give processes that have all seen the output free and wait for a line in order to take it."""
    started = [
        subprocess.Popen([sys.executable, "-c", TAKER, url], stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True, env=os.environ | environment)
        for _ in range(TAKERS)
    ]
    try:
        for taker in started:
            assert taker.stdout is not None
            assert taker.stdout.readline() == "ready\n"
        yield started
    finally:
        for taker in started:
            taker.kill()
            taker.communicate()


def said_by_all(started: list[subprocess.Popen[str]]) -> list[str]:
    """Let all go at once and return what each one says."""
    for taker in started:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    return [taker.stdout.readline().strip() for taker in started if taker.stdout is not None]


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("left_behind", [False, True])
def test_of_many_that_take_a_free_output_at_once_one_has_it(store: ObjectStore, conditional: bool, left_behind: bool) -> None:
    name = f"maps/{'with' if conditional else 'without'}-{left_behind}"
    if left_behind:
        store.files().pipe_file(f"{name}/.work/lease.json", b'{"renewed": "2020-01-01T00:00:00+00:00"}')
    with other_door(store, conditional) as door, takers(f"s3://{name}", door.environment) as started:
        answers = said_by_all(started)
        assert answers.count("held") == 1, answers
        assert sum("is held by another run (process " in answer for answer in answers) == TAKERS - 1


def test_door_without_conditional_writes_has_none(store: ObjectStore) -> None:
    """Else the tests above would show nothing."""
    program = (
        "from pipeline.storage import Storage; s = Storage('s3://maps/probe'); s.write_bytes('a', b'1'); print(s.refuses_overwriting('a', b'1'))"
    )

    def answer(door: ObjectStore) -> str:
        environment = os.environ | door.environment
        return subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False).stdout

    with other_door(store, conditional=False) as door:
        assert (answer(store), answer(door)) == ("True\n", "False\n")


@pytest.mark.cluster
def test_driver_that_comes_back_writes_nothing_over_its_successor(store: ObjectStore, scenes: str, demo: Path, undisturbed: dict[str, str]) -> None:
    """A node that was cut off, or a laptop that slept: meanwhile the scheduler has started the job elsewhere."""
    files, environment = store.files(), store.environment | {"SPEXMAP_LEASE_SECONDS": "5"}
    arguments = jobs.run_arguments(demo, source__catalog=scenes, output="s3://maps/partition")

    def listed() -> dict[str, object]:
        files.invalidate_cache()
        return {name: info.get("LastModified") for name, info in files.find("maps/partition", detail=True).items() if "/runs/" not in name}

    def successor() -> jobs.Ended:
        attempts: list[jobs.Ended] = []

        def has_the_output() -> bool:
            attempts.append(jobs.spexmap(*arguments, environment=environment))
            return attempts[-1].status != 4

        wait_for(has_the_output, "the lease runs out", jobs.LIMIT)
        return attempts[-1]

    first = jobs.start(*arguments, environment=environment)
    try:
        wait_for(lambda: any(name.endswith("_v1.json") for name in listed()), "the first driver publishes a tile", jobs.LIMIT)
        first.send_signal(signal.SIGSTOP)
        second = successor()
        assert second.status == 0, second.err[-3000:]
        before = listed()
    finally:
        first.send_signal(signal.SIGCONT)
        returned = jobs.ended(first)
    assert returned.status == 4, returned.err[-3000:]
    assert "is no longer held by this run" in returned.sentence
    assert "Traceback" not in returned.err
    assert listed() == before
    assert jobs.published(jobs.remote_files(files, "maps/partition")) == undisturbed
