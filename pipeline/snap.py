"""From a job's `grid` to pixels: which CRS, which phase, which pixels the region has, which tiles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo import CRS
from pyproj import CRS as ProjCRS
from pyproj import Geod, Transformer
from pyproj.exceptions import CRSError
from rasterio.errors import RasterioError
from rasterio.features import geometry_mask
from shapely.affinity import translate
from shapely.geometry import box as rectangle
from shapely.geometry.base import BaseGeometry

from pipeline.errors import GridError
from pipeline.grid import Grid, PixelBox
from pipeline.region import Region
from stac.documents import failure, public
from stac.probe import look_at
from stac.scenes import BandSource

MOST_TILES = 1_000_000
"""More tiles than this are refused: the tile side is too small for the region."""

_FEW_PIXELS = 4096
"""A box of more pixels than this is not asked whether any has its centre in the region."""
_TRIED = 8
"""Scenes whose files are opened, one after another, until one tells the grid's phase."""
_MASK_CELL, _MASK_GROUP = 1024, 16384
_SNAP = 1e-3
"""Part of a pixel that a bound may reach into it and not count: it cannot hold the pixel's centre."""

_AREA_MARGIN = 10.0
"""Degrees that a region may lie outside the area that its CRS is made for."""

_EQUAL_AREA = {
    "EPSG:3035": (-35.6, 24.6, 44.9, 84.8),
    "EPSG:5070": (-124.8, 24.4, -66.9, 49.4),
    "EPSG:3577": (112.8, -43.8, 153.7, -9.8),
}
"""Equal-area CRSs of whole continents with the degrees in which they are used: Europe, the contiguous United States, Australia."""


@dataclass(frozen=True)
class AssetGrid:
    """CRS and transform of one asset."""

    crs: str
    transform: Affine


AssetGridOf = Callable[[BandSource], AssetGrid]


def open_asset_grid(band: BandSource) -> AssetGrid:
    """Return the grid of the file that `band` lies in, read from its header; raises GridError if it cannot be opened."""
    try:
        return look_at(band.href, lambda dataset: AssetGrid(dataset.crs.to_wkt() if dataset.crs else "", dataset.transform))
    except (OSError, RasterioError) as error:
        raise GridError(
            f"{public(band.href)} cannot be opened to learn its pixel grid ({failure(error)}); mend the catalog or set grid.origin to [x, y]"
        ) from error


def resolve_crs(text: str, region: Region, frozen: str | None = None) -> str:
    """Return the CRS of a grid, ``EPSG:<code>`` wherever there is a code.

    Parameters
    ----------
    text
        ``auto`` for the UTM zone of the region's centroid, or anything that PROJ reads.
    region
        What is mapped.
    frozen
        CRS of the series that is gone on with: `auto` keeps its UTM zone.

    Raises
    ------
    GridError
        PROJ does not know it, it has no two plane axes, or with `auto` the region leaves the zone by more than 4 degrees or reaches beyond UTM.
    """
    if text == "auto":
        return _utm_of(region, frozen)
    try:
        crs = ProjCRS.from_user_input(text)
    except CRSError:
        raise GridError(
            f"grid.crs: {text!r} is not a coordinate reference system that PROJ knows; write a code such as EPSG:32633, or auto"
        ) from None
    if not (crs.is_projected or crs.is_geographic) or len(crs.axis_info) != 2:
        raise GridError(f"grid.crs: {text!r} ({crs.name}) has no two plane axes; write a projected or geographic CRS")
    _check_made_for(crs, region)
    code = CRS(text).epsg
    return text if code is None else f"EPSG:{code}"


def _check_made_for(crs: ProjCRS, region: Region) -> None:
    """Raise GridError where a CRS is made for another part of the Earth: far from it numbers come out finite and wrong."""
    area = crs.area_of_use
    if area is None:
        return
    east = area.east if area.east >= area.west else area.east + 360
    around = rectangle(area.west, area.south, east, area.north).buffer(_AREA_MARGIN)
    if not any(around.intersects(translate(region.geometry, turn)) for turn in (-360, 0, 360)):
        raise GridError(f"grid.crs: {crs.name} is made for {area.name} and the region lies elsewhere; choose another CRS, or auto")


def _utm_of(region: Region, frozen: str | None) -> str:
    _, south, _, north = region.geometry.bounds
    if north > 84 or south < -80:
        pole = "EPSG:3413" if north > 84 else "EPSG:3031"
        raise GridError(
            "grid.crs: auto has no UTM zone beyond 84 degrees north and 80 south, where the region reaches;"
            f" set grid.crs to {pole}, polar stereographic"
        )
    centre = region.unwrapped.centroid
    kept = re.fullmatch(r"EPSG:32[67](\d\d)", frozen or "")
    zone = int(kept[1]) if kept else utm_zone(centre.x, centre.y)
    meridian = zone * 6 - 183
    west, _, east, _ = region.unwrapped.bounds
    turn = 360 * round((centre.x - meridian) / 360)
    beyond = max(meridian - 3 - (west - turn), (east - turn) - (meridian + 3))
    if beyond > 4:
        raise GridError(
            f"grid.crs: auto means UTM zone {zone}, which the region leaves by {beyond:.1f} degrees (at most 4);"
            f" set grid.crs to {_equal_area(region)}, an equal-area CRS"
        )
    return kept[0] if kept else f"EPSG:{(32600 if centre.y >= 0 else 32700) + zone}"


def utm_zone(longitude: float, latitude: float) -> int:
    """Return the UTM zone 1..60 of a place, with the exceptions in Norway and Svalbard that Sentinel-2's tiles keep too."""
    longitude = (longitude + 180) % 360 - 180
    if 56 <= latitude < 64 and 3 <= longitude < 12:
        return 32
    if 72 <= latitude <= 84 and 0 <= longitude < 42:
        return 31 + 2 * sum(longitude >= border for border in (9, 21, 33))
    return int((longitude + 180) // 6) + 1


def _equal_area(region: Region) -> str:
    shape = region.unwrapped
    for code, bounds in _EQUAL_AREA.items():
        if rectangle(*bounds).contains(shape):
            return code
    centre = shape.centroid
    return f'"+proj=laea +lat_0={centre.y:.0f} +lon_0={(centre.x + 180) % 360 - 180:.0f} +datum=WGS84 +units=m"'


def pixel_phase(band: BandSource, crs: str, resolution: float, asset_grid_of: AssetGridOf) -> tuple[float, float]:
    """Return where the pixel corners of a band lie, modulo `resolution`, in units of `crs`; (0, 0) where it has another CRS or is rotated."""
    asset = asset_grid_of(band)
    if not asset.crs or CRS(asset.crs) != CRS(crs) or asset.transform.b or asset.transform.d:
        return 0.0, 0.0
    return _modulo(asset.transform.c, resolution), _modulo(asset.transform.f, resolution)


def first_phase(bands: Iterable[BandSource], crs: str, resolution: float, asset_grid_of: AssetGridOf) -> tuple[float, float]:
    """Return the pixel phase of the first of `bands` whose file can be opened; raises GridError where none of the first eight can."""
    problems: list[GridError] = []
    for band in islice(bands, _TRIED):
        try:
            return pixel_phase(band, crs, resolution, asset_grid_of)
        except GridError as error:
            problems.append(error)
    raise problems[0]


def _modulo(value: float, resolution: float) -> float:
    """Return `value` modulo `resolution`; what is within a thousandth of a pixel of a corner is that corner."""
    steps = value / resolution
    part = steps - math.floor(steps)
    if min(part, 1 - part) < _SNAP:
        return 0.0
    return round(part * resolution, 9)


def check_resolution(crs: str, resolution: float) -> None:
    """Raise GridError where `resolution` was meant in metres and the CRS counts in degrees."""
    if CRS(crs).geographic and resolution > 1:
        raise GridError(f"grid.resolution: {resolution:g} is in units of the CRS, and {crs} counts in degrees; 10 m are about 0.0001")


def metres_per_pixel(grid: Grid, region: Region) -> tuple[float, float]:
    """Return (height, width) of a pixel on the ground in the middle of the region, in metres, whatever the units of the CRS.

    A CRS whose units are within 1 % of true to scale there counts as true.
    """
    crs = ProjCRS.from_user_input(grid.crs)
    west, south, east, north = region.to_crs(grid.crs).bounds
    x, y = (west + east) / 2, (south + north) / 2
    wide = _ground_distance(crs, (x, y), (x + grid.resolution, y))
    high = _ground_distance(crs, (x, y), (x, y + grid.resolution))
    nominal = grid.resolution * crs.axis_info[0].unit_conversion_factor
    true = crs.is_projected and max(abs(high / nominal - 1), abs(wide / nominal - 1)) < 0.01
    return (nominal, nominal) if true else (high, wide)


def _ground_distance(crs: ProjCRS, start: tuple[float, float], end: tuple[float, float]) -> float:
    degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    _, _, metres = Geod(ellps="WGS84").inv(*degrees.transform(*start), *degrees.transform(*end))
    return float(metres)


def snapped_box(grid: Grid, region: Region) -> PixelBox:
    """Return the smallest pixel box that holds the region; at least one pixel."""
    west, south, east, north = region.to_crs(grid.crs).bounds
    left, right = _span((west - grid.origin[0]) / grid.resolution, (east - grid.origin[0]) / grid.resolution)
    top, bottom = _span((grid.origin[1] - north) / grid.resolution, (grid.origin[1] - south) / grid.resolution)
    return PixelBox(top, left, bottom, right)


def check_holds_pixels(grid: Grid, region: Region) -> None:
    """Raise GridError where a small region lies between the centres of all pixels."""
    outer = snapped_box(grid, region)
    if outer.shape[0] * outer.shape[1] <= _FEW_PIXELS and not region_mask(grid, outer, region).any():
        raise GridError(
            f"grid.resolution: no pixel of {grid.resolution:g} has its centre in the region, so there is nothing to map; choose a finer one"
        )


def _span(first: float, last: float) -> tuple[int, int]:
    start, stop = math.floor(first + _SNAP), math.ceil(last - _SNAP)
    return start, max(stop, start + 1)


def tile_cells(grid: Grid, region: Region) -> Iterator[tuple[PixelBox, PixelBox, BaseGeometry]]:
    """Yield (uncut lattice cell, its box cropped to the region's snapped bounding box, part of the region inside it in the grid's CRS), row by row.

    Raises
    ------
    GridError
        The tile side is so small that there would be more than a million tiles.
    """
    outer = snapped_box(grid, region)
    height, width = outer.shape
    if (height // grid.tile + 1) * (width // grid.tile + 1) > MOST_TILES:
        raise GridError(
            f"grid.tile: {width} x {height} pixels in tiles of {grid.tile} are more than {MOST_TILES} tiles;"
            " choose a larger tile or a coarser resolution"
        )
    geometry = region.to_crs(grid.crs)
    shapely.prepare(geometry)
    for cell in outer.lattice(grid.tile):
        box = cell.intersect(outer)
        outline = grid.geobox(box).extent.geom
        if shapely.contains(geometry, outline):
            yield cell, box, outline
        elif shapely.intersects(geometry, outline):
            part = shapely.intersection(geometry, outline)
            if part.area > 0:
                yield cell, box, part


def region_mask(grid: Grid, box: PixelBox, region: Region) -> NDArray[np.bool_]:
    """Return which pixels of `box` have their centre inside the region, (height, width), bool.

    A pixel gets the same answer whatever box it is asked for in: polygons are burnt in cells of 1,024 pixels anchored at (0, 0), each by itself.
    """
    mask = np.zeros(box.shape, bool)
    geometry = region.to_crs(grid.crs)
    for group in box.lattice(_MASK_GROUP):
        part = _clip(grid, group, geometry)
        for cell in group.intersect(box).lattice(_MASK_CELL):
            shared = cell.intersect(box)
            mask[shared.within(box)] = _cell_mask(grid, cell, part)[shared.within(cell)]
    return mask


def _clip(grid: Grid, cell: PixelBox, geometry: BaseGeometry) -> BaseGeometry:
    return shapely.intersection(geometry, grid.geobox(cell.expand(2)).extent.geom)


def _cell_mask(grid: Grid, cell: PixelBox, geometry: BaseGeometry) -> NDArray[np.bool_]:
    geobox = grid.geobox(cell)
    part = _clip(grid, cell, geometry)
    if part.is_empty or part.area == 0:
        return np.zeros(cell.shape, bool)
    if shapely.contains(part, geobox.extent.geom):
        return np.ones(cell.shape, bool)
    inside: NDArray[np.bool_] = geometry_mask([part], cell.shape, geobox.affine, invert=True)
    return inside
