"""A look at the pixels: a small decimated sample of a band, never an error and never a long wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from spexmap import SpexmapError
from stac.documents import is_url
from stac.scenes import BandSource
from stac.signing import gdal_path

Probe = Callable[[BandSource, int], NDArray[np.generic] | None]
"""(band, wanted) -> numbers of a decimated read of about wanted x wanted pixels, or None where the band cannot be read."""

_ATTEMPTS = 3
_LIMITS = {
    "GDAL_HTTP_CONNECTTIMEOUT": 10,
    "GDAL_HTTP_TIMEOUT": 30,
    "GDAL_HTTP_LOW_SPEED_TIME": 10,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 1000,
    "GDAL_HTTP_MAX_RETRY": 3,
    "GDAL_HTTP_RETRY_DELAY": 0.3,
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
}
# From the second attempt on GDAL forgets what it knows of a file, and with it that the file could not be read.
_FORGET = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/"}

T = TypeVar("T")


def driver_of(path: str) -> str:
    """Return the format that a file is opened as: JPEG 2000 by its name, else GeoTIFF. A virtual raster could name any other file or host."""
    return "JP2OpenJPEG" if path.partition("?")[0].lower().endswith((".jp2", ".j2k")) else "GTiff"


def look_at(href: str, look: Callable[[Any], T]) -> T:
    """Return what `look` makes of the opened file; one at a URL is tried three times, each on a fresh handle.

    Raises
    ------
    OSError
        It cannot be opened or read; also as rasterio's errors.
    """
    errors = (RasterioError, OSError)
    attempts = stop_after_attempt(_ATTEMPTS if is_url(href) else 1)
    for attempt in Retrying(stop=attempts, wait=wait_exponential(multiplier=0.2, max=5), retry=retry_if_exception_type(errors), reraise=True):
        options = _LIMITS | (_FORGET if attempt.retry_state.attempt_number > 1 else {})
        path = gdal_path(href)
        with attempt, rasterio.Env(**options), rasterio.open(path, driver=driver_of(href)) as source:
            return look(source)
    raise AssertionError("tenacity returns or raises")


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

    def sample(source: Any) -> NDArray[np.generic]:
        rows, columns = _sample_shape(source, band.index, wanted)
        numbers: NDArray[Any] = source.read(band.index, out_shape=(rows, columns), resampling=Resampling.nearest)
        return numbers

    try:
        return look_at(band.href, sample)
    except (RasterioError, SpexmapError, OSError, IndexError, ValueError):
        return None


def _sample_shape(source: Any, index: int, wanted: int) -> tuple[int, int]:
    longer = max(source.height, source.width)
    fitting = [factor for factor in source.overviews(index) if longer / factor >= wanted]
    # Exactly an overview's shape, so that GDAL reads that overview and nothing finer.
    factor = max(fitting, default=max(1, longer // wanted) if not source.overviews(index) else 1)
    return -(-source.height // factor), -(-source.width // factor)
