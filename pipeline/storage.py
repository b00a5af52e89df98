"""Where a run writes: one folder on any file system that fsspec reaches, with writes that are whole or not there."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import AccessLost, JobError, RunInterrupted, StorageRefused, StorageUnavailable
from pipeline.faults import ArrivedShort, carries_password, is_condition_unknown, reason, retried, s3_options, shown_url
from spexmap import SpexmapError
from stac.deadline import within

T = TypeVar("T")

WORK = ".work"
"""Folder of everything that is not published: staged blocks, the lease, files that are being written."""

WHOLE_SECONDS = 900.0
"""For one attempt to read a file: the limits of the clients begin anew with every byte."""
HURRIED_SECONDS = 15.0
FENCE_SECONDS = 2.0
"""So long a look at who holds a remote folder counts: a write may be under way for longer, and cannot be called back."""


class Fence(Protocol):
    """Says whether this process may still write; it travels to other processes with the storage. It can be hashed."""

    def check(self) -> None:
        """Raise `LeaseLost` where another run holds the output by now."""


_checked: dict[Fence, float] = {}
"""When this process last looked, in seconds of `_CLOCK`."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on while the machine sleeps, where the system has such a clock: a process that wakes up looks again."""


@dataclass(frozen=True)
class Storage:
    """A folder (local path or any fsspec URL); every path given to a method is relative to it, with forward slashes.

    A write is atomic: readers see the old bytes or the new ones, never a part. Locally that is a temporary file under
    ``.work``, flushed and renamed; object stores make an object visible only when it is complete. What an object store or the way to it does
    wrong for a while is tried again, see `pipeline.faults`.
    """

    root: str
    fence: Fence | None = None
    """Asked before every write and delete. With one, a run is under way: where access is refused then, the run is interrupted, not its job wrong."""
    is_hurried: bool = False
    """Whether a remote store is asked once and for `HURRIED_SECONDS` only."""

    @property
    def hurried(self) -> Storage:
        """The same folder for what need not succeed: a store that has just been waited for in vain is not waited for again."""
        return replace(self, is_hurried=True)

    @property
    def fs(self) -> Any:
        """The fsspec file system (fsspec keeps one instance per process and protocol); JobError where there is none for such a URL."""
        options = s3_options(fsspec.config.conf.get("s3", {})) if self._is_s3 else {}
        try:
            fs = fsspec.core.url_to_fs(self.root, **options)[0]
        except (ImportError, ValueError, OSError) as error:
            raise JobError(
                f"{self.shown} cannot be opened ({reason(error)}); give a folder, or a URL such as s3://bucket/folder whose package is installed"
            ) from error
        if not self._is_s3:
            return fs
        # Its own repetitions would multiply with botocore's and with ours: five time-outs in the place of one.
        fs.retries = 1
        return fs

    @property
    def _is_s3(self) -> bool:
        return self.root.startswith(("s3://", "s3a://"))

    @property
    def is_local(self) -> bool:
        """Whether the folder lies on this machine's own file system."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def shown(self) -> str:
        """The folder as it may be printed: without user name, password and query."""
        return shown_url(self.root)

    def url(self, path: str = "") -> str:
        """Return `path` as a local path or full URL: what a person, rasterio or another fsspec user opens."""
        base = str(fsspec.core.url_to_fs(self.root)[1]) if self.is_local else self.root.rstrip("/")
        return f"{base}/{path}" if path else base

    def check_fence(self, afresh: bool = False) -> None:
        """Raise `LeaseLost` where this process may write no more; `afresh` looks also where the last look still counts."""
        began = time.clock_gettime(_CLOCK)
        if self.fence is None or (not afresh and not self.is_local and began < _checked.get(self.fence, -inf) + FENCE_SECONDS):
            return
        with self._under_way():
            self._in_time(f"look who holds {self.shown}", self.fence.check)
        _checked[self.fence] = began

    def answers(self) -> bool:
        """Return whether the store takes a write now; asked once."""
        probe = f"{WORK}/{uuid.uuid4().hex}.probe"
        try:
            self.hurried.write_bytes(probe, b"-")
            self.hurried.delete(probe)
        except (StorageUnavailable, AccessLost):
            return False
        return True

    def exists(self, path: str) -> bool:
        """Return whether a file or folder lies at `path`."""
        return self._asked("look for", path, lambda: self._exists(path))

    def size(self, path: str) -> int:
        """Return the size in bytes of the file at `path`; FileNotFoundError where there is none."""
        return self._asked("look at", path, lambda: self._size(path))

    def read_bytes(self, path: str) -> bytes:
        """Return the whole file at `path`; FileNotFoundError where there is none."""
        return self._asked("read", path, partial(within, WHOLE_SECONDS, lambda: self._cat(path)))

    def read_if_there(self, path: str) -> bytes | None:
        """Return the whole file at `path`, None where there is none."""
        try:
            return self.read_bytes(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_bytes(self, path: str, data: bytes, has_checksum: bool = False) -> None:
        """Write `data` as the file at `path`, whole or not at all, replacing what is there.

        Of data with a checksum in them, which whoever reads them looks at, a store is not asked whether they arrived with their full size.
        """
        self.check_fence()
        if not self.is_local:
            self._asked("write", path, lambda: self._pipe(path, data, has_checksum))
            return
        with self._renamed_to(path) as temporary, temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Write `data` at `path` only if nothing is there; return whether it was written.

        Of several that try at once one wins, where the store has conditional writes (see `refuses_overwriting`). False may also mean that the
        answer to a write of ours was lost: read what is there where that matters.
        """
        self.check_fence()
        if not self.is_local:
            return not self.exists(path) and self._create_object(path, data)
        temporary = self._temporary(path)
        try:
            temporary.write_bytes(data)
            os.link(temporary, self.url(path))
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def refuses_overwriting(self, path: str, data: bytes) -> bool:
        """Return whether the store has conditional writes, by trying one on the file that is at `path` and holds `data`."""
        return self.is_local or not self._create_object(path, data)

    def _create_object(self, path: str, data: bytes) -> bool:
        try:
            self._asked("create", path, lambda: self.fs.pipe_file(self.url(path), data, mode="create"))
        except FileExistsError:
            return False
        except OSError as error:
            if not is_condition_unknown(error):
                raise
            self._asked("write", path, lambda: self._pipe(path, data))
        return True

    def put_file(self, local: Path, path: str) -> None:
        """Copy the file `local` to `path`, whole or not at all, and check that it arrived with its full size."""
        self.check_fence()
        if not self.is_local:
            self._asked("write", path, lambda: self._put(local, path))
            return
        with self._renamed_to(path) as temporary:
            LocalFileSystem().put_file(str(local), str(temporary))
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        arrived, sent = self.size(path), local.stat().st_size
        if arrived != sent:
            raise RunInterrupted(f"{self.url(path)}: {arrived} of {sent} bytes arrived; run the same command again")

    def get_file(self, path: str, local: Path) -> None:
        """Copy the file at `path` to `local`; FileNotFoundError where there is none."""
        self._asked("read", path, partial(within, WHOLE_SECONDS, lambda: self.fs.get_file(self.url(path), str(local))))

    @contextmanager
    def local_copy(self, path: str, head: int | None = None) -> Iterator[Path]:
        """Yield the file at `path` as a local one: itself, or a copy that is gone afterwards. FileNotFoundError where there is none.

        With `head`, only so many bytes of a copy are those of the file, and the rest is a hole: enough for the header of a COG.
        """
        if self.is_local:
            yield Path(self.url(path))
            return
        with tempfile.TemporaryDirectory(prefix="spexmap-") as folder:
            copy = Path(folder) / Path(path).name
            if head is None:
                self.get_file(path, copy)
            else:
                copy.write_bytes(
                    self._asked("read", path, partial(within, WHOLE_SECONDS, lambda: bytes(self.fs.cat_file(self.url(path), start=0, end=head))))
                )
                os.truncate(copy, self.size(path))
            yield copy

    def _asked(self, verb: str, path: str, action: Callable[[], T]) -> T:
        """Return what the store answers, asked again while it has passing trouble; a local disk is asked once."""
        if self.is_local:
            return action()
        what = f"{verb} {self.shown.rstrip('/')}/{path}"
        with self._under_way():
            return self._in_time(what, partial(retried, what, action, attempts=1 if self.is_hurried else None))

    def _in_time(self, what: str, action: Callable[[], T]) -> T:
        """Return ``action()``; raises StorageUnavailable where it takes long and we are in a hurry."""
        if self.is_local or not self.is_hurried:
            return action()
        try:
            return within(HURRIED_SECONDS, action)
        except TimeoutError as error:
            raise StorageUnavailable(f"cannot {what}: {error}; run the same command again when it answers") from error

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        """Turn the loss of access in the middle of a run into what says so."""
        try:
            yield
        except StorageRefused as error:
            if self.fence is None:
                raise
            raise AccessLost(f"{error}; then run the same command again, it goes on from here") from error.__cause__

    def _cat(self, path: str) -> bytes:
        # A listing that was kept would hide what another process has written since, such as a lease.
        self.fs.invalidate_cache()
        # s3fs would look at the size first, and where nothing is there also for a folder: four calls in the place of one.
        options = {"max_concurrency": 1} if self._is_s3 else {}
        return bytes(self.fs.cat_file(self.url(path), **options))

    def _exists(self, path: str) -> bool:
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.url(path)))

    def _size(self, path: str) -> int:
        self.fs.invalidate_cache()
        return int(self.fs.size(self.url(path)))

    def _pipe(self, path: str, data: bytes, has_checksum: bool = False) -> None:
        self.fs.pipe_file(self.url(path), data)
        if not has_checksum:
            self._check_size(path, len(data))

    def _put(self, local: Path, path: str) -> None:
        self.fs.put_file(str(local), self.url(path))
        self._check_size(path, local.stat().st_size)

    def _check_size(self, path: str, sent: int) -> None:
        arrived = self._size(path)
        if arrived != sent:
            raise ArrivedShort(f"{arrived} of {sent} bytes arrived")

    def _remove(self, path: str) -> None:
        """Remove an object or all below it, and look again: s3fs says nothing of objects that a bulk delete left."""
        with suppress(FileNotFoundError):
            self.fs.invalidate_cache()
            self.fs.rm(self.url(path), recursive=True)
        if self._exists(path):
            raise ArrivedShort("it is still there after deleting it")

    def _listed(self, prefix: str) -> list[str]:
        self.fs.invalidate_cache()
        try:
            return list(self.fs.find(self.url(prefix)))
        except FileNotFoundError:
            return []

    def find(self, prefix: str = "") -> list[str]:
        """Return all files below the folder `prefix`, relative to the root, sorted; empty where there is no such folder."""
        base = self.fs._strip_protocol(self.url())
        found = self._asked("list", prefix, lambda: self._listed(prefix))
        return sorted(name[len(base) :].lstrip("/") for name in found)

    def delete(self, path: str) -> None:
        """Delete the file or folder at `path`, and the local folders below the root that this leaves empty; nothing there is no error."""
        self.check_fence()
        if not self.is_local:
            self._asked("delete", path, lambda: self._remove(path))
            return
        if self.exists(path):
            with suppress(FileNotFoundError):
                self.fs.rm(self.url(path), recursive=True)
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
        """Raise JobError where the folder cannot be written or its URL carries a password, leaving nothing behind."""
        if carries_password(self.root):
            raise JobError(
                f"output {self.shown} carries a password, which would stand in what a run writes; give it in the environment or in fsspec's settings"
            )
        try:
            if self.is_local:
                self._check_local_folder()
            else:
                self._check_object_store()
        except Exception as error:
            said = str(error) if isinstance(error, SpexmapError) else reason(error)
            raise JobError(f"output {self.shown} cannot be written ({said}); name a folder or bucket that you may write to") from error

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

    @contextmanager
    def _renamed_to(self, path: str) -> Iterator[Path]:
        """Yield a file to write that becomes `path` when the block ends well, and is gone where it does not: a full disk has no room for it."""
        temporary = self._temporary(path)
        try:
            yield temporary
            temporary.replace(self.url(path))
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def _temporary(self, path: str) -> Path:
        """Return where `path` is written before it is renamed: apart from what is published, so that a killed writer leaves nothing there."""
        Path(self.url(path)).parent.mkdir(parents=True, exist_ok=True)
        folder = Path(self.url(WORK))
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{uuid.uuid4().hex}.part"
