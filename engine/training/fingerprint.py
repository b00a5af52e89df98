"""Which data a training reads, told apart by the names, sizes and ends of files: a folder may move, but not change."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.training.config import ImagerySpec, TrainingSpec
from engine.training.imagery import files_of

END_BYTES = 65536
"""How much of the beginning and of the end of a file counts. An .npz has the checksums of its arrays at the end; labels are seldom larger."""


def data_identity(spec: TrainingSpec) -> dict[str, Any]:
    """Return what the data of the chosen stages are, in words: ``{"chips": "41 files of 1203344 bytes (1f0c5a2e)"}``."""
    names = {name for stage in spec.stages.chosen for name in spec.needs(stage)}
    given: dict[str, Any] = {name: _one(spec.data.path(name)) for name in sorted(names - {"unlabelled"})}
    if "unlabelled" in names:
        root = Path(spec.data.root)
        given["unlabelled"] = {str(number): _imagery(each, root) for number, each in enumerate(spec.data.unlabelled)}
    return given


def _imagery(spec: ImagerySpec, root: Path) -> dict[str, Any]:
    return {**spec.model_dump(mode="json", exclude={"path"}), "files": fingerprint(files_of(spec, root))}


def _one(path: Path) -> str:
    # Of a folder what `load_chip_folder` reads: the output of a training may lie in it.
    inside = (each for pattern in ("classes.yaml", "images/*.tif", "labels/*.tif") for each in sorted(path.glob(pattern)))
    return fingerprint((path,) if path.is_file() else inside)


def fingerprint(files: Iterable[Path]) -> str:
    """Return number, bytes and a digest of files in the order given; of their paths only the names count."""
    digest, count, size = hashlib.sha256(), 0, 0
    for path in files:
        length = path.stat().st_size
        digest.update(f"{path.name}\0{length}\0".encode())
        with path.open("rb") as file:
            digest.update(file.read(END_BYTES))
            file.seek(max(length - END_BYTES, 0))
            digest.update(file.read())
        count, size = count + 1, size + length
    return f"{count} files of {size} bytes ({digest.hexdigest()[:8]})" if count else "no files"
