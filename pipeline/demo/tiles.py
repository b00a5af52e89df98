"""Where the demo lies: two tiles, one in each UTM zone, that overlap along the border of the zones, and the job's grid over both."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from scipy.ndimage import map_coordinates
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry

from pipeline.demo.noise import STEP, Patch

WORLD = CRS.from_proj4("+proj=tmerc +lat_0=45.95 +lon_0=12 +k=1 +x_0=0 +y_0=0 +ellps=WGS84 +units=m +no_defs")
"""The plane that the landscape is defined on: metres around a point on the border of zones 32 and 33."""
JOB_EPSG = 32632
"""Zone of the job: the one whose scenes sort first, so that the job's grid is theirs."""
APART = 0.6
"""Distance of the tiles' centres in sides of a tile: the rest, 0.4, is overlap."""


@dataclass(frozen=True)
class PixelGrid:
    """A north-up grid in a UTM zone."""

    epsg: int
    left: float
    """Easting of the west edge, metres."""
    top: float
    """Northing of the north edge, metres."""
    width: int
    height: int
    resolution: int
    """Pixel side in metres."""

    @property
    def transform(self) -> Affine:
        """Affine from (column, row) to easting and northing."""
        return Affine(self.resolution, 0, self.left, 0, -self.resolution, self.top)

    @property
    def outline(self) -> Polygon:
        """Outline in degrees, with points along the edges because they are not straight there."""
        edge = np.linspace(0, 1, 5)[:-1]
        corners = np.array([(0, 1), (0, 0), (1, 0), (1, 1), (0, 1)], float)
        ring = np.concatenate([start + edge[:, None] * (end - start) for start, end in pairwise(corners)])
        x, y = self.left + ring[:, 0] * self.width * self.resolution, self.top - ring[:, 1] * self.height * self.resolution
        longitude, latitude = Transformer.from_crs(self.epsg, 4326, always_xy=True).transform(x, y)
        return Polygon(np.round(np.column_stack([longitude, latitude]), 7))

    def part(self, row: int, column: int, height: int, width: int) -> PixelGrid:
        """Return the part of the grid that starts at (row, column), cut at the grid's edges."""
        left, top = self.left + column * self.resolution, self.top - row * self.resolution
        return PixelGrid(self.epsg, left, top, min(width, self.width - column), min(height, self.height - row), self.resolution)

    def coarser(self, resolution: int) -> PixelGrid:
        """Return the grid of the same ground with pixels of `resolution` metres."""
        factor = resolution // self.resolution
        return PixelGrid(self.epsg, self.left, self.top, self.width // factor, self.height // factor, resolution)

    def world(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the world coordinates of the pixel centres, two (height, width) float64 arrays in metres.

        They are projected at every 32nd pixel and interpolated between, which is exact to millimetres.
        """
        stride = 32
        rows, columns = np.arange(0, self.height + stride, stride), np.arange(0, self.width + stride, stride)
        x, y = np.meshgrid(self.left + (columns + 0.5) * self.resolution, self.top - (rows + 0.5) * self.resolution)
        nodes = Transformer.from_crs(self.epsg, WORLD, always_xy=True).transform(x, y)
        place = np.meshgrid(np.arange(self.height) / stride, np.arange(self.width) / stride, indexing="ij")
        return map_coordinates(nodes[0], place, order=1), map_coordinates(nodes[1], place, order=1)


@dataclass(frozen=True)
class Tile:
    """One tile of the military grid, in its own zone."""

    name: str
    """Zone, latitude band and square, for example 32TQR."""
    grid: PixelGrid
    """Its pixels of 10 m."""


def make_tiles(size: int) -> tuple[Tile, Tile]:
    """Return the western (zone 32) and the eastern (zone 33) tile of `size` pixels of 10 m, on multiples of 20 m in their zones."""
    apart = APART * size * 10 / 2
    return Tile("32TQR", _square(32632, -apart, size)), Tile("33TTL", _square(32633, apart, size))


def _square(epsg: int, x: float, size: int) -> PixelGrid:
    easting, northing = Transformer.from_crs(WORLD, epsg, always_xy=True).transform(x, 0.0)
    half = size * 10 / 2
    return PixelGrid(epsg, float(round((easting - half) / 20) * 20), float(round((northing + half) / 20) * 20), size, size, 10)


def region(size: int) -> BaseGeometry:
    """Return the job's region in degrees: an octagon inside both tiles together, whose slanted corners show that a region need not be a box."""
    half = size * 10 / 2
    # The grids of the zones are turned by about two degrees against the world: that much of the tiles' edges stays outside.
    y = half * 0.96 - 20
    x = half * (APART + 0.96) - 20
    cut = 0.22 * half
    ring = [(-x, -y), (x - cut, -y), (x, -y + cut), (x, y), (-x + cut, y), (-x, y - cut)]
    degrees = _project(Polygon(ring).segmentize(half / 4), WORLD, 4326)
    return shapely.transform(degrees, lambda points: np.round(points, 7))


def job_grid(size: int) -> PixelGrid:
    """Return the region's bounding box on the job's pixels of 10 m."""
    west, south, east, north = _project(region(size), 4326, JOB_EPSG).bounds
    left, top = np.floor(west / 10) * 10, np.ceil(north / 10) * 10
    return PixelGrid(JOB_EPSG, float(left), float(top), int(np.ceil((east - left) / 10)), int(np.ceil((top - south) / 10)), 10)


def covering_patch(x: NDArray[np.float64], y: NDArray[np.float64], step: float = STEP, margin: float = 80.0) -> Patch:
    """Return the patch of the world that holds all points (metres) and `margin` metres around, on even pixels."""
    left, top = int((x.min() - margin) // (2 * step)) * 2, int((-y.max() - margin) // (2 * step)) * 2
    right, bottom = int((x.max() + margin) // (2 * step) + 1) * 2, int((-y.min() + margin) // (2 * step) + 1) * 2
    return Patch(left, top, right - left, bottom - top, step)


def sample(field: NDArray[np.float32], patch: Patch, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return `field` (over `patch`) at the points, bilinear, in their shape, float32."""
    step = patch.step * patch.width / field.shape[1]
    rows = -y / step - 0.5 - patch.top * patch.step / step
    columns = x / step - 0.5 - patch.left * patch.step / step
    values: NDArray[np.float32] = map_coordinates(field, [rows, columns], output=np.float32, order=1, mode="nearest")
    return values


def beyond_swath(size: int, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which points (world metres) lie west of the edge of the swath, a slanted line through the western tile."""
    return np.asarray(x < _swath_edge(size, y))


def footprint(tile: Tile, cut: bool) -> Polygon:
    """Return the outline of a tile in degrees, less what lies beyond the swath's edge where `cut` says so."""
    outline = tile.grid.outline
    if not cut:
        return outline
    side = 10.0 * tile.grid.width
    ends = np.array([side, -side])
    edge = _swath_edge(tile.grid.width, ends)
    beyond = Polygon([(edge[0], ends[0]), (edge[1], ends[1]), (-3 * side, ends[1]), (-3 * side, ends[0])])
    seen = outline.difference(_project(beyond, WORLD, 4326))
    return shapely.transform(seen, lambda points: np.round(points, 7))


def _swath_edge(size: int, y: NDArray[np.float64]) -> NDArray[np.float64]:
    return -10.0 * size * (APART / 2 + 0.5 - 0.14) + 0.22 * y


def _project(geometry: BaseGeometry, source: CRS | int, target: CRS | int) -> BaseGeometry:
    transformer = Transformer.from_crs(source, target, always_xy=True)
    return shapely.transform(geometry, lambda points: np.column_stack(transformer.transform(points[:, 0], points[:, 1])))
