"""One run at a time in an output: a lease that is renewed while the run lives and that runs out when it does not.

A lease is a file that only its holder writes, created under a condition: nothing may be there. One that was left behind is not replaced but
followed: who creates generation n + 1 first has the output, so that of several takers one wins, and the holder of generation n, should it come
back, sees that it was followed and writes no more. On a store without conditional writes two takers may both believe that they created it; there
the last writer holds it, which each one finds out by a second look after `SECOND_LOOK` to `LATEST_LOOK` seconds, and again before every write.

The clocks of the machines have to agree within the validity.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from pipeline.errors import AccessLost, JobError, LeaseLost, OutputHeld, StorageUnavailable
from pipeline.faults import reason
from pipeline.storage import WORK, Storage

log = logging.getLogger(__name__)

PATH = f"{WORK}/lease.json"
"""Of the first generation."""
VALID = timedelta(minutes=10)
VALIDITY_VARIABLE = "SPEXMAP_LEASE_SECONDS"
RENEWALS = 10
"""In the time that a lease is valid."""
SECOND_LOOK, LATEST_LOOK = 2.0, 10.0
"""Seconds between writing and reading one's own token, where the store has no conditional writes: as long as looking and writing took, for others
wait for a slow store, too, within these limits."""
ROUNDS = 3


def lease_path(generation: int) -> str:
    """Return where the lease of a generation, from 1, lies."""
    return PATH if generation == 1 else f"{WORK}/lease.{generation}.json"


def is_lease(path: str) -> bool:
    """Return whether `path` is that of a lease."""
    return path == PATH or (path.startswith(f"{WORK}/lease.") and path.endswith(".json"))


def default_validity() -> timedelta:
    """Return how long a lease counts without being renewed: ten minutes, or what ``SPEXMAP_LEASE_SECONDS`` says."""
    text = os.environ.get(VALIDITY_VARIABLE, "")
    try:
        validity = timedelta(seconds=float(text)) if text else VALID
    except (ValueError, OverflowError):
        validity = timedelta(0)
    if validity <= timedelta(0):
        raise JobError(f"{VALIDITY_VARIABLE}={text}: give a number of seconds above 0, or leave it away for {VALID.seconds}")
    return validity


@dataclass(frozen=True)
class Holding:
    """A lease as a fence: what a process needs in order to see whether it still holds; small, and the same everywhere."""

    root: str
    generation: int
    token: str

    def check(self) -> None:
        """Raise `LeaseLost` where the lease was followed, replaced or taken away."""
        storage = Storage(self.root)
        own = _record(storage, self.generation)
        if own.get("token") == self.token and not (follower := _record(storage, self.generation + 1)):
            return
        other = follower if own.get("token") == self.token else own
        by = _in_words(other) if other else "it was deleted, by a run that has ended since or by hand"
        raise LeaseLost(f"{storage.shown} is no longer held by this run ({by}); nothing more is written, run the same command again")


class Lease:
    """Context manager that holds an output; entering raises `OutputHeld` where another run holds it.

    A lease counts as left behind when it was not renewed for its validity, or when it was taken on this host by a process that is gone.

    Parameters
    ----------
    storage
        The output.
    validity
        How long the lease counts without being renewed; default `default_validity`.
    """

    def __init__(self, storage: Storage, validity: timedelta | None = None) -> None:
        self._storage = storage
        self._validity = default_validity() if validity is None else validity
        self._holding = Holding(storage.root, 0, uuid.uuid4().hex)
        self._released = threading.Event()
        self._lost: LeaseLost | None = None
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    @property
    def fenced(self) -> Storage:
        """The output, to be written only while the lease is held."""
        return replace(self._storage, fence=self._holding)

    @property
    def lost(self) -> bool:
        """Whether the renewer found another run in this one's place."""
        return self._lost is not None

    def __enter__(self) -> Lease:
        """Take the lease, or raise `OutputHeld`."""
        for _ in range(ROUNDS):
            began = time.monotonic()
            generation, record = _newest(self._storage)
            self._refuse(generation, record)
            self._holding = replace(self._holding, generation=generation + 1)
            if self._claim(began):
                if generation:
                    log.warning("the lease that another run left behind is taken over (%s)", _in_words(record))
                self._renewer.start()
                return self
        raise OutputHeld(f"{self._storage.shown} is being taken by other runs at this moment; wait for them")

    def refuse_if_held(self) -> None:
        """Raise `OutputHeld` where another run holds the output now; takes nothing."""
        self._refuse(*_newest(self._storage))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give the lease back, and with it those that it followed; one that was lost is another's and stays."""
        self._released.set()
        self._renewer.join(timeout=5)
        storage = self.fenced.hurried if isinstance(error, StorageUnavailable | AccessLost) else self.fenced
        try:
            storage.check_fence(afresh=True)
            for generation in range(1, self._holding.generation + 1):
                storage.delete(lease_path(generation))
        except LeaseLost:
            return
        except OSError as failure:
            log.warning("the lease could not be given back (%s); it runs out in %.0f s", reason(failure), self._validity.total_seconds())

    def _refuse(self, generation: int, record: Mapping[str, Any]) -> None:
        if generation and _is_live(record):
            path = self._storage.url(lease_path(generation))
            raise OutputHeld(f"{self._storage.shown} is held by another run ({_in_words(record)}); wait for it, or delete {path} if that run is gone")

    def _claim(self, began: float) -> bool:
        """Create the lease of our generation, which was looked for when it `began`; return whether it is ours."""
        path, document = lease_path(self._holding.generation), self._document()
        if self._storage.create_bytes(path, document) and not self._storage.refuses_overwriting(path, document):
            pause = min(max(SECOND_LOOK, time.monotonic() - began), LATEST_LOOK)
            log.info("the store has no conditional writes; looking again in %.0f s whether the output is ours", pause)
            self._released.wait(pause)
        # Also where it was not created: the answer to a write that succeeded may have been lost.
        return bool(_record(self._storage, self._holding.generation).get("token") == self._holding.token)

    def _renew(self) -> None:
        period = self._validity.total_seconds() / RENEWALS
        pause = period
        while not self._released.wait(pause):
            try:
                self._renew_once()
                pause = period
            except LeaseLost as lost:
                log.error("%s", lost)
                self._lost = lost
                return
            except Exception as error:
                pause = period / 4
                log.warning("the lease could not be renewed (%s); trying again in %.1f s", reason(error), pause)

    def _renew_once(self) -> None:
        """Write the lease anew if it is still ours. A write that ended after the lease had run out may have brought back what a successor deleted."""
        began = time.time()
        self._holding.check()
        self._storage.write_bytes(lease_path(self._holding.generation), self._document())
        if time.time() - began > self._validity.total_seconds():
            self._holding.check()
            self._storage.delete(lease_path(self._holding.generation))
            raise LeaseLost(f"the lease of {self._storage.shown} ran out while it was renewed; nothing more is written, run the same command again")

    def _document(self) -> bytes:
        record = {
            "host": socket.gethostname(),
            "namespace": _process_namespace(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "renewed": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "valid_seconds": self._validity.total_seconds(),
            "token": self._holding.token,
        }
        return json.dumps(record, sort_keys=True).encode()


def _newest(storage: Storage) -> tuple[int, Mapping[str, Any]]:
    """Return generation and record of the last lease, 0 where there is none.

    They are listed, not counted up: a run that was killed while it gave its leases back leaves the later ones.
    """
    generations = sorted((generation for path in storage.find(WORK) if (generation := _generation(path))), reverse=True)
    for generation in generations:
        if record := _record(storage, generation):
            return generation, record
    return 0, {}


def _generation(path: str) -> int:
    """Return which generation of leases lies at a path, 0 where it is no lease's."""
    if path == PATH:
        return 1
    number = path.removeprefix(f"{WORK}/lease.").removesuffix(".json")
    return int(number) if number.isdecimal() and is_lease(path) else 0


def _record(storage: Storage, generation: int) -> dict[str, Any]:
    """Return what the lease of a generation says: empty where there is none, a record without token where it cannot be read."""
    try:
        record = json.loads(storage.read_bytes(lease_path(generation)))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, IsADirectoryError):
        record = None
    return record if isinstance(record, dict) and record else {"damaged": True}


def _is_live(record: Mapping[str, Any]) -> bool:
    """Return whether the holder of a lease may still be at work."""
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(record["renewed"])
        valid = timedelta(seconds=float(record["valid_seconds"]))
        here = (record["host"], record["namespace"]) == (socket.gethostname(), _process_namespace())
        return age <= valid and not (here and not _is_running(int(record["pid"]), float(record["process_started"])))
    except (ValueError, KeyError, TypeError, OverflowError):
        return False


def _in_words(record: Mapping[str, Any]) -> str:
    if not {"pid", "host", "renewed"} <= record.keys():
        return "its lease is damaged"
    return f"process {record['pid']} on {record['host']}, last heard of {str(record['renewed'])[:19].replace('T', ' ')} UTC"


def _process_namespace() -> str:
    """Return what tells the processes of one container from those of another that calls itself by the same host name."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _is_running(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1.0
    except psutil.NoSuchProcess:
        return False
