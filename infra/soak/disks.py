"""Disks that are soon full: small file systems where a run writes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def missing() -> str:
    """Return why this machine cannot have them, else nothing."""
    return "" if os.geteuid() == 0 and shutil.which("mount") else "mounting needs root"


def mount_small(folder: Path, size: str) -> None:
    """Make `folder` a file system of its own; `size` as ``100k`` or ``60m``."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "soak", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    """Give such a file system all the room that a run needs; what lies there stays."""
    subprocess.run(["mount", "-o", "remount,size=256m", str(folder)], check=True)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Let `folder` be a file system of its own until the block ends."""
    mount_small(folder, size)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
