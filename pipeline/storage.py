"""Where a run writes: one folder on any file system that fsspec reaches, with writes that are whole or not there."""

from __future__ import annotations

import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import JobError, RunInterrupted

WORK = ".work"
"""Folder of everything that is not published: staged blocks, the lease, files that are being written."""


@dataclass(frozen=True)
class Storage:
    """A folder (local path or any fsspec URL); every path given to a method is relative to it, with forward slashes.

    A write is atomic: readers see the old bytes or the new ones, never a part. Locally that is a temporary file under
    ``.work``, flushed and renamed; object stores make an object visible only when it is complete.
    """

    root: str

    @property
    def fs(self) -> Any:
        """The fsspec file system (fsspec keeps one instance per process and protocol)."""
        return fsspec.core.url_to_fs(self.root)[0]

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on this machine's own file system."""
        return isinstance(self.fs, LocalFileSystem)

    def url(self, path: str = "") -> str:
        """Return `path` as a local path or full URL: what a person, rasterio or another fsspec user opens."""
        base = str(fsspec.core.url_to_fs(self.root)[1]) if self.is_local else self.root.rstrip("/")
        return f"{base}/{path}" if path else base

    def exists(self, path: str) -> bool:
        """Return whether a file or folder lies at `path`."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.url(path)))

    def size(self, path: str) -> int:
        """Return the size in bytes of the file at `path`; FileNotFoundError where there is none."""
        self.fs.invalidate_cache()
        return int(self.fs.size(self.url(path)))

    def read_bytes(self, path: str) -> bytes:
        """Return the whole file at `path`; FileNotFoundError where there is none."""
        return bytes(self.fs.cat_file(self.url(path)))

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write `data` as the file at `path`, whole or not at all, replacing what is there."""
        if not self.is_local:
            self.fs.pipe_file(self.url(path), data)
            return
        temporary = self._temporary(path)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.url(path))

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Write `data` at `path` only if nothing is there; return whether it was written.

        Of several that try at once one wins, where the store has conditional writes.
        """
        if not self.is_local:
            return self._create_object(path, data)
        temporary = self._temporary(path)
        temporary.write_bytes(data)
        try:
            os.link(temporary, self.url(path))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def _create_object(self, path: str, data: bytes) -> bool:
        if self.exists(path):
            return False
        try:
            self.fs.pipe_file(self.url(path), data, mode="create")
        except FileExistsError:
            return False
        return True

    def put_file(self, local: Path, path: str) -> None:
        """Copy the file `local` to `path`, whole or not at all, and check that it arrived with its full size."""
        if self.is_local:
            temporary = self._temporary(path)
            LocalFileSystem().put_file(str(local), str(temporary))
            temporary.replace(self.url(path))
        else:
            self.fs.put_file(str(local), self.url(path))
        arrived, sent = self.size(path), local.stat().st_size
        if arrived != sent:
            raise RunInterrupted(f"{self.url(path)}: {arrived} of {sent} bytes arrived; run the same command again")

    def find(self, prefix: str = "") -> list[str]:
        """Return all files below the folder `prefix`, relative to the root, sorted; empty where there is no such folder."""
        self.fs.invalidate_cache()
        base = self.fs._strip_protocol(self.url())
        try:
            found = self.fs.find(self.url(prefix))
        except FileNotFoundError:
            return []
        return sorted(name[len(base) :].lstrip("/") for name in found)

    def delete(self, path: str) -> None:
        """Delete the file or folder at `path`, and the local folders below the root that this leaves empty; nothing there is no error."""
        if self.exists(path):
            self.fs.rm(self.url(path), recursive=True)
        if self.is_local:
            self._remove_empty_folders(Path(path).parent)

    def _remove_empty_folders(self, folder: Path) -> None:
        for each in (folder, *folder.parents):
            if each == Path():
                return
            try:
                Path(self.url(str(each))).rmdir()
            except OSError:
                return

    def check_writable(self) -> None:
        """Raise JobError where the folder cannot be written, leaving nothing behind."""
        try:
            if self.is_local:
                self._check_local_folder()
            else:
                self._check_object_store()
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise JobError(f"output {self.root} cannot be written ({reason}); name a folder or bucket that you may write to") from error

    def _check_local_folder(self) -> None:
        folder = Path(self.url()).absolute()
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is a file")
        # By doing: what os.access says of root, of read-only and of virtual file systems is not so.
        Path(tempfile.mkdtemp(prefix=".spexmap-", dir=folder)).rmdir()

    def _check_object_store(self) -> None:
        probe = f".spexmap-{uuid.uuid4().hex}"
        self.write_bytes(probe, b"-")
        self.delete(probe)

    def _temporary(self, path: str) -> Path:
        """Return where `path` is written before it is renamed: apart from what is published, so that a killed writer leaves nothing there."""
        Path(self.url(path)).parent.mkdir(parents=True, exist_ok=True)
        folder = Path(self.url(WORK))
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{uuid.uuid4().hex}.part"
