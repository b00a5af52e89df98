"""Finished blocks of tiles that are not yet committed, under ``.work/<fingerprint>/`` of the output.

A staged block is one Arrow file: a column for each plane, zstd-compressed, with the block's statistics beside them and a checksum over all of it, for
neither Arrow nor zstd as Arrow writes it notices a changed bit. What cannot be read back as it was written counts as not there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
from numpy.typing import NDArray

from pipeline.grid import PixelBox
from pipeline.storage import WORK, Storage

PLANES = ("landcover", "confidence", "source", "quality")
"""Names of the planes, in the order of the columns: uint8, uint8, uint16, uint8, each (height, width)."""
_NAME = re.compile(r"(-?\d+)_(-?\d+)_(-?\d+)_(-?\d+)\.arrow")
"""Of a staged block: top, left, bottom, right. What is called otherwise was not put there by a run."""


@dataclass(frozen=True)
class StagedBlock:
    """The planes of one block, clipped to its tile, and what was counted over them."""

    box: PixelBox
    planes: Mapping[str, NDArray[Any]]
    statistics: Mapping[str, Any]
    """JSON-ready integers; see `pipeline.explanations`."""

    def to_bytes(self) -> bytes:
        """Return the block as an Arrow file."""
        box = self.box
        metadata = json.dumps({"box": [box.top, box.left, box.bottom, box.right], "statistics": self.statistics})
        table = pa.table({name: self.planes[name].ravel() for name in PLANES})
        table = table.replace_schema_metadata({"block": metadata, "sha256": _checksum(metadata.encode(), self.planes)})
        sink = pa.BufferOutputStream()
        with ipc.new_file(sink, table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
        return bytes(sink.getvalue())

    @classmethod
    def from_bytes(cls, data: bytes) -> StagedBlock:
        """Return the block that `to_bytes` wrote; raises ValueError where it is damaged."""
        try:
            table = ipc.open_file(pa.BufferReader(data)).read_all()
            block = json.loads(table.schema.metadata[b"block"])
            box = PixelBox(*block["box"])
            planes = {name: table[name].to_numpy().reshape(box.shape) for name in PLANES}
            intact = table.schema.metadata[b"sha256"].decode() == _checksum(table.schema.metadata[b"block"], planes)
        except (pa.ArrowException, KeyError, TypeError, OSError, ValueError) as error:
            raise ValueError(f"damaged staged block: {error}") from error
        if not intact:
            raise ValueError("damaged staged block: its checksum differs")
        return cls(box, planes, block["statistics"])


def _checksum(metadata: bytes, planes: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.sha256(metadata)
    for name in PLANES:
        digest.update(np.ascontiguousarray(planes[name]).data)
    return digest.hexdigest()


def stage(storage: Storage, fingerprint: str, block: StagedBlock) -> None:
    """Write `block` for the tile with this fingerprint."""
    storage.write_bytes(staged_path(fingerprint, block.box), block.to_bytes(), has_checksum=True)


def staged_boxes(storage: Storage, fingerprint: str) -> set[PixelBox]:
    """Return the boxes of the blocks that are staged for the tile with this fingerprint."""
    names = (path.rsplit("/", 1)[-1] for path in storage.find(f"{WORK}/{fingerprint}"))
    return {PixelBox(*map(int, found.groups())) for name in names if (found := _NAME.fullmatch(name))}


def read_staged(storage: Storage, fingerprint: str, boxes: tuple[PixelBox, ...]) -> Iterator[StagedBlock]:
    """Yield the staged blocks of `boxes`, one at a time; raises FileNotFoundError or ValueError where one is missing or damaged."""
    for box in boxes:
        block = StagedBlock.from_bytes(storage.read_bytes(staged_path(fingerprint, box)))
        if block.box != box:
            raise ValueError(f"damaged staged block: {staged_path(fingerprint, box)} holds another block")
        yield block


def delete_damaged(storage: Storage, fingerprint: str, boxes: tuple[PixelBox, ...]) -> None:
    """Delete every block of `boxes` that cannot be read back, so that all of them are made again at once."""
    for box in boxes:
        try:
            for _ in read_staged(storage, fingerprint, (box,)):
                pass
        except ValueError:
            storage.delete(staged_path(fingerprint, box))
        except FileNotFoundError:
            pass


def discard(storage: Storage, fingerprint: str) -> None:
    """Delete what is staged for the tile with this fingerprint."""
    storage.delete(f"{WORK}/{fingerprint}")


def staged_path(fingerprint: str, box: PixelBox) -> str:
    """Return where a block of the tile with this fingerprint lies, relative to the output."""
    return f"{WORK}/{fingerprint}/{box.top}_{box.left}_{box.bottom}_{box.right}.arrow"
