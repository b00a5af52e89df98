"""Overviews of rasters whose numbers are codes: each pixel is a mode of the up to four pixels it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.vrt import BLOCK

Codes = NDArray[np.unsignedinteger[Any]]


def mode_of_four(codes: Codes, nodata: int) -> Codes:
    """Return the next overview level of `codes` (H, W): (ceil(H/2), ceil(W/2)), same dtype.

    Every pixel is the most frequent valid number of its up to four children, the lowest on ties, and `nodata` only where all children are. GDAL's own
    MODE overviews in a COG halve odd sides downwards: a fifth of the pixels are then no mode of their children.
    """
    first, last = _sort_four(*_children(codes, nodata))
    lowest, second, third, highest = *first, *last
    absent = _absent(codes.dtype)
    twice_second = (second == third) & (third != absent)
    twice_third = (third == highest) & (third != absent)
    modes = np.where(lowest == second, lowest, np.where(twice_second, second, np.where(twice_third, third, lowest)))
    return _undo_shift(modes, nodata)


def _absent(dtype: np.dtype[Any]) -> int:
    return int(np.iinfo(dtype).max)


def _children(codes: Codes, nodata: int) -> list[Codes]:
    """The four children of every overview pixel, with no data as the highest number, so that sorting puts it last."""
    rows, columns = codes.shape
    padded = codes
    if rows % 2 or columns % 2:
        padded = np.pad(codes, ((0, rows % 2), (0, columns % 2)), constant_values=nodata)
    return [_shift(padded[row::2, column::2], nodata) for row in (0, 1) for column in (0, 1)]


def _shift(codes: Codes, nodata: int) -> Codes:
    """Map `nodata` to the highest number and keep the order of all others: those above it move down by one."""
    if nodata == _absent(codes.dtype):
        return codes
    if nodata == 0:
        return codes - codes.dtype.type(1)
    moved = codes - (codes > nodata).astype(codes.dtype)
    return np.where(codes == nodata, codes.dtype.type(_absent(codes.dtype)), moved)


def _undo_shift(codes: Codes, nodata: int) -> Codes:
    absent = _absent(codes.dtype)
    if nodata == absent:
        return codes
    if nodata == 0:
        return codes + codes.dtype.type(1)
    moved = codes + ((codes >= nodata) & (codes != absent)).astype(codes.dtype)
    return np.where(codes == absent, codes.dtype.type(nodata), moved)


def _sort_four(a: Codes, b: Codes, c: Codes, d: Codes) -> tuple[tuple[Codes, Codes], tuple[Codes, Codes]]:
    """Sort elementwise with the five comparators of the smallest network."""
    a, b = np.minimum(a, b), np.maximum(a, b)
    c, d = np.minimum(c, d), np.maximum(c, d)
    a, c = np.minimum(a, c), np.maximum(a, c)
    b, d = np.minimum(b, d), np.maximum(b, d)
    return (a, np.minimum(b, c)), (np.maximum(b, c), d)


def level_shapes(shape: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the shapes of the overview levels of a raster of `shape`, finest first, until one tile holds a level."""
    shapes = []
    while max(shape) > BLOCK:
        shape = -(-shape[0] // 2), -(-shape[1] // 2)
        shapes.append(shape)
    return shapes


def write_levels(base: Path, nodata: int) -> list[Path]:
    """Write the overview levels of the GeoTIFF `base` (one band) beside it as plain tiled GeoTIFFs and return their paths, finest first.

    Works strip by strip: memory is a few strips of 1,024 rows, whatever the raster's height.
    """
    with rasterio.open(base) as source:
        shape, dtype, crs, transform = source.shape, source.dtypes[0], source.crs, source.transform
    levels: list[Path] = []
    for number, level_shape in enumerate(level_shapes(shape), start=1):
        finer = levels[-1] if levels else base
        levels.append(base.with_name(f"{base.stem}.{number}.tif"))
        georeference = {"crs": crs, "transform": transform @ Affine.scale(2**number)}
        with open_plain(levels[-1], level_shape, dtype, nodata, **georeference) as target, rasterio.open(finer) as source:
            _write_level(source, target, nodata)
    return levels


def open_plain(path: Path, shape: tuple[int, int], dtype: str, nodata: int, **georeference: Any) -> Any:
    """Open a new uncompressed tiled GeoTIFF of one band for writing: what blocks are gathered in before the COG is made."""
    profile = {"driver": "GTiff", "count": 1, "tiled": True, "blockxsize": BLOCK, "blockysize": BLOCK, "BIGTIFF": "IF_SAFER"}
    return rasterio.open(path, "w", height=shape[0], width=shape[1], dtype=dtype, nodata=nodata, **profile, **georeference)


def _write_level(source: Any, target: Any, nodata: int) -> None:
    rows, columns = target.shape
    for top in range(0, rows, BLOCK):
        height = min(BLOCK, rows - top)
        finer = source.read(1, window=Window(0, 2 * top, source.width, min(2 * height, source.height - 2 * top)))
        target.write(mode_of_four(finer, nodata), 1, window=Window(0, top, columns, height))
