"""A staged block comes back as it was, and a damaged one is never taken for a finished one."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.grid import PixelBox
from pipeline.staging import StagedBlock, discard, read_staged, stage, staged_boxes, staged_path
from pipeline.storage import Storage

BOX = PixelBox(-7, 100, 13, 131)
FINGERPRINT = "ab" * 32


@pytest.fixture
def block() -> StagedBlock:
    rng = np.random.default_rng(0)
    types = {"landcover": np.uint8, "confidence": np.uint8, "source": np.uint16, "quality": np.uint8}
    return StagedBlock(BOX, {name: rng.integers(0, 255, BOX.shape).astype(kind) for name, kind in types.items()}, {"1": {"pixels": 2**40}})


def test_block_comes_back(block: StagedBlock, tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    stage(storage, FINGERPRINT, block)
    assert staged_boxes(storage, FINGERPRINT) == {BOX}
    (back,) = read_staged(storage, FINGERPRINT, (BOX,))
    assert back.box == BOX
    assert back.statistics == block.statistics
    for name, plane in block.planes.items():
        assert back.planes[name].dtype == plane.dtype
        np.testing.assert_array_equal(back.planes[name], plane)
    discard(storage, FINGERPRINT)
    assert staged_boxes(storage, FINGERPRINT) == set()


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.99])
def test_truncated_block_is_refused(block: StagedBlock, tmp_path: Path, kept: float) -> None:
    storage = Storage(str(tmp_path))
    data = block.to_bytes()
    storage.write_bytes(staged_path(FINGERPRINT, BOX), data[: int(kept if kept >= 1 else kept * len(data))])
    with pytest.raises(ValueError, match="damaged staged block"):
        list(read_staged(storage, FINGERPRINT, (BOX,)))
