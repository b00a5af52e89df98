"""The log of a run, kept beside its plan."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from types import TracebackType

from pipeline.storage import Storage

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RunLog:
    """Context manager that writes all log lines of this process to ``path`` in the output when it ends, after what an earlier attempt wrote there."""

    def __init__(self, storage: Storage, path: str) -> None:
        self._storage = storage
        self._path = path

    def __enter__(self) -> RunLog:
        """Begin to collect."""
        handle, name = tempfile.mkstemp(prefix="spexmap-", suffix=".log")
        os.close(handle)
        self._local = Path(name)
        self._handler = logging.FileHandler(self._local)
        self._handler.setFormatter(logging.Formatter(FORMAT))
        logging.getLogger().addHandler(self._handler)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Write what was collected."""
        if error is not None:
            logging.getLogger(__name__).error("the run stopped: %s: %s", type(error).__name__, error)
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()
        try:
            earlier = self._storage.read_bytes(self._path) if self._storage.exists(self._path) else b""
            self._storage.write_bytes(self._path, earlier + self._local.read_bytes())
        finally:
            self._local.unlink()
