"""One run at a time in an output: who holds it is told, who was left behind is followed, and who lost it writes no more."""

from __future__ import annotations

import json
import os
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pipeline import lease as leases
from pipeline.errors import JobError, LeaseLost, OutputHeld
from pipeline.lease import PATH, Lease, is_lease, lease_path
from pipeline.storage import Storage

SHORT = timedelta(seconds=0.2)
LIMIT = 30.0


@pytest.fixture(params=["local", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out") if request.param == "local" else f"memory://{tmp_path.name}-{request.node.name.translate({91: 45, 93: 45})}")


def record_of(storage: Storage, generation: int = 1) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read_bytes(lease_path(generation)))
    return found


def leave_behind(storage: Storage, **changes: Any) -> None:
    """Leave a lease in the output as a run that is gone does, or one that is not where `changes` say so."""
    with Lease(storage):
        record = record_of(storage)
    storage.write_bytes(PATH, json.dumps(record | changes).encode())


def test_second_run_is_told_who_holds_the_output(storage: Storage) -> None:
    with Lease(storage):
        with pytest.raises(OutputHeld, match=f"process {os.getpid()} on"), Lease(storage):
            pass
        with pytest.raises(OutputHeld):
            Lease(storage).refuse_if_held()
        assert storage.exists(PATH)
    assert not storage.exists(PATH)
    Lease(storage).refuse_if_held()


def test_a_run_that_was_killed_while_it_gave_its_leases_back_is_followed(storage: Storage) -> None:
    """It deletes the first lease first, so a later one can stay alone."""
    with Lease(storage):
        record = record_of(storage)
    storage.write_bytes(lease_path(2), json.dumps(record | {"process_started": 1.0}).encode())
    with Lease(storage) as lease:
        lease.fenced.write_bytes("published", b"x")
        assert record_of(storage, 3)["pid"] == os.getpid()
    assert not [path for path in storage.find() if is_lease(path)]


@pytest.mark.parametrize(
    "changes",
    [
        {"process_started": 1.0},
        {"host": "elsewhere", "renewed": "2020-01-01T00:00:00+00:00"},
        {"host": "elsewhere", "valid_seconds": 0.0},
        {"host": "elsewhere", "valid_seconds": float("inf")},
    ],
    ids=["process is gone", "not renewed", "short validity", "no validity"],
)
def test_lease_that_was_left_behind_is_followed_and_nothing_stays(storage: Storage, changes: dict[str, Any]) -> None:
    leave_behind(storage, **changes)
    with Lease(storage) as lease:
        assert record_of(storage, 2)["pid"] == os.getpid()
        lease.fenced.write_bytes("map", b"1")
        with pytest.raises(OutputHeld):
            Lease(storage).refuse_if_held()
    assert storage.find() == ["map"]


@pytest.mark.parametrize(
    "changes", [{"host": "elsewhere"}, {"namespace": "pid:[1]", "process_started": 1.0}], ids=["another host", "a container of the same host name"]
)
def test_holder_whose_process_cannot_be_seen_from_here_counts_as_alive(storage: Storage, changes: dict[str, Any]) -> None:
    """Containers with the host's network share its name: process 7 of one is not process 7 of the other."""
    leave_behind(storage, renewed=datetime.now(UTC).isoformat(), **changes)
    with pytest.raises(OutputHeld), Lease(storage):
        pass


@pytest.mark.parametrize("content", [b"{", b"[]", b"null", b"{}", b'{"renewed": 3}', b"\xff", b"[" * 200_000])
def test_damaged_lease_is_followed(storage: Storage, content: bytes) -> None:
    storage.write_bytes(PATH, content)
    with Lease(storage):
        assert record_of(storage, 2)["pid"] == os.getpid()
    assert storage.find() == []


@pytest.mark.parametrize("left_behind", [False, True])
def test_of_many_takers_one_has_it(storage: Storage, left_behind: bool) -> None:
    if left_behind:
        leave_behind(storage, process_started=1.0)
    takers = [Lease(storage) for _ in range(8)]
    together, done = threading.Barrier(len(takers)), threading.Event()

    def take(lease: Lease) -> bool:
        together.wait(LIMIT)
        try:
            with lease:
                done.wait(LIMIT)
                return True
        except OutputHeld:
            return False

    with ThreadPoolExecutor(len(takers)) as pool:
        taking = [pool.submit(take, lease) for lease in takers]
        while sum(future.done() for future in taking) < len(takers) - 1:
            assert not threading.Event().wait(0.01)
        done.set()
        assert sum(future.result() for future in taking) == 1


def test_who_lost_the_output_writes_and_deletes_nothing(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that comes back after its lease ran out: its successor may be at work, or have ended."""
    monkeypatch.setattr("pipeline.storage.FENCE_SECONDS", 0.0)
    (tmp_path / "raster").write_bytes(b"old")
    first = Lease(storage, timedelta(hours=1)).__enter__()
    first.fenced.write_bytes("map", b"1")
    storage.write_bytes(PATH, json.dumps(record_of(storage) | {"renewed": "2020-01-01T00:00:00+00:00"}).encode())
    writes = [
        lambda: first.fenced.write_bytes("map", b"2"),
        lambda: first.fenced.create_bytes("new", b"2"),
        lambda: first.fenced.put_file(tmp_path / "raster", "map"),
        lambda: first.fenced.delete("map"),
        first.fenced.check_fence,
    ]
    with Lease(storage):
        for write in writes:
            with pytest.raises(LeaseLost, match=f"no longer held by this run .process {os.getpid()} on"):
                write()
        first.__exit__(None, None, None)
        assert storage.exists(lease_path(2)), "the lease of the successor was given back by another"
    for write in writes:
        with pytest.raises(LeaseLost, match="it was deleted"):
            write()
    assert (storage.read_bytes("map"), storage.find()) == (b"1", ["map"])


def test_a_look_counts_for_a_while_on_a_remote_store(monkeypatch: pytest.MonkeyPatch) -> None:
    storage, looks = Storage(f"memory://looks-{uuid.uuid4().hex}"), []
    with Lease(storage, timedelta(hours=1)) as lease:
        monkeypatch.setattr("pipeline.lease.Holding.check", lambda holding: looks.append(holding))
        for _ in range(3):
            lease.fenced.write_bytes("map", b"1")
        assert len(looks) == 1
        lease.fenced.check_fence(afresh=True)
        assert len(looks) == 2
        monkeypatch.setattr("pipeline.storage.FENCE_SECONDS", 0.0)
        lease.fenced.write_bytes("map", b"1")
        assert len(looks) == 3


def test_who_was_written_over_has_lost_it(storage: Storage) -> None:
    """What happens on a store without conditional writes: the last writer has it."""
    with Lease(storage) as lease:
        storage.write_bytes(PATH, json.dumps(record_of(storage) | {"token": "another"}).encode())
        with pytest.raises(LeaseLost):
            lease.fenced.write_bytes("map", b"1")
    assert storage.exists(PATH)


def test_lease_is_renewed_while_it_is_held_and_errors_of_that_are_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    storage = Storage(str(tmp_path))
    write, failures = Storage.write_bytes, [OSError("no space left on device")] * 2

    def failing(self: Storage, path: str, data: bytes) -> None:
        if failures:
            raise failures.pop()
        write(self, path, data)

    with Lease(storage, SHORT) as lease:
        monkeypatch.setattr(Storage, "write_bytes", failing)
        first = record_of(storage)["renewed"]
        _until(lambda: not failures and record_of(storage)["renewed"] > first)
        assert not lease.lost
    assert caplog.text.count("the lease could not be renewed (OSError: no space left on device); trying again") == 2


def test_renewal_that_ends_after_the_lease_ran_out_brings_nothing_back(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is stopped in the middle of it: a successor may have come and gone, and its work must not be written over."""
    write, slow = Storage.write_bytes, threading.Event()

    def stopped(self: Storage, path: str, data: bytes) -> None:
        if path == PATH and not slow.is_set():
            slow.set()
            storage.delete(PATH)
            threading.Event().wait(2 * SHORT.total_seconds())
        write(self, path, data)

    with Lease(storage, SHORT) as lease:
        monkeypatch.setattr(Storage, "write_bytes", stopped)
        _until(lambda: lease.lost)
        with pytest.raises(LeaseLost):
            lease.fenced.write_bytes("map", b"1")
    assert storage.find() == []


def test_renewer_notices_that_the_lease_is_lost_and_says_so(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    with Lease(storage, SHORT) as lease:
        storage.write_bytes(lease_path(2), json.dumps({"token": "another", "pid": 1, "host": "elsewhere", "renewed": "2024-01-01"}).encode())
        _until(lambda: lease.lost)
        assert "process 1 on elsewhere" in caplog.text


def test_validity_can_be_set_and_nonsense_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(leases.VALIDITY_VARIABLE, "90")
    with Lease(Storage(str(tmp_path))):
        assert record_of(Storage(str(tmp_path)))["valid_seconds"] == 90
    for text in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv(leases.VALIDITY_VARIABLE, text)
        with pytest.raises(JobError, match=f"{leases.VALIDITY_VARIABLE}={text}"):
            Lease(Storage(str(tmp_path)))


@pytest.fixture(autouse=True)
def memory_is_left_empty() -> Iterator[None]:
    yield
    Storage("memory://").fs.store.clear()


def _until(condition: Any) -> None:
    until = datetime.now(UTC) + timedelta(seconds=LIMIT)
    while not condition():
        assert datetime.now(UTC) < until
        threading.Event().wait(0.01)


def test_leases_are_told_from_other_work() -> None:
    assert is_lease(PATH)
    assert is_lease(lease_path(2))
    assert not is_lease(".work/abc/lease.json")
