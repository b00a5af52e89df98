"""One snapped pixel grid for a whole series, its tiles and its blocks.

Pixels have global indices: column 0 starts at the grid's origin and counts east, row 0 starts there and counts south, both may be negative. A
`PixelBox` is a rectangle of such indices and `Grid.geobox` turns it into the `odc.geo.GeoBox` that everything else works with. Windows of the model,
cells of the reader and tiles of the product all lie on lattices that are anchored at index (0, 0), so what a pixel gets does not depend on the
region, block or tile that it was computed in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from affine import Affine
from odc.geo import CRS
from odc.geo.geobox import GeoBox


@dataclass(frozen=True, order=True)
class PixelBox:
    """Rectangle of global pixel indices: rows [top, bottom), columns [left, right)."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.bottom - self.top, self.right - self.left

    @property
    def is_empty(self) -> bool:
        """Whether the box holds no pixel."""
        return self.bottom <= self.top or self.right <= self.left

    def intersect(self, other: PixelBox) -> PixelBox:
        """Return what both boxes cover (perhaps empty)."""
        return PixelBox(max(self.top, other.top), max(self.left, other.left), min(self.bottom, other.bottom), min(self.right, other.right))

    def expand(self, rows: int, columns: int | None = None) -> PixelBox:
        """Return the box grown by `rows` above and below and `columns` (default: the same) left and right."""
        columns = rows if columns is None else columns
        return PixelBox(self.top - rows, self.left - columns, self.bottom + rows, self.right + columns)

    def within(self, outer: PixelBox) -> tuple[slice, slice]:
        """Return the slices that cut this box out of an array that covers `outer`."""
        return slice(self.top - outer.top, self.bottom - outer.top), slice(self.left - outer.left, self.right - outer.left)

    def lattice(self, side: int) -> Iterator[PixelBox]:
        """Yield the cells of the lattice of `side` pixels anchored at (0, 0) that this box touches, uncut, row by row."""
        for top in range(self.top // side * side, self.bottom, side):
            for left in range(self.left // side * side, self.right, side):
                yield PixelBox(top, left, top + side, left + side)


@dataclass(frozen=True)
class Grid:
    """The pixel grid of a series: frozen when the series is made."""

    crs: str
    """Anything that `odc.geo.CRS` reads; `EPSG:<code>` wherever there is a code."""
    resolution: float
    """Pixel side in units of the CRS."""
    origin: tuple[float, float]
    """x and y of the corner that pixel (0, 0) has north-west."""
    tile: int
    """Side of a product tile in pixels."""

    @cached_property
    def transform(self) -> Affine:
        """Affine from global (column, row) to CRS coordinates."""
        return Affine(self.resolution, 0, self.origin[0], 0, -self.resolution, self.origin[1])

    def geobox(self, box: PixelBox) -> GeoBox:
        """Return the GeoBox of `box`: the one currency for grids outside this module."""
        x, y = self.transform.c + box.left * self.resolution, self.transform.f - box.top * self.resolution
        return GeoBox(box.shape, Affine(self.resolution, 0, x, 0, -self.resolution, y), CRS(self.crs))

    def tile_id(self, cell: PixelBox) -> str:
        """Return the name of the tile whose uncut lattice cell is `cell`, for example ``epsg32633-10m-e0004-n0050``.

        Columns count tiles east (e) or west (w) of the origin, rows count tiles north (n) or south (s) of it.
        """
        column, row = cell.left // self.tile, -(cell.top // self.tile) - 1
        east = f"e{column:04d}" if column >= 0 else f"w{-column:04d}"
        north = f"n{row:04d}" if row >= 0 else f"s{-row:04d}"
        return f"{self._crs_slug}-{self._resolution_slug}-{east}-{north}"

    @property
    def _crs_slug(self) -> str:
        crs = CRS(self.crs)
        if crs.epsg is not None:
            return f"epsg{crs.epsg}"
        return "crs" + hashlib.sha256(crs.to_wkt().encode()).hexdigest()[:8]

    @property
    def _resolution_slug(self) -> str:
        unit = "deg" if CRS(self.crs).geographic else "m" if CRS(self.crs).units[0].startswith("met") else "u"
        return f"{self.resolution:g}".replace(".", "p").replace("-", "m").replace("+", "") + unit


def block_boxes(box: PixelBox, side: int, stride: int) -> tuple[PixelBox, ...]:
    """Return blocks of at most `side` pixels that cover `box` exactly once, row by row.

    They begin on the lattice of `stride` pixels anchored at (0, 0), where the model's windows begin, so that a small box is not cut more often
    than its size asks for.
    """
    rows = _cuts(box.top, box.bottom, side, stride)
    columns = _cuts(box.left, box.right, side, stride)
    return tuple(PixelBox(top, left, bottom, right) for top, bottom in rows for left, right in columns)


def _cuts(start: int, stop: int, side: int, stride: int) -> list[tuple[int, int]]:
    first = start // stride * stride
    first += (start - first) // side * side
    return [(max(start, at), min(stop, at + side)) for at in range(first, stop, side)]
