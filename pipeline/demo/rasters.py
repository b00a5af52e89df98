"""Writing rasters block by block and turning them into cloud-optimized GeoTIFFs, so that memory does not grow with the scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.shutil import copy
from rasterio.windows import Window

from pipeline.demo.tiles import PixelGrid

BLOCK = 512
"""Side of a block in pixels of 10 m: what is rendered at a time."""
SCRATCH: dict[str, Any] = {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "bigtiff": "if_safer"}


def blocks(grid: PixelGrid) -> Iterator[tuple[int, int, PixelGrid]]:
    """Yield the row, the column and the grid of every block of `grid`, row by row."""
    for row in range(0, grid.height, BLOCK):
        for column in range(0, grid.width, BLOCK):
            yield row, column, grid.part(row, column, BLOCK, BLOCK)


class RasterWriter:
    """One raster under construction: filled by blocks, made a COG when it is closed without an error."""

    def __init__(self, path: Path, grid: PixelGrid, dtype: str, count: int = 1, nodata: int | None = 0, resampling: str = "average") -> None:
        self.path = path
        self.resampling = resampling
        self._scratch = path.with_suffix(".partial.tif")
        profile = {"width": grid.width, "height": grid.height, "count": count, "dtype": dtype, "nodata": nodata}
        self.file = rasterio.open(self._scratch, "w", crs=f"EPSG:{grid.epsg}", transform=grid.transform, **profile, **SCRATCH)
        self.file.update_tags(SIMULATED="spexmap demo: simulated, not an image of any real place")

    def write(self, row: int, column: int, numbers: NDArray[np.uint16] | NDArray[np.uint8]) -> None:
        """Write a block (height, width) or (count, height, width) whose first pixel is (row, column)."""
        planes = numbers if numbers.ndim == 3 else numbers[None]
        self.file.write(planes, window=Window(column, row, planes.shape[2], planes.shape[1]))

    def __enter__(self) -> RasterWriter:
        """Return the writer itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Make the COG, or drop what was begun when something failed."""
        self.file.close()
        if kind is None:
            copy(self._scratch, self.path, driver="COG", COMPRESS="DEFLATE", PREDICTOR="YES", BLOCKSIZE=512, OVERVIEW_RESAMPLING=self.resampling)
        self._scratch.unlink()


@contextmanager
def writers(specifications: Mapping[Any, dict[str, Any]]) -> Iterator[dict[Any, RasterWriter]]:
    """Open a `RasterWriter` for each specification and close them all together."""
    with ExitStack() as stack:
        yield {key: stack.enter_context(RasterWriter(**arguments)) for key, arguments in specifications.items()}
