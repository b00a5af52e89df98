"""The log of a run, kept beside its plan: there up to its last minute, whatever ends the run."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
import time
from types import TracebackType

from pipeline.faults import reason, without_secrets
from pipeline.storage import Storage

log = logging.getLogger(__name__)

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FIRST_SECONDS, EVERY_SECONDS = 5.0, 60.0
"""How long after the start the log is first written, and how long after each time again."""
SHARE = 0.02
"""Of the time that writing the log may take: a store on which it takes long gets it less often."""
LAST_SECONDS = 60.0
"""How long the end of a run waits for a write that is under way."""


class Discreet(logging.Formatter):
    """Formatter whose lines, tracebacks included, have no user names, passwords and queries of URLs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return without_secrets(super().format(record))


class RunLog:
    """Context manager that keeps all log lines of this process at ``path`` in the output, after what an earlier attempt wrote there.

    They are collected in a file without a name, so that a killed process leaves none behind, and written to the output now and then by a thread of
    their own. A log that cannot be written never fails its run.

    Parameters
    ----------
    storage
        The output.
    path
        Of the log in it.
    first, every
        Seconds until the log is written for the first time, and then between two times.
    """

    def __init__(self, storage: Storage, path: str, first: float = FIRST_SECONDS, every: float = EVERY_SECONDS) -> None:
        self._storage = storage
        self._path = path
        self._first, self._every = first, every
        self._earlier: bytes | None = None
        self._written = -1
        self._ended = threading.Event()
        self._writer = threading.Thread(target=self._write_now_and_then, name="run log", daemon=True)

    def __enter__(self) -> RunLog:
        """Begin to collect."""
        self._collected = tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace", prefix="spexmap-")
        self._handler = logging.StreamHandler(self._collected)
        self._handler.setFormatter(Discreet(FORMAT))
        logging.getLogger().addHandler(self._handler)
        self._writer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write what was collected."""
        if error is not None:
            log.error("the run stopped: %s", reason(error))
        logging.getLogger().removeHandler(self._handler)
        self._ended.set()
        self._writer.join(LAST_SECONDS)
        if self._writer.is_alive():
            log.warning("the log is still being written to %s/%s; its end may be missing there", self._storage.shown, self._path)
            return
        self._attempt(self._storage if error is None else self._storage.hurried)
        self._collected.close()

    def _write_now_and_then(self) -> None:
        pause = self._first
        while not self._ended.wait(pause):
            started = time.monotonic()
            self._attempt(self._storage.hurried)
            pause = max(self._every, (time.monotonic() - started) / SHARE)

    def _attempt(self, storage: Storage) -> None:
        try:
            self._write(storage)
        except Exception as error:
            log.warning("the log of the run could not be written (%s)", reason(error))

    def _write(self, storage: Storage) -> None:
        """Write all lines after those of an earlier attempt, where there are new ones."""
        size = os.fstat(self._collected.fileno()).st_size
        if size == self._written:
            return
        if self._earlier is None:
            self._earlier = storage.read_if_there(self._path) or b""
        storage.write_bytes(self._path, self._earlier + os.pread(self._collected.fileno(), size, 0))
        self._written = size
