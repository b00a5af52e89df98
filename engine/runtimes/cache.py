"""Engine files on this node: made once, written whole, checked when read."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

log = logging.getLogger(__name__)

_DIGEST = 32


def default_folder() -> Path:
    """Return ``SPEXMAP_CACHE``, else ``spexmap`` in the user's cache folder."""
    given = os.environ.get("SPEXMAP_CACHE")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spexmap"


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the name of an engine file: SHA-256, in hex, of everything that decides what is in it."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class EngineCache:
    """A folder of engine files. A file begins with the SHA-256 of what follows; one that does not fit its own is made again."""

    folder: Path = field(default_factory=default_folder)

    def get(self, key: str, build: Callable[[], bytes]) -> bytes:
        """Return the engine of a key, from the folder if it is there and whole, else built and kept.

        Only one process of a node builds a key at a time. A folder that cannot be written costs a warning, not the run.
        """
        found = self.read(key)
        if found is not None:
            return found
        try:
            lock = self._lock(key)
        except OSError as error:
            log.warning("engines cannot be kept in %s (%s): every start builds them again; set SPEXMAP_CACHE to a folder", self.folder, error)
            return build()
        with lock:
            found = self.read(key)
            if found is None:
                found = build()
                self.write(key, found)
        return found

    def forget(self, key: str) -> None:
        """Drop what is kept under a key, so that it is made again."""
        with suppress(OSError):
            (self.folder / key).unlink(missing_ok=True)

    def _lock(self, key: str) -> IO[str]:
        """Return a file that no other process has locked until it is closed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = (self.folder / f"{key}.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def read(self, key: str) -> bytes | None:
        """Return what is kept under a key; None where there is nothing, or with a warning where it is damaged."""
        path = self.folder / key
        try:
            with path.open("rb") as file:
                digest, content = file.read(_DIGEST), file.read()
        except OSError:
            return None
        if hashlib.sha256(content).digest() == digest:
            return content
        log.warning("the engine file %s is damaged: it is built again", path)
        return None

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield an empty folder for files too large to keep, beside the engines, for there is room; gone afterwards."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            room = TemporaryDirectory(prefix=".graph-", dir=self.folder, ignore_cleanup_errors=True)
        except OSError:
            room = TemporaryDirectory(prefix="spexmap-graph-", ignore_cleanup_errors=True)
        with room as folder:
            yield Path(folder)

    def write(self, key: str, content: bytes) -> None:
        """Keep bytes under a key, whole or not at all; where that is not possible, only warn."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            unfinished = self.folder / f".{key}.{os.getpid()}.{threading.get_ident()}"
            try:
                with unfinished.open("wb") as file:
                    file.write(hashlib.sha256(content).digest())
                    file.write(content)
                unfinished.replace(self.folder / key)
            finally:
                unfinished.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the engine could not be kept in %s (%s): the next start builds it again", self.folder, error)
