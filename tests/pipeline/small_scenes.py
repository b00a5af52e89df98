"""Small scenes as files, for tests that read them in one way or another."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import rasterio
from rasterio.warp import transform_bounds
from shapely.geometry import box as rectangle

from pipeline.grid import Grid, PixelBox
from stac.scenes import BandSource, MaskSource, Scene

GRID, BOX = Grid("EPSG:32633", 10, (500000, 5000000), 1024), PixelBox(0, 0, 120, 130)
WARPED, WARPED_BOX = Grid("EPSG:32634", 10, (28000, 5018000), 1024), PixelBox(30, 10, 200, 160)
MASK = MaskSource("", nodata=0, clear=(4,), cloud=(9,))


def scene(folder: Path, name: str, number: int, codes: np.ndarray | int = 4) -> Scene:
    """A scene of 100 x 110 pixels from global pixel (0, 0) on: one number in blue and nir, a mask with `codes`."""
    for band in ("blue", "nir"):
        written(folder / f"{name}-{band}.tif", np.full((100, 110), number, np.uint16))
    bounds = written(folder / f"{name}-mask.tif", np.broadcast_to(np.uint8(codes), (100, 110)))
    outline = rectangle(*transform_bounds("EPSG:32633", "EPSG:4326", *bounds))
    bands = {band: BandSource(str(folder / f"{name}-{band}.tif")) for band in ("blue", "nir")}
    when = datetime.fromisoformat("2023-08-10T00:00:00+00:00")
    return Scene(name, "c", "s", when, outline, bands, replace(MASK, href=str(folder / f"{name}-mask.tif")))


def written(path: Path, numbers: np.ndarray) -> tuple[float, ...]:
    height, width = numbers.shape
    transform = rasterio.transform.from_origin(500000, 5000000, 10, 10)
    options = {"nodata": 0, "tiled": True, "blockxsize": 64, "blockysize": 64}
    with rasterio.open(path, "w", "GTiff", width, height, 1, "EPSG:32633", transform, numbers.dtype, **options) as dataset:
        dataset.write(numbers, 1)
        return tuple(dataset.bounds)


def at(scene: Scene, url: str, query: str = "") -> Scene:
    """The same scene, its files below `url`."""

    def moved(source: BandSource | MaskSource) -> str:
        return f"{url}/{Path(source.href).name}{query}"

    assert scene.mask is not None
    bands = {name: replace(band, href=moved(band)) for name, band in scene.bands.items()}
    return replace(scene, bands=bands, mask=replace(scene.mask, href=moved(scene.mask)))
