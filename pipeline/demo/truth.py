"""What is really there, on the job's grid: the land cover of every pixel and where each scene is clear."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.enums import ColorInterp
from scipy.ndimage import uniform_filter

from pipeline.demo.acquisitions import ACQUISITIONS, Acquisition
from pipeline.demo.items import scene_id
from pipeline.demo.landscape import landscape
from pipeline.demo.observe import Air, air_over, is_cut
from pipeline.demo.rasters import blocks, writers
from pipeline.demo.spectra import Cover
from pipeline.demo.tiles import WORLD, PixelGrid, Tile, beyond_swath, covering_patch, job_grid, make_tiles, sample

COLORS = {Cover.VEGETATION: (60, 140, 60), Cover.BUILDING: (200, 50, 50), Cover.WATER: (40, 100, 200), Cover.BARE: (205, 180, 130)}
CLEAR = 0.05
"""Optical thickness of cloud or shadow below which a pixel counts as clear."""

README = """# SIMULATED truth

Nothing here was measured: this is the invented landscape that the scenes beside it were computed from (spexmap demo, seed {seed}, size {size}).

- `landcover.tif`: what covers most of each pixel of the job's grid, uint8: 1 vegetation, 2 building (roofs, streets, yards), 3 water, 4 bare (soil,
  sand, gravel, rock, fallow).
- `clear.tif`: one band a scene, named by the scene's id, uint8: 1 where neither cloud nor shadow of an optical thickness of {clear} or more lies over
  the pixel and the scene has data, else 0. This is the truth; the scenes' own SCL misses some thin edges and flags some clear ground, as in reality.
"""


def write_truth(directory: Path, seed: int, size: int) -> None:
    """Write landcover.tif, clear.tif and README.md into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    grid, scenes = job_grid(size), [(tile, acquisition) for tile in make_tiles(size) for acquisition in ACQUISITIONS]
    specifications = {
        "landcover": {"path": directory / "landcover.tif", "grid": grid, "dtype": "uint8", "resampling": "mode"},
        "clear": {"path": directory / "clear.tif", "grid": grid, "dtype": "uint8", "count": len(scenes), "nodata": None, "resampling": "nearest"},
    }
    with writers(specifications) as files:
        files["landcover"].file.write_colormap(1, {int(code): (*color, 255) for code, color in COLORS.items()})
        files["landcover"].file.update_tags(1, **{f"CLASS_{int(code)}": code.name.lower() for code in Cover})
        files["clear"].file.colorinterp = [ColorInterp.gray] + [ColorInterp.undefined] * (len(scenes) - 1)
        for band, scene in enumerate(scenes, start=1):
            files["clear"].file.set_band_description(band, scene_id(*scene))
        for row, column, block in blocks(grid):
            x, y = block.world()
            files["landcover"].write(row, column, true_cover(x, y, seed))
            files["clear"].write(row, column, clear_scenes(x, y, seed, scenes))
    (directory / "README.md").write_text(README.format(seed=seed, size=size, clear=CLEAR), encoding="utf-8")


def true_cover(x: NDArray[np.float64], y: NDArray[np.float64], seed: int) -> NDArray[np.uint8]:
    """Return the class that fills most of the ten-metre pixels around the points (world metres), uint8 in their shape."""
    patch = covering_patch(x, y)
    cover = landscape(patch, seed).cover
    best, share = np.zeros(x.shape, np.uint8), np.full(x.shape, -1, np.float32)
    for code in Cover:
        part = sample(uniform_filter((cover == code).astype(np.float32), 2, origin=-1), patch, x - 2.5, y + 2.5)
        best = np.where(part > share, np.uint8(code), best)
        share = np.maximum(share, part)
    return best


def clear_scenes(x: NDArray[np.float64], y: NDArray[np.float64], seed: int, scenes: list[tuple[Tile, Acquisition]]) -> NDArray[np.uint8]:
    """Return 1 where each scene sees the points (world metres) unveiled, else 0: (scenes, height, width) uint8."""
    air = [air_over(x, y, seed, acquisition) for acquisition in ACQUISITIONS]
    return np.stack([_is_clear(tile, acquisition, air[acquisition.number], x, y) for tile, acquisition in scenes])


def _is_clear(tile: Tile, acquisition: Acquisition, air: Air, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.uint8]:
    clear = (air.cloud < CLEAR) & (air.shadow < CLEAR) & _inside(tile.grid, x, y)
    if is_cut(tile, acquisition):
        clear &= ~beyond_swath(tile.grid.width, x, y)
    return clear.astype(np.uint8)


def _inside(grid: PixelGrid, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    easting, northing = Transformer.from_crs(WORLD, grid.epsg, always_xy=True).transform(x, y)
    column, row = (easting - grid.left) / grid.resolution, (grid.top - northing) / grid.resolution
    return np.asarray((column >= 0) & (column < grid.width) & (row >= 0) & (row < grid.height))
