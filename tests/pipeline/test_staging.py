"""A staged block comes back as it was, and a damaged one is never taken for a finished one."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import PixelBox
from pipeline.staging import StagedBlock, delete_damaged, discard, read_staged, stage, staged_boxes, staged_path
from pipeline.storage import Storage

BOX = PixelBox(-7, 100, 13, 131)
FINGERPRINT = "ab" * 32


@pytest.fixture
def block() -> StagedBlock:
    return made_block()


def made_block() -> StagedBlock:
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


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_one_changed_bit_is_never_taken_for_the_block(place: float, bit: int) -> None:
    block = made_block()
    data = bytearray(block.to_bytes())
    data[int(place * len(data))] ^= 1 << bit
    try:
        back = StagedBlock.from_bytes(bytes(data))
    except ValueError:
        return
    assert (back.box, back.statistics) == (block.box, block.statistics)
    assert all((back.planes[name] == plane).all() for name, plane in block.planes.items())


def test_all_damaged_blocks_go_at_once_and_others_stay(block: StagedBlock, tmp_path: Path) -> None:
    storage, missing = Storage(str(tmp_path)), PixelBox(1, 1, 2, 2)
    stage(storage, FINGERPRINT, block)
    damaged = tuple(PixelBox(0, left, 20, left + 31) for left in range(0, 124, 31))
    for box in damaged:
        storage.write_bytes(staged_path(FINGERPRINT, box), b"")
    storage.write_bytes(staged_path(FINGERPRINT, BOX).replace(".arrow", " (copy).arrow"), b"")
    assert staged_boxes(storage, FINGERPRINT) == {BOX, *damaged}
    delete_damaged(storage, FINGERPRINT, (damaged[0], BOX, missing, *damaged[1:]))
    assert staged_boxes(storage, FINGERPRINT) == {BOX}


def test_block_that_lies_in_another_ones_place_is_refused(block: StagedBlock, tmp_path: Path) -> None:
    storage, other = Storage(str(tmp_path)), PixelBox(0, 100, 20, 131)
    storage.write_bytes(staged_path(FINGERPRINT, other), block.to_bytes())
    with pytest.raises(ValueError, match="holds another block"):
        list(read_staged(storage, FINGERPRINT, (other,)))
