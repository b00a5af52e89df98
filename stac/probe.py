"""A look at the pixels: a small decimated sample of a band, never an error and never a long wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from spexmap import SpexmapError
from stac.scenes import BandSource
from stac.signing import gdal_path

Probe = Callable[[BandSource, int], NDArray[np.generic] | None]
"""(band, wanted) -> numbers of a decimated read of about wanted x wanted pixels, or None where the band cannot be read."""

_LIMITS = {
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": 30,
    "GDAL_HTTP_LOW_SPEED_TIME": 10,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 1,
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}


def sample_numbers(band: BandSource, wanted: int = 256) -> NDArray[np.generic] | None:
    """Return numbers of a band as a decimated read: the coarsest overview that still has `wanted` pixels on its longer side.

    Parameters
    ----------
    band
        What to read; its href is signed here and now.
    wanted
        Pixels on the longer side, at least (fewer where the file has fewer).

    Returns
    -------
    (H, W) in the file's dtype, no data included; None where the file cannot be read in time.
    """
    try:
        with rasterio.Env(**_LIMITS), rasterio.open(gdal_path(band.href)) as source:
            rows, columns = _sample_shape(source, band.index, wanted)
            numbers: NDArray[Any] = source.read(band.index, out_shape=(rows, columns), resampling=Resampling.nearest)
            return numbers
    except (RasterioError, SpexmapError, OSError, IndexError, ValueError):
        return None


def _sample_shape(source: Any, index: int, wanted: int) -> tuple[int, int]:
    longer = max(source.height, source.width)
    fitting = [factor for factor in source.overviews(index) if longer / factor >= wanted]
    # Exactly an overview's shape, so that GDAL reads that overview and nothing finer.
    factor = max(fitting, default=max(1, longer // wanted) if not source.overviews(index) else 1)
    return -(-source.height // factor), -(-source.width // factor)
