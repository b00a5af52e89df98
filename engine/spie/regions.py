"""Regions of a mask as attributes: size word, centroid, location and rotated bounding box."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from shapely import MultiPoint

from engine.spie.morphology import EIGHT

SIZE_WORDS: tuple[tuple[float, str], ...] = (
    (0.125, "very tiny"),
    (0.20, "tiny"),
    (0.40, "small"),
    (0.75, "medium"),
    (1.5, "somewhat large"),
    (6.0, "large"),
    (float("inf"), "huge"),
)
"""Upper cut points in percent of the chip's valid area."""

MINIMUM_SHARE = 50 / 512**2
"""Smaller regions are dropped where no minimum area is given: 50 pixels of a 512 x 512 chip."""

LARGEST = 10
"""So many regions are described at most."""

_ROUNDING = 1e-6


@dataclass(frozen=True)
class SizeWords:
    """Cut points between the size words: a share of the valid area, or an area on the ground."""

    resolution: float
    """Metres a pixel."""
    reference_m2: float | None = None
    """The percentages are of this area; None: of the chip's own valid area, as SPIE has it."""

    def word(self, area: int, valid_pixels: int) -> str:
        """Return the word for a region of `area` pixels in a chip of `valid_pixels`."""
        whole = valid_pixels if self.reference_m2 is None else self.reference_m2 / self.resolution**2
        return size_word(100 * area / whole)


def size_cuts_m2(resolution: float, pixels: int = 512**2) -> dict[str, float]:
    """Return the area in square metres below which each word holds, for a chip of so many valid pixels of `resolution` metres."""
    return {word: limit / 100 * pixels * resolution**2 for limit, word in SIZE_WORDS}


@dataclass(frozen=True)
class Region:
    """One connected region; coordinates are whole pixels, x first, divided by the chip's width and height."""

    area: int
    """Pixels."""
    size: str
    centroid: tuple[float, float]
    location: str
    box: tuple[tuple[float, float], ...]
    """Corners of the smallest rotated rectangle, clockwise from the one nearest the top left, clipped to the chip."""


def find_regions(
    mask: NDArray[np.bool_],
    valid_pixels: int | None = None,
    longest: int = LARGEST,
    *,
    minimum_pixels: float | None = None,
    size_words: SizeWords | None = None,
) -> list[Region]:
    """Return the regions of a mask, largest first, at most `longest`; 8-connected, holes belong to the area of neither.

    Parameters
    ----------
    mask
        (H, W) bool.
    valid_pixels
        Pixels with data, of which size words are shares; without it all.
    longest
        Regions to return at most; regions of one size come in the order of their first pixel, row by row.
    minimum_pixels
        Smaller regions are dropped; without it 50 pixels of 512 x 512, in proportion.
    size_words
        Cut points on the ground instead of shares of the valid area.
    """
    valid = mask.size if valid_pixels is None else valid_pixels
    labels, count = ndimage.label(mask, EIGHT)
    if not count or not valid:
        return []
    words = size_words or SizeWords(1.0)
    least = max(1.0, MINIMUM_SHARE * mask.size if minimum_pixels is None else minimum_pixels)
    areas = np.bincount(labels.ravel())[1:]
    order = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i] >= least][:longest]
    slices = ndimage.find_objects(labels)
    return [_region(labels[slices[i]] == i + 1, slices[i], mask.shape, words.word(int(areas[i]), valid)) for i in order]


def count_regions(mask: NDArray[np.bool_], minimum_pixels: float) -> int:
    """Return how many 8-connected regions of a mask (H, W) have at least so many pixels."""
    labels, _ = ndimage.label(mask, EIGHT)
    return int((np.bincount(labels.ravel())[1:] >= minimum_pixels).sum())


def _region(patch: NDArray[np.bool_], where: tuple[slice, slice], shape: Sequence[int], size: str) -> Region:
    rows, columns = np.nonzero(patch)
    rows, columns = rows + where[0].start, columns + where[1].start
    height, width = shape[0], shape[1]
    x, y = int(columns.mean()) / width, int(rows.mean()) / height
    return Region(len(rows), size, (x, y), location_word(x, y), _rotated_box(columns, rows, width, height))


def size_word(percent: float) -> str:
    """Return the word for a region that covers `percent` of the valid area."""
    return next(word for limit, word in SIZE_WORDS if percent < limit)


def location_word(x: float, y: float) -> str:
    """Return the cell of the 3x3 grid in which a normalised centroid lies, as words."""
    column = ("left", "center", "right")[min(int(x * 3), 2)]
    row = ("top", "middle", "bottom")[min(int(y * 3), 2)]
    return "center" if (row, column) == ("middle", "center") else f"{row}-{column}"


def _rotated_box(columns: NDArray[np.int_], rows: NDArray[np.int_], width: int, height: int) -> tuple[tuple[float, float], ...]:
    corners = [(_whole(px, width), _whole(py, height)) for px, py in _corners(columns, rows)]
    if _turns_left(corners):
        corners.reverse()
    first = min(range(4), key=lambda i: (sum(corners[i]), corners[i]))
    return tuple((px / width, py / height) for px, py in corners[first:] + corners[:first])


def _corners(columns: NDArray[np.int_], rows: NDArray[np.int_]) -> list[tuple[float, float]]:
    """Return the corners of the smallest rectangle around pixel centres; a line of pixels gives one without width."""
    hull = MultiPoint(_row_ends(columns, rows)).convex_hull
    if hull.geom_type == "Polygon":
        return list(hull.minimum_rotated_rectangle.exterior.coords)[:4]
    ends = list(hull.coords)
    return [ends[0], ends[0], ends[-1], ends[-1]]


def _whole(value: float, limit: int) -> int:
    """Return a coordinate as a whole pixel, truncated as SPIE does and clipped; 9.9999999 counts as 10."""
    return min(max(math.floor(value + _ROUNDING), 0), limit)


def _row_ends(columns: NDArray[np.int_], rows: NDArray[np.int_]) -> NDArray[np.int_]:
    """Return the first and last pixel of each row, (points, 2) x first: all that a convex hull can touch."""
    _, first = np.unique(rows, return_index=True)
    last = np.append(first[1:], len(rows)) - 1
    ends = np.concatenate([first, last])
    return np.column_stack([columns[ends], rows[ends]])


def _turns_left(corners: Sequence[tuple[int, int]]) -> bool:
    pairs = zip(corners, [*corners[1:], corners[0]], strict=True)
    return sum((x1 - x0) * (y1 + y0) for (x0, y0), (x1, y1) in pairs) > 0
