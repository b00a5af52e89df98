"""If these fail, the same place gets another class in another block, or no data and doubt are shown as a class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.blocks import BlockExecutor, Planes, device_bytes
from engine.errors import PlannerFailed
from engine.windows import padded_span

BANDS, CLASSES, WINDOW, STRIDE = 3, 4, 24, 16


class SmallPlanner(nn.Module):
    """A fixed convolution that looks at the whole window (so that window borders matter) and a softmax with a null logit of 0."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.near = nn.Parameter(torch.randn((CLASSES, BANDS, 5, 5), generator=generator))
        self.far = nn.Parameter(torch.randn((CLASSES, BANDS), generator=generator))

    def forward(self, reflectance: Tensor) -> Tensor:
        filled = reflectance.nan_to_num(0)
        near = nn.functional.conv2d(filled, self.near, padding=2)
        far = filled.mean((-2, -1)) @ self.far.T
        logits = torch.cat([near + far[:, :, None, None], torch.zeros_like(near[:, :1])], 1)
        return logits.softmax(1)[:, :CLASSES]


class Constant(nn.Module):
    """Gives each class one probability everywhere."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.probabilities = probabilities

    def forward(self, reflectance: Tensor) -> Tensor:
        n, _, height, width = reflectance.shape
        return torch.tensor(self.probabilities)[None, :, None, None].expand(n, -1, height, width)


def place(top: int, left: int, bottom: int, right: int) -> NDArray[np.uint16]:
    """Harmonised numbers of a made-up place that is the same whichever part of it is asked for, with holes."""
    rows, columns = np.mgrid[top:bottom, left:right]
    bands = [1000 + (rows * 37 * (band + 1) + columns * 53 + rows * columns * (band + 3)) % 6000 for band in range(BANDS)]
    holes = ((rows // 9 + columns // 7) % 5 == 0) | (rows < -20)
    return np.where(holes, 0, np.stack(bands)).astype(np.uint16)


def segment(executor: BlockExecutor, top: int, left: int, bottom: int, right: int, extra: int = 0) -> Planes:
    rows, columns = (padded_span(a, b, executor.window, executor.stride) for a, b in ((top, bottom), (left, right)))
    outer = rows[0] - extra, columns[0] - extra, rows[1] + extra, columns[1] + extra
    return executor.segment(place(*outer), outer[0], outer[1], (top, left, bottom, right))


@pytest.fixture(scope="module")
def executor() -> BlockExecutor:
    torch.manual_seed(0)
    return BlockExecutor(SmallPlanner(), CLASSES, [0.3] * CLASSES, WINDOW, STRIDE)


@pytest.fixture(scope="module")
def whole(executor: BlockExecutor) -> Planes:
    return segment(executor, -40, -40, 90, 100)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_pixel_gets_the_same_bytes_in_any_block(executor: BlockExecutor, whole: Planes, data: st.DataObject) -> None:
    top, left = data.draw(st.integers(-40, 85)), data.draw(st.integers(-40, 95))
    bottom, right = data.draw(st.integers(top + 1, 90)), data.draw(st.integers(left + 1, 100))
    part = segment(executor, top, left, bottom, right, data.draw(st.integers(0, 3)))
    cut = slice(top + 40, bottom + 40), slice(left + 40, right + 40)
    assert part.landcover.tobytes() == whole.landcover[cut].tobytes()
    assert part.confidence.tobytes() == whole.confidence[cut].tobytes()
    assert part.runner_up.tobytes() == whole.runner_up[cut].tobytes()
    assert part.margin.tobytes() == whole.margin[cut].tobytes()


@pytest.mark.parametrize("stride", [5, 11, 24])
def test_every_pixel_is_decided_at_any_stride(stride: int) -> None:
    planes = segment(BlockExecutor(SmallPlanner(), CLASSES, [0.0] * CLASSES, WINDOW, stride), -13, 4, 18, 43)
    empty = (place(-13, 4, 18, 43) == 0).all(0)
    assert ((planes.landcover == 0) == empty).all() and ((planes.confidence == 255) == empty).all()
    assert set(np.unique(planes.landcover)) <= {0, *range(1, CLASSES + 1)}


def test_the_blend_is_the_weighted_mean_of_all_windows(executor: BlockExecutor, whole: Planes) -> None:
    from engine.windows import blend_total, blend_weights, window_starts

    weights = np.outer(blend_weights(WINDOW, STRIDE), blend_weights(WINDOW, STRIDE))
    sums = np.zeros((CLASSES, 200, 200))
    for y in window_starts(-40, 90, WINDOW, STRIDE):
        for x in window_starts(-40, 100, WINDOW, STRIDE):
            numbers = place(y, x, y + WINDOW, x + WINDOW)
            reflectance = np.where(numbers == 0, np.nan, numbers / 1e4 - 0.1).astype(np.float32)
            probabilities = executor.planner(torch.from_numpy(reflectance[None]))[0].detach().double().numpy()
            sums[:, y + 64 : y + 64 + WINDOW, x + 64 : x + 64 + WINDOW] += probabilities * weights
    blended = sums[:, 24:154, 24:164] / blend_total(WINDOW, STRIDE) ** 2
    expected = np.where(blended.max(0) >= 0.3, blended.argmax(0) + 1, 255)
    valid = whole.landcover != 0
    assert (whole.landcover == expected)[valid].mean() > 0.999
    share = np.where(whole.landcover == 255, 1 - blended.max(0), blended.max(0))
    assert np.abs(whole.confidence - 100 * share)[valid].max() <= 0.52


def test_batches_do_not_change_the_map(whole: Planes) -> None:
    planes = segment(BlockExecutor(SmallPlanner(), CLASSES, [0.3] * CLASSES, WINDOW, STRIDE, batch=7), -40, -40, 90, 100)
    assert (planes.landcover == whole.landcover).mean() > 0.9995


def test_the_planner_always_sees_the_same_shape() -> None:
    shapes = set()

    class Watched(SmallPlanner):
        def forward(self, reflectance: Tensor) -> Tensor:
            shapes.add(tuple(reflectance.shape))
            return super().forward(reflectance)

    segment(BlockExecutor(Watched(), CLASSES, [0.3] * CLASSES, WINDOW, STRIDE, batch=4), 0, 0, 37, 50)
    assert shapes == {(4, BANDS, WINDOW, WINDOW)}


def test_ties_go_to_the_lowest_class_and_doubt_is_other() -> None:
    numbers = place(-16, -16, 40, 40)
    inner = (0, 0, 32, 32)
    tie = BlockExecutor(Constant(0.2, 0.4, 0.4), 3, [0.1] * 3, WINDOW, STRIDE).segment(numbers, -16, -16, inner)
    assert set(np.unique(tie.landcover)) == {0, 2} and set(np.unique(tie.confidence)) == {40, 255}
    other = BlockExecutor(Constant(0.2, 0.4, 0.3), 3, [0.5] * 3, WINDOW, STRIDE).segment(numbers, -16, -16, inner)
    assert set(np.unique(other.landcover)) == {0, 255} and set(np.unique(other.confidence)) == {60, 255}
    # The highest class wins even below its own threshold, as long as some class passes its own.
    some = BlockExecutor(Constant(0.2, 0.4, 0.3), 3, [0.1, 0.5, 0.5], WINDOW, STRIDE).segment(numbers, -16, -16, inner)
    assert set(np.unique(some.landcover)) == {0, 2} and set(np.unique(some.confidence)) == {40, 255}


def test_a_wide_overlap_does_not_overflow() -> None:
    numbers = np.full((1, 800, 800), 5000, np.uint16)
    planes = BlockExecutor(Constant(1.0), 1, [0.5], 300, 100).segment(numbers, -300, -300, (0, 0, 200, 200))
    assert (planes.landcover == 1).all() and (planes.confidence == 100).all()


def test_windows_without_data_cost_nothing() -> None:
    planes = BlockExecutor(Constant(float("nan")), 1, [0.5], WINDOW, STRIDE).segment(np.zeros((1, 56, 56), np.uint16), -16, -16, (0, 0, 32, 32))
    assert (planes.landcover == 0).all() and (planes.confidence == 255).all()


def test_numbers_reach_the_model_as_reflectance() -> None:
    seen = []

    class Watched(Constant):
        def forward(self, reflectance: Tensor) -> Tensor:
            seen.append(reflectance)
            return super().forward(reflectance)

    numbers = np.zeros((1, WINDOW, WINDOW), np.uint16)
    numbers[0, 0, :4] = 1, 1000, 11000, 65535
    BlockExecutor(Watched(1.0), 1, [0.5], WINDOW, WINDOW).segment(numbers, 0, 0, (0, 0, WINDOW, WINDOW))
    assert torch.allclose(seen[0][0, 0, 0, :4], torch.tensor([-0.0999, 0.0, 1.0, 6.4535])) and seen[0][0, 0, 1:].isnan().all()


def test_a_broken_model_is_an_error_not_a_map() -> None:
    with pytest.raises(PlannerFailed, match="not numbers"):
        segment(BlockExecutor(Constant(float("nan")), 1, [0.5], WINDOW, STRIDE), 0, 0, 32, 32)


@pytest.mark.parametrize("inner", [(0, 0, 33, 10), (-9, 0, 10, 10), (0, 0, 10, 33)])
def test_a_block_without_its_halo_is_refused(inner: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="padded_span"):
        BlockExecutor(Constant(1.0), 1, [0.5], WINDOW, STRIDE).segment(np.ones((1, 56, 56), np.uint16), -16, -16, inner)


def test_device_memory_follows_the_published_formula() -> None:
    assert device_bytes(2880, 10, 4, 8, 320, 256, 1000) == 2880**2 * (2 * 10 * 2 + 4 * 4 + 2) + 8 * (4 * 10 * 320**2 + 4 * 4 * 320**2 + 1000)


@pytest.mark.parametrize(
    ("probabilities", "second", "margin"),
    [
        ((0.6, 0.3, 0.1), 2, 30),
        ((0.1, 0.3, 0.6), 2, 30),
        ((0.1, 0.6, 0.3), 3, 30),
        ((0.25, 0.5, 0.25), 1, 25),
        ((0.4, 0.4, 0.2), 2, 0),
        ((0.9,), 0, 90),
    ],
)
def test_the_class_that_came_second_is_told_and_by_how_much(probabilities: tuple[float, ...], second: int, margin: int) -> None:
    planes = segment(BlockExecutor(Constant(*probabilities), len(probabilities), [0.3] * len(probabilities), WINDOW, STRIDE), 0, 0, 20, 20)
    valid = planes.landcover != 0
    assert set(np.unique(planes.runner_up[valid])) == {second} and not planes.runner_up[~valid].any()
    assert (abs(planes.margin[valid].astype(int) - margin) <= 1).all() and not planes.margin[~valid].any()
