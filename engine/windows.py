"""Windows of the model on one lattice over the whole grid, and the integer weights that blend them.

A window of `window` pixels starts at every multiple of `stride`, counted in global pixel indices, so the windows that see a pixel are the same
whichever block it is computed in. Along one axis a pixel is seen by one or more windows whose weights at that pixel sum to `blend_total` exactly.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def window_starts(start: int, stop: int, window: int, stride: int) -> range:
    """Return the first pixels of all lattice windows that touch [start, stop), in order; they are multiples of `stride`, perhaps negative.

    Raises
    ------
    ValueError
        Where the window is shorter than the stride (pixels would be missed) or a length is not positive.
    """
    _check(window, stride)
    first = -((window - 1 - start) // stride) * stride
    return range(first, stop, stride) if stop > start else range(0)


def padded_span(start: int, stop: int, window: int, stride: int) -> tuple[int, int]:
    """Return the pixels [first, last) that the windows of [start, stop) need; an empty span needs itself."""
    starts = window_starts(start, stop, window, stride)
    return (starts[0], starts[-1] + window) if starts else (start, stop)


def blend_weights(window: int, stride: int) -> NDArray[np.int32]:
    """Return the weight of each pixel of a window along one axis, int32 (window,), all at least 1.

    A box of `stride` pixels convolved with one of `window - stride + 1`: a trapezium that falls to 1 at the window's ends. Because boxes of `stride`
    pixels tile the axis, shifts of it by `stride` sum to `blend_total(window, stride)` at every pixel.
    """
    _check(window, stride)
    return np.convolve(np.ones(stride, np.int32), np.ones(window - stride + 1, np.int32)).astype(np.int32)


def blend_total(window: int, stride: int) -> int:
    """Return what the weights of all windows sum to at any pixel of one axis; of a plane it is the square."""
    _check(window, stride)
    return window - stride + 1


def _check(window: int, stride: int) -> None:
    if not 0 < stride <= window:
        raise ValueError(f"stride {stride} with window {window}: a stride must be positive and at most the window, or pixels are missed")
