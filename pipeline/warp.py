"""The pixels of one file on the job's grid, the same numbers whichever box they are asked for in.

A file whose pixels lie on the grid is read by plain windows. Any other is warped in fixed cells of `CELL` pixels that are anchored at global index
(0, 0). Left alone, GDAL chooses its kernel's scale and its approximation of the projection for each chunk anew, and then a pixel's number depends on
the chunk. So each cell is one warp of its own, with XSCALE and YSCALE fixed for the file, a tolerance of a millionth of a pixel and a chosen
overview.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from math import ceil, floor, hypot, inf, isfinite
from typing import Any
from uuid import uuid4
from xml.etree.ElementTree import Element, SubElement, tostring

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo import CRS as GridCRS
from rasterio.crs import CRS
from rasterio.dtypes import _gdal_typename
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as project
from rasterio.warp import transform_bounds
from rasterio.windows import Window

from pipeline.grid import Grid, PixelBox
from stac.probe import driver_of

CELL = 256
"""Side of a warped cell: the smaller, the less is computed beyond a box; below this the set-up of a warp shows."""
TOLERANCE = 1e-6
"""Error of the approximated projection, and of being on the grid, in pixels."""
_STRIP = 512
_UNTOUCHED = np.float32(-(2.0**30))
_ANYWHERE = PixelBox(-(2**40), -(2**40), 2**40, 2**40)


@dataclass(frozen=True)
class Layout:
    """How the pixels of a file lie relative to a grid: what its header says, read once. Bands of equal layout can be warped together."""

    level: int
    """Overview to read; -1 is the file's own pixels."""
    shape: tuple[int, int]
    """Height and width at that level."""
    transform: Affine
    """From (column, row) at that level to the file's CRS."""
    crs: str
    """The file's CRS as WKT."""
    dtype: str
    nodata: float | None
    fill: float | None
    """Another number that the file itself calls no data; None where there is none."""
    corner: tuple[int, int] | None
    """Global row and column of the first pixel where the pixels lie on the grid; None where they must be warped."""
    scale: tuple[float, float]
    """Grid pixels a file pixel, along the file's columns and rows, at its centre."""
    extent: PixelBox
    """Holds every global pixel that the file can reach."""


def lay_out(path: str, index: int, grid: Grid, nodata: float | None, exact: bool) -> Layout:
    """Return how band `index` (from 1) of the file lies on the grid.

    Parameters
    ----------
    nodata
        The number that means no data; None takes the file's own word.
    exact
        Never use an overview (masks: an averaged code means nothing).

    Raises
    ------
    rasterio.errors.RasterioError
        The file cannot be opened.
    ValueError
        It has no georeference, or lies where the grid's CRS does not reach.
    """
    level = -1
    with _opened(path, level) as dataset:
        _check_header(dataset, index)
        if not exact:
            level = _overview(dataset.overviews(index), max(_scale(dataset, grid)))
    with _opened(path, level) as dataset:
        corner, dtype = _corner(dataset, grid), dataset.dtypes[index - 1]
        own = _representable(dataset.nodatavals[index - 1], dtype)
        missing = _representable(nodata, dtype)
        missing = own if missing is None else missing
        return Layout(
            level=level,
            shape=dataset.shape,
            transform=dataset.transform,
            crs=dataset.crs.to_wkt(),
            dtype=dtype,
            nodata=missing,
            fill=None if own == missing or own != own else own,
            corner=corner,
            scale=_scale(dataset, grid),
            extent=_extent(dataset, grid) if corner is None else _at(corner, dataset.shape),
        )


Band = tuple[str, int]
"""Path of a file and index of one of its bands, from 1."""
Part = tuple[PixelBox, NDArray[Any]]
"""A box and its converted numbers (..., H, W)."""
Convert = Callable[[NDArray[np.float32]], NDArray[Any]]
Keep = Callable[[PixelBox, Callable[[], NDArray[Any]]], NDArray[Any]]


def pixels(
    bands: Sequence[Band],
    layout: Layout,
    grid: Grid,
    box: PixelBox,
    wanted: NDArray[np.bool_] | None,
    bilinear: bool,
    convert: Convert = lambda numbers: numbers,
    keep: Keep = lambda cell, make: make(),
) -> Iterator[Part]:
    """Yield parts of `box` with what `convert` makes of the numbers of bands of one layout; parts that they do not reach are left out.

    Parameters
    ----------
    bands
        Path and index (from 1) of each.
    wanted
        Bool array of the shape of `box`; parts without a wanted pixel are left out too.
    bilinear
        Resample bilinearly from neighbours that have data, widened where the grid is coarser than the file; else take the nearest pixel.
    convert
        From float32 (bands, H, W), NaN where there is no data, to an array (..., H, W).
    keep
        Called with each cell to warp, and what makes its converted array; returns that array, perhaps one that was made before.

    Raises
    ------
    rasterio.errors.RasterioError
        A file cannot be read.
    """
    reach = box.intersect(layout.extent)
    if reach.is_empty:
        return
    parts = [part for part in (reach.lattice(CELL) if layout.corner is None else _strips(reach)) if _any(wanted, box, part.intersect(reach))]
    read = _windows(bands, layout, parts, convert) if layout.corner else _warps(bands, layout, grid, parts, bilinear, convert, keep)
    for part, converted in read:
        needed = part.intersect(reach)
        yield needed, converted[..., *needed.within(part)]


def _any(wanted: NDArray[np.bool_] | None, box: PixelBox, part: PixelBox) -> bool:
    return wanted is None or bool(wanted[part.within(box)].any())


def _opened(path: str, level: int) -> Any:
    options = {} if level < 0 else {"overview_level": level}
    return rasterio.open(path, driver=driver_of(path), **options)


def _check_header(dataset: Any, index: int) -> None:
    if dataset.crs is None:
        raise ValueError("the file has no coordinate reference system")
    if not 1 <= index <= dataset.count:
        raise ValueError(f"the file has {dataset.count} bands, and band {index} is asked of it")
    kind = dataset.dtypes[index - 1]
    if kind.startswith("complex"):
        raise ValueError(f"its numbers are {kind}")


def _at(corner: tuple[int, int], shape: tuple[int, int]) -> PixelBox:
    return PixelBox(*corner, corner[0] + shape[0], corner[1] + shape[1])


def _strips(box: PixelBox) -> Iterator[PixelBox]:
    for top in range(box.top, box.bottom, _STRIP):
        yield PixelBox(top, box.left, min(top + _STRIP, box.bottom), box.right)


def _windows(bands: Sequence[Band], layout: Layout, parts: Sequence[PixelBox], convert: Convert) -> Iterator[Part]:
    assert layout.corner is not None
    with ExitStack() as stack:
        opened = [(stack.enter_context(_opened(path, layout.level)), index) for path, index in bands]
        for part in parts:
            height, width = part.shape
            window = Window(part.left - layout.corner[1], part.top - layout.corner[0], width, height)
            numbers = np.empty((len(bands), height, width), np.float32)
            for plane, (dataset, index) in zip(numbers, opened, strict=True):
                dataset.read(index, window=window, out=plane)
            for missing in (layout.nodata, layout.fill):
                if missing is not None:
                    numbers[numbers == np.float32(missing)] = np.nan
            yield part, convert(numbers)


def _warps(
    bands: Sequence[Band], layout: Layout, grid: Grid, cells: Sequence[PixelBox], bilinear: bool, convert: Convert, keep: Keep
) -> Iterator[Part]:
    # Without a no-data value of its own the warp leaves INIT_DEST where nothing was written, also for files that have none. With rasterio's choice
    # for UNIFIED_SRC_NODATA a pixel that one band lacks would be interpolated from the number that means no data.
    options = {
        "XSCALE": _kernel_scale(layout.scale[0]),
        "YSCALE": _kernel_scale(layout.scale[1]),
        "SOURCE_EXTRA": str(2 + ceil(1 / min(1.0, *layout.scale))),
        "INIT_DEST": str(float(_UNTOUCHED)),
        "UNIFIED_SRC_NODATA": "PARTIAL",
        "NUM_THREADS": "1",
        "crs": grid_crs(grid.crs),
        "src_nodata": layout.nodata,
        "dtype": "float32",
        "resampling": Resampling.bilinear if bilinear else Resampling.nearest,
        "tolerance": TOLERANCE,
        "init_dest_nodata": False,
        "height": CELL,
        "width": CELL,
    }
    with ExitStack() as stack:
        opened: list[Any] = []

        def warped(cell: PixelBox) -> NDArray[Any]:
            if not opened:
                opened.append(stack.enter_context(rasterio.open(_stacked(bands, layout))))
            with WarpedVRT(opened[0], transform=grid.transform * Affine.translation(cell.left, cell.top), **options) as dataset:
                numbers: NDArray[np.float32] = dataset.read()
            numbers[numbers == _UNTOUCHED] = np.nan
            return convert(numbers)

        for cell in cells:
            yield cell, keep(cell, partial(warped, cell))


def _stacked(bands: Sequence[Band], layout: Layout) -> str:
    """Return a virtual file of the bands, so that one projection of a cell serves them all; most of a warp's time goes there.

    Sources say nothing of their size: GDAL then opens them with the virtual file, on handles that no one else has. Each also gets an option that no
    other virtual file has: GDAL's pool of handles remembers one that it failed to open, by name, options and the address of the virtual file, and
    gives a later one at that address no pixels and no error.
    """
    once = uuid4().hex
    dtype = _gdal_typename(layout.dtype)
    root = Element("VRTDataset", rasterXSize=str(layout.shape[1]), rasterYSize=str(layout.shape[0]))
    SubElement(root, "SRS").text = layout.crs
    SubElement(root, "GeoTransform").text = ", ".join(repr(float(number)) for number in layout.transform.to_gdal())
    for number, (path, index) in enumerate(bands, start=1):
        band = SubElement(root, "VRTRasterBand", dataType=dtype, band=str(number))
        if layout.fill is not None:
            # What the file calls no data stays what the virtual file begins with: the number that the warp leaves out.
            SubElement(band, "NoDataValue").text = repr(layout.nodata)
        source = SubElement(band, "SimpleSource" if layout.fill is None else "ComplexSource")
        SubElement(source, "SourceFilename", relativeToVRT="0", shared="0").text = path
        options = SubElement(source, "OpenOptions")
        SubElement(options, "OOI", key="@OPENED").text = once
        if layout.level >= 0:
            SubElement(options, "OOI", key="OVERVIEW_LEVEL").text = str(layout.level)
        SubElement(source, "SourceBand").text = str(index)
        if layout.fill is not None:
            SubElement(source, "NODATA").text = repr(layout.fill)
    return tostring(root, encoding="unicode")


def _kernel_scale(scale: float) -> str:
    # GDAL itself does not widen its kernel above 0.95.
    return "1" if scale >= 0.95 else f"{scale:.6g}"


@lru_cache(maxsize=8)
def grid_crs(crs: str) -> CRS:
    """Return rasterio's form of a grid's CRS."""
    return CRS.from_wkt(GridCRS(crs).to_wkt())


@lru_cache(maxsize=64)
def same_crs(one: str, other: str) -> bool:
    """Return whether two CRSs, as WKT, are the same one."""
    return one == other or bool(CRS.from_wkt(one) == CRS.from_wkt(other))


def _overview(factors: list[int], scale: float) -> int:
    """Return the coarsest overview whose pixels are still no larger than the grid's (within 1 %, what a projection stretches); -1: none."""
    fitting = [level for level, factor in enumerate(factors) if factor * scale <= 1.01]
    return max(fitting, key=lambda level: factors[level], default=-1)


def _scale(dataset: Any, grid: Grid) -> tuple[float, float]:
    column, row = dataset.width / 2, dataset.height / 2
    corners = [dataset.transform * at for at in ((column, row), (column + 1, row), (column, row + 1))]
    xs, ys = project(dataset.crs, grid_crs(grid.crs), [x for x, _ in corners], [y for _, y in corners])
    centre, right, down = (~grid.transform * at for at in zip(xs, ys, strict=True))
    steps = hypot(right[0] - centre[0], right[1] - centre[1]), hypot(down[0] - centre[0], down[1] - centre[1])
    if not all(isfinite(step) and step > 0 for step in steps):
        raise ValueError(f"the file's centre cannot be projected to {grid.crs}")
    return steps


def _corner(dataset: Any, grid: Grid) -> tuple[int, int] | None:
    """Return row and column of the file's first pixel where every one of its pixels lies on the grid."""
    if dataset.crs != grid_crs(grid.crs):
        return None
    first, last = (~grid.transform * (dataset.transform * at) for at in ((0, 0), (dataset.width, dataset.height)))
    column, row = round(first[0]), round(first[1])
    exact = (column, row), (column + dataset.width, row + dataset.height)
    off = max(abs(a - b) for found, wanted in zip((first, last), exact, strict=True) for a, b in zip(found, wanted, strict=True))
    straight = dataset.transform.b == 0 and dataset.transform.d == 0
    return (row, column) if straight and off <= TOLERANCE else None


def _extent(dataset: Any, grid: Grid) -> PixelBox:
    # A file that is stored south up has its bottom above its top.
    (left, right), (bottom, top) = sorted(dataset.bounds[::2]), sorted(dataset.bounds[1::2])
    west, south, east, north = transform_bounds(dataset.crs, grid_crs(grid.crs), left, bottom, right, top, densify_pts=101)
    left, top = ~grid.transform * (west, north)
    right, bottom = ~grid.transform * (east, south)
    if not (all(abs(edge) < inf for edge in (left, top, right, bottom)) and west < east):
        return _ANYWHERE
    return PixelBox(floor(top) - 2, floor(left) - 2, ceil(bottom) + 2, ceil(right) + 2)


def _representable(nodata: float | None, dtype: str) -> float | None:
    """Return `nodata` where numbers of `dtype` can hold it, else None: no pixel can have it."""
    if nodata is None or np.issubdtype(dtype, np.floating):
        return nodata
    limits = np.iinfo(dtype)
    return nodata if float(nodata).is_integer() and limits.min <= nodata <= limits.max else None
