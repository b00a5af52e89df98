"""Areas on the ground: how much land a pixel of a grid covers, wherever it lies and whatever the CRS."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from pyproj import CRS, Transformer

from pipeline.grid import Grid, PixelBox

CELL = 256
"""Side in pixels of the lattice cells within which all pixels count as equally large: their areas differ by less than 1e-4 of themselves
in the zone of a UTM grid at 10 m."""
SQUARE_MILLIMETRES_PER_HECTARE = 10**10
POINTS_PER_SIDE = 16


def hectares(square_millimetres: int) -> float:
    """Return an area in hectares."""
    return square_millimetres / SQUARE_MILLIMETRES_PER_HECTARE


class PixelAreas:
    """Area of the pixels of a grid in whole square millimetres, measured on the CRS's ellipsoid.

    A cell of 256 x 256 pixels, anchored at the grid's pixel (0, 0), is measured as a geodesic polygon and its area shared equally, so that neither
    the scale factor of the projection nor the latitude biases a sum. Whole numbers make sums independent of their order.
    """

    def __init__(self, grid: Grid) -> None:
        crs = CRS.from_user_input(grid.crs)
        self._grid = grid
        self._geod: Any = crs.get_geod()
        self._to_degrees: Any = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
        self.of_cell = lru_cache(maxsize=4096)(self._of_cell)

    def parts(self, box: PixelBox) -> Iterator[tuple[PixelBox, int]]:
        """Yield the pieces of `box` that lie in one cell each, with the area of one pixel there in square millimetres."""
        for cell in box.lattice(CELL):
            yield cell.intersect(box), self.of_cell(cell.top, cell.left)

    def _of_cell(self, top: int, left: int) -> int:
        along = np.linspace(0, CELL, POINTS_PER_SIDE, endpoint=False)
        zero = np.zeros(POINTS_PER_SIDE)
        columns = left + np.concatenate([along, zero + CELL, CELL - along, zero])
        rows = top + np.concatenate([zero, along, zero + CELL, CELL - along])
        transform = self._grid.transform
        longitude, latitude = self._to_degrees.transform(transform.c + transform.a * columns, transform.f + transform.e * rows)
        area, _ = self._geod.polygon_area_perimeter(longitude, latitude)
        if not np.isfinite(area):
            raise ValueError(f"pixels at row {top}, column {left} of {self._grid.crs} have no place on earth; choose a CRS that covers the region")
        return round(abs(float(area)) / CELL**2 * 1e6)
