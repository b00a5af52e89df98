"""One run at a time in an output: a lease that is renewed while the run lives and that runs out when it does not."""

from __future__ import annotations

import json
import os
import socket
import threading
from datetime import UTC, datetime, timedelta
from types import TracebackType

import psutil

from pipeline.errors import OutputHeld
from pipeline.storage import WORK, Storage

PATH = f"{WORK}/lease.json"
VALID = timedelta(minutes=10)
RENEW_SECONDS = 60.0


class Lease:
    """Context manager that holds an output; entering raises `OutputHeld` where another run holds it.

    A lease counts as left behind when it is older than ten minutes, or when it was taken on this host by a process that is gone.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Take the lease, or raise `OutputHeld`."""
        if not self._storage.create_bytes(PATH, self._document()):
            holder = self._holder()
            if holder is not None:
                raise self._held_by(holder)
            self._storage.write_bytes(PATH, self._document())
        self._renewer.start()
        return self

    def refuse_if_held(self) -> None:
        """Raise `OutputHeld` where another run holds the output now; takes nothing."""
        if self._storage.exists(PATH):
            holder = self._holder()
            if holder is not None:
                raise self._held_by(holder)

    def _held_by(self, holder: str) -> OutputHeld:
        return OutputHeld(
            f"{self._storage.root} is held by another run ({holder}); wait for it, or delete {self._storage.url(PATH)} if that run is gone"
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give the lease back."""
        self._released.set()
        self._renewer.join(timeout=5)
        self._storage.delete(PATH)

    def _renew(self) -> None:
        while not self._released.wait(RENEW_SECONDS):
            self._storage.write_bytes(PATH, self._document())

    def _document(self) -> bytes:
        process = psutil.Process()
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": process.create_time(),
            "renewed": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return json.dumps(record, sort_keys=True).encode()

    def _holder(self) -> str | None:
        """Return who holds the output in words, or None where the lease was left behind."""
        try:
            record = json.loads(self._storage.read_bytes(PATH))
            renewed = datetime.fromisoformat(record["renewed"])
            host, pid, started = record["host"], int(record["pid"]), float(record["process_started"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if datetime.now(UTC) - renewed > VALID or (host == socket.gethostname() and not _is_running(pid, started)):
            return None
        return f"process {pid} on {host}, last heard of {renewed:%Y-%m-%d %H:%M:%S} UTC"


def _is_running(pid: int, started: float) -> bool:
    try:
        return abs(psutil.Process(pid).create_time() - started) < 1.0
    except psutil.NoSuchProcess:
        return False
