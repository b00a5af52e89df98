"""If these fail, a map shows seams at window borders, or misses rows and columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.windows import blend_total, blend_weights, padded_span, window_starts

LENGTHS = st.integers(1, 400).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


@given(LENGTHS)
def test_weights_of_overlapping_windows_sum_to_the_same_integer_everywhere(lengths: tuple[int, int]) -> None:
    window, stride = lengths
    weights = blend_weights(window, stride)
    padded = np.pad(weights, (0, -window % stride))
    assert weights.shape == (window,) and weights.min() >= 1
    assert (padded.reshape(-1, stride).sum(0) == blend_total(window, stride)).all()


@given(LENGTHS, st.integers(-3000, 3000), st.integers(1, 1000))
def test_windows_are_all_those_of_the_lattice_that_touch_the_span(lengths: tuple[int, int], start: int, length: int) -> None:
    window, stride = lengths
    stop = start + length
    lattice = range((start - 2 * window) // stride * stride, stop + window, stride)
    assert list(window_starts(start, stop, window, stride)) == [first for first in lattice if first < stop and first + window > start]


@given(LENGTHS, st.integers(-3000, 3000), st.integers(0, 1000))
def test_the_padded_span_is_exactly_what_the_windows_read(lengths: tuple[int, int], start: int, length: int) -> None:
    window, stride = lengths
    first, last = padded_span(start, start + length, window, stride)
    starts = window_starts(start, start + length, window, stride)
    assert first <= start and last >= start + length
    assert (first, last) == ((starts[0], starts[-1] + window) if length else (start, start))


def test_a_block_on_the_stride_has_the_windows_that_the_plan_counts() -> None:
    assert len(window_starts(2560, 5120, 320, 256)) == 2560 // 256 + 1
    assert padded_span(2560, 5120, 320, 256) == (2304, 5184)


@pytest.mark.parametrize(("window", "stride"), [(256, 320), (256, 0), (0, 0), (256, -1)])
def test_a_stride_that_would_miss_pixels_is_refused(window: int, stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        window_starts(0, 10, window, stride)
