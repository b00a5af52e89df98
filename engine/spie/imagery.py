"""Imagery as reflectance with canonical bands, read box by box."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer
from rasterio.enums import Resampling
from rasterio.windows import Window

from engine.spie.errors import UnusableImagery

LIMIT_OF_REFLECTANCE = 2.0
"""A median above this is digital numbers, not reflectance."""

BRIGHTEST_BYTE = 0.0255
"""What a byte can be at most if it is taken for ten-thousandths. Real chips of dark water alone are darker: reason to warn, not to refuse."""

MANY_NEGATIVE = 0.25
"""A larger share of negative numbers comes from a wrong offset; up to 0.12 were seen on real chips."""


class Box(NamedTuple):
    """Pixels of an image; a part of them may lie outside."""

    top: int
    left: int
    height: int
    width: int

    def grown(self, margin: int) -> Box:
        """Return the box with a margin all around."""
        return Box(self.top - margin, self.left - margin, self.height + 2 * margin, self.width + 2 * margin)


@dataclass(frozen=True)
class Calibration:
    """How stored numbers become reflectance: ``number * scale + offset``."""

    scale: float | None = None
    """None: what the file says, or 1 where its numbers are floats."""
    offset: float | None = None
    nodata: float | None = None
    """Number that stands for no data; None: what the file says."""


class Image(Protocol):
    """What a data set is cut from."""

    @property
    def name(self) -> str:
        """Unique within a data set."""

    @property
    def origin(self) -> str:
        """Path as it was given."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Canonical names of the channels."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    @property
    def crs(self) -> CRS | None:
        """None: without a georeference."""

    @property
    def transform(self) -> Affine:
        """From columns and rows to the CRS."""

    @property
    def place(self) -> str:
        """Images of the same non-empty place lie on the same ground."""

    def reflectance(self, box: Box, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Return (C, h, w), NaN where one band has no data and outside the image; `shape` samples the nearest pixels of a box that lies inside."""


@dataclass(frozen=True)
class RasterImage:
    """Bands of one GeoTIFF, or of several with the same grid."""

    name: str
    files: tuple[Path, ...]
    """One for each band; the same one for all bands of a file."""
    channels: tuple[int, ...]
    """Of each band in its file, from 1."""
    bands: tuple[str, ...]
    calibration: Calibration
    shape: tuple[int, int]
    crs: CRS | None
    transform: Affine
    place: str = ""

    @property
    def origin(self) -> str:
        """The file, or the folder of the files."""
        return (self.files[0] if len(set(self.files)) == 1 else self.files[0].parent).as_posix()

    @cached_property
    def _numbers(self) -> dict[Path, tuple[NDArray[np.float64], NDArray[np.float64], list[float | None]]]:
        """Scale, offset and no-data number of the channels of each file."""
        return {path: calibrated(path, self.calibration) for path in dict.fromkeys(self.files)}

    def reflectance(self, box: Box, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Return (C, h, w) float32 as `Image` says."""
        inside, window = _inside(box, self.shape)
        sampled = shape or (box.height, box.width)
        chip = np.full((len(self.bands), *sampled), np.nan, np.float32)
        if window is None:
            return chip
        size = shape or (window.height, window.width)
        rows = [self._channel(path, channel, window, size) for path, channel in zip(self.files, self.channels, strict=True)]
        chip[(slice(None), *(inside if shape is None else (slice(None), slice(None))))] = np.stack(rows)
        return np.where(np.isfinite(chip).all(0), chip, np.float32(np.nan))

    def _channel(self, path: Path, channel: int, window: Window, size: tuple[int, int]) -> NDArray[np.float32]:
        scales, offsets, nodata = self._numbers[path]
        with rasterio.open(path) as source:
            numbers = source.read(channel, window=window, out_shape=size, resampling=Resampling.nearest)
            mask = source.read_masks(channel, window=window, out_shape=size, resampling=Resampling.nearest) > 0
        if nodata[channel - 1] is not None:
            mask = numbers != nodata[channel - 1] if self.calibration.nodata is not None else mask & (numbers != nodata[channel - 1])
        values = numbers.astype(np.float64) * scales[channel - 1] + offsets[channel - 1]
        return np.where(mask & np.isfinite(values), values, np.nan).astype(np.float32)


@dataclass(frozen=True)
class ArrayImage:
    """One chip of an .npz file whose array `reflectance` is (N, C, H, W)."""

    name: str
    file: Path
    number: int
    bands: tuple[str, ...]
    calibration: Calibration
    stored: NDArray[Any]
    """(C, H, W) as stored, the channels of `bands`."""
    place: str = ""
    crs: CRS | None = None
    transform: Affine = field(default_factory=Affine.identity)

    @property
    def origin(self) -> str:
        """The file and the number of the chip in it."""
        return f"{self.file.as_posix()}#{self.number}"

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.stored.shape[1], self.stored.shape[2]

    def reflectance(self, box: Box, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Return (C, h, w) float32 as `Image` says."""
        numbers = self.stored.astype(np.float64)
        values = numbers * (1.0 if self.calibration.scale is None else self.calibration.scale) + (self.calibration.offset or 0.0)
        if self.calibration.nodata is not None:
            values = np.where(numbers == self.calibration.nodata, np.nan, values)
        values = np.where(np.isfinite(values).all(0), values, np.nan).astype(np.float32)
        return cut(values, box, shape, np.float32(np.nan))


def cut(values: NDArray[Any], box: Box, shape: tuple[int, int] | None, outside: Any) -> NDArray[Any]:
    """Return a box of an array (..., H, W), `outside` beyond its edges; `shape` samples the nearest pixels of a box that lies inside."""
    inside, window = _inside(box, (values.shape[-2], values.shape[-1]))
    chip = np.full((*values.shape[:-2], box.height, box.width), outside, values.dtype)
    if window is not None:
        rows, columns = window.toslices()
        chip[(..., *inside)] = values[..., rows, columns]
    if shape is None:
        return chip
    rows, columns = ((np.arange(n) + 0.5) * side / n for n, side in zip(shape, (box.height, box.width), strict=True))
    return chip[..., rows.astype(int)[:, None], columns.astype(int)[None]]


def _inside(box: Box, shape: tuple[int, int]) -> tuple[tuple[slice, slice], Window | None]:
    """Return where the pixels inside the image lie in the box, and their window; None where there are none."""
    top, left = max(box.top, 0), max(box.left, 0)
    bottom, right = min(box.top + box.height, shape[0]), min(box.left + box.width, shape[1])
    if bottom <= top or right <= left:
        return (slice(0, 0), slice(0, 0)), None
    here = (slice(top - box.top, bottom - box.top), slice(left - box.left, right - box.left))
    return here, Window(left, top, right - left, bottom - top)


def calibrated(path: Path, asked: Calibration) -> tuple[NDArray[np.float64], NDArray[np.float64], list[float | None]]:
    """Return scale, offset and no-data number of each channel; refuses whole numbers whose scale nobody says."""
    with rasterio.open(path) as source:
        scales, offsets = np.array(source.scales), np.array(source.offsets)
        nodata = [asked.nodata if asked.nodata is not None else number for number in source.nodatavals]
        if asked.scale is None and all(np.dtype(kind).kind in "iu" for kind in source.dtypes) and (scales == 1).all():
            raise UnusableImagery(
                f"{path} holds whole numbers without their scale; give --scale (0.0001 for most satellite products, 1/255 for bytes)"
            )
    scales = scales if asked.scale is None else np.full_like(scales, asked.scale)
    offsets = offsets if asked.offset is None and asked.scale is None else np.full_like(offsets, asked.offset or 0.0)
    return scales, offsets, [None if number is None or math.isnan(number) else number for number in nodata]


def ground_resolution(image: Image, given: float | None = None) -> float:
    """Return the side of a square of a pixel's area on the ground, in metres, at the centre of the image.

    Raises
    ------
    UnusableImagery
        The image has no georeference and `given` is None, or `given` differs from it by more than a tenth.
    """
    if image.crs is None:
        if given is None:
            raise UnusableImagery(f"{image.origin} has no georeference; give --resolution, the metres of a pixel")
        return given
    measured = _measured_resolution(image)
    if given is not None and not 0.9 <= given / measured <= 1 / 0.9:
        raise UnusableImagery(f"{image.origin} has pixels of {measured:.4g} m, not of --resolution {given:g} m; resample it or leave the option out")
    return measured


def _measured_resolution(image: Image) -> float:
    assert image.crs is not None
    row, column = image.shape[0] / 2, image.shape[1] / 2
    corners = [image.transform @ place for place in ((column, row), (column + 1, row), (column, row + 1))]
    to_degrees = Transformer.from_crs(image.crs, CRS("EPSG:4326"), always_xy=True)
    (lon, lat), *others = [to_degrees.transform(*corner) for corner in corners]
    sides = [Geod(ellps="WGS84").inv(lon, lat, *other)[2] for other in others]
    return float(f"{math.sqrt(sides[0] * sides[1]):.6g}")


def check_reflectance(image: Image, sampled: NDArray[np.float32]) -> None:
    """Raise `UnusableImagery` where sampled numbers (C, h, w) are no reflectance: digital numbers, or nothing but no data."""
    finite = sampled[np.isfinite(sampled)]
    if not finite.size:
        raise UnusableImagery(f"{image.origin} has no pixel with data in all of {', '.join(image.bands)}")
    middle = float(np.median(finite))
    if not -0.1 <= middle <= LIMIT_OF_REFLECTANCE:
        raise UnusableImagery(f"{image.origin}: the median is {middle:.4g}, reflectance lies between 0 and 1; give --scale and --offset")


def calibration_doubt(sampled: NDArray[np.float32]) -> str:
    """Return why sampled reflectance (C, h, w), NaN = no data, looks wrongly scaled; empty where it does not."""
    finite = sampled[np.isfinite(sampled)]
    bright, negative = float(np.percentile(finite, 98)), float((finite < 0).mean())
    if negative > MANY_NEGATIVE:
        return f"{negative:.0%} of the numbers are negative: is --offset right?"
    if bright <= BRIGHTEST_BYTE:
        return f"98 % of the numbers are below {bright:.4f}, as over dark water alone, after a scale applied twice, or of bytes without --scale 1/255"
    return ""
