"""Regions of a mask as attributes: size word, centroid, location and rotated bounding box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from shapely import MultiPoint, Polygon

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
"""Smaller regions are dropped: 50 pixels of a 512 x 512 chip."""

_EIGHT = np.ones((3, 3), bool)


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


def clean_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask after an opening of radius 1 and a closing of radius 2."""
    opened = ndimage.binary_opening(mask, ndimage.generate_binary_structure(2, 1))
    padded = np.pad(opened, 4)
    return np.asarray(ndimage.binary_closing(padded, _disk(2))[4:-4, 4:-4], bool)


def _disk(radius: int) -> NDArray[np.bool_]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(x * x + y * y <= radius * radius)


def find_regions(mask: NDArray[np.bool_], valid_pixels: int | None = None, longest: int = 10) -> list[Region]:
    """Return the regions of a mask (H, W), largest first, at most `longest`; 8-connected, holes belong to the area of neither."""
    valid = mask.size if valid_pixels is None else valid_pixels
    labels, count = ndimage.label(mask, _EIGHT)
    if not count or not valid:
        return []
    areas = np.bincount(labels.ravel())[1:]
    order = [int(i) for i in np.argsort(-areas, kind="stable") if areas[i] >= max(1.0, MINIMUM_SHARE * mask.size)][:longest]
    slices = ndimage.find_objects(labels)
    return [_region(labels[slices[i]] == i + 1, slices[i], int(areas[i]), mask.shape, valid) for i in order]


def _region(patch: NDArray[np.bool_], where: tuple[slice, slice], area: int, shape: Sequence[int], valid: int) -> Region:
    rows, columns = np.nonzero(patch)
    rows, columns = rows + where[0].start, columns + where[1].start
    height, width = shape[0], shape[1]
    x, y = int(columns.mean()) / width, int(rows.mean()) / height
    return Region(area, size_word(100 * area / valid), (x, y), location_word(x, y), _rotated_box(columns, rows, width, height))


def size_word(percent: float) -> str:
    """Return the word for a region that covers `percent` of the valid area."""
    return next(word for limit, word in SIZE_WORDS if percent < limit)


def location_word(x: float, y: float) -> str:
    """Return the cell of the 3x3 grid in which a normalised centroid lies, as words."""
    column = ("left", "center", "right")[min(int(x * 3), 2)]
    row = ("top", "middle", "bottom")[min(int(y * 3), 2)]
    return "center" if (row, column) == ("middle", "center") else f"{row}-{column}"


def _rotated_box(columns: NDArray[np.int_], rows: NDArray[np.int_], width: int, height: int) -> tuple[tuple[float, float], ...]:
    hull = MultiPoint(_row_ends(columns, rows)).convex_hull
    box = hull.minimum_rotated_rectangle if hull.geom_type == "Polygon" else hull.envelope
    if box.geom_type != "Polygon":
        left, top, right, bottom = hull.bounds
        box = Polygon([(left, top), (right, top), (right, bottom), (left, bottom)])
    corners = [(int(np.clip(px, 0, width)), int(np.clip(py, 0, height))) for px, py in list(box.exterior.coords)[:4]]
    if _turns_left(corners):
        corners.reverse()
    first = min(range(4), key=lambda i: (sum(corners[i]), corners[i]))
    return tuple((px / width, py / height) for px, py in corners[first:] + corners[:first])


def _row_ends(columns: NDArray[np.int_], rows: NDArray[np.int_]) -> NDArray[np.int_]:
    """Return the first and last pixel of each row, (points, 2) x first: all that a convex hull can touch."""
    _, first = np.unique(rows, return_index=True)
    last = np.append(first[1:], len(rows)) - 1
    ends = np.concatenate([first, last])
    return np.column_stack([columns[ends], rows[ends]])


def _turns_left(corners: Sequence[tuple[int, int]]) -> bool:
    pairs = zip(corners, [*corners[1:], corners[0]], strict=True)
    return sum((x1 - x0) * (y1 + y0) for (x0, y0), (x1, y1) in pairs) > 0
