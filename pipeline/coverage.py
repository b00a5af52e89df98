"""Which pixels of the grid a scene's published footprint covers."""

from __future__ import annotations

from functools import cached_property
from math import ceil, floor

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.features import rasterize
from shapely.geometry import box as rectangle
from shapely.geometry.base import BaseGeometry

from pipeline.grid import Grid, PixelBox

CELL = 1024
"""Side of the cells in which a scene takes part or not, in pixels."""
MARGIN = 256
"""Pixels by which a footprint may be too small."""
_STEP = 0.1
"""Longest edge, in degrees, that is projected as a straight line."""


class Coverage:
    """A footprint (degrees, EPSG:4326) on a grid.

    Published footprints are rough, and a scene that took part in one block but not in its neighbour would leave a seam. So a scene takes part in
    whole cells of a fixed lattice, those that lie within `MARGIN` pixels of its footprint, and the scenes of a pixel do not depend on the box it is
    read in.
    """

    def __init__(self, footprint: BaseGeometry, grid: Grid) -> None:
        self._footprint, self._grid = footprint, grid

    def touches(self, box: PixelBox) -> bool:
        """Return whether the scene takes part in any cell of `box`."""
        return any(self._takes_part(cell) for cell in box.lattice(CELL))

    def outside(self, box: PixelBox) -> list[PixelBox]:
        """Return the parts of `box` in which the scene takes no part."""
        return [cell.intersect(box) for cell in box.lattice(CELL) if not self._takes_part(cell)]

    @cached_property
    def bounds(self) -> PixelBox | None:
        """The smallest box of global pixels around the footprint; None where the grid's CRS does not reach all of it."""
        if self._outline is None:
            return None
        left, top, right, bottom = self._outline.bounds
        return PixelBox(floor(top), floor(left), ceil(bottom), ceil(right))

    def covered(self, box: PixelBox) -> NDArray[np.bool_]:
        """Return which pixels of `box` have their centre in the footprint, bool (H, W)."""
        if self._outline is None:
            return np.ones(box.shape, np.bool_)
        to_global = Affine.translation(box.left, box.top)
        burned = rasterize([(self._outline, 1)], box.shape, transform=to_global, dtype="uint8")
        return np.asarray(burned, np.bool_)

    def _takes_part(self, cell: PixelBox) -> bool:
        if self._outline is None:
            return True
        near = cell.expand(MARGIN)
        return bool(self._outline.intersects(rectangle(near.left, near.top, near.right, near.bottom)))

    @cached_property
    def _outline(self) -> BaseGeometry | None:
        """The footprint in global pixels (column, row); None where the grid's CRS does not reach all of it: it may then lie anywhere."""
        to_grid = Transformer.from_crs("EPSG:4326", self._grid.crs, always_xy=True)
        to_pixels = ~self._grid.transform

        def project(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.column_stack(to_pixels * to_grid.transform(degrees[:, 0], degrees[:, 1]))

        outline = shapely.transform(shapely.segmentize(self._footprint, _STEP), project)
        return shapely.make_valid(outline) if np.isfinite(shapely.get_coordinates(outline)).all() else None
