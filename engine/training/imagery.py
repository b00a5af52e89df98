"""Imagery without labels, read window by window in whatever bands it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.bands import check_bands
from engine.training.config import ImagerySpec
from engine.training.errors import TrainingDataError

DIGITAL_NUMBERS = 1.5
"""A median above this is no reflectance."""


class Image(Protocol):
    """One image of some bands."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.float32]:
        """Return stored values (C, height, width), NaN where the file says that there is no data."""


@dataclass(frozen=True)
class ArrayImage:
    """An image in memory, (C, H, W)."""

    values: NDArray[np.generic]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        return int(self.values.shape[1]), int(self.values.shape[2])

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.float32]:
        """Return stored values (C, height, width)."""
        return self.values[:, top : top + height, left : left + width].astype(np.float32)


@dataclass(frozen=True)
class RasterImage:
    """An image in files that rasterio reads: for each band a file and the number of its channel."""

    channels: tuple[tuple[str, int], ...]
    shape: tuple[int, int]

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.float32]:
        """Return stored values (C, height, width), NaN where the file says that there is no data."""
        import rasterio
        from rasterio.windows import Window

        planes = []
        for path, channel in self.channels:
            with rasterio.open(path) as source:
                plane = source.read(channel, window=Window(left, top, width, height), masked=True)
            planes.append(plane.astype(np.float32).filled(np.nan))
        return np.stack(planes)


@dataclass(frozen=True)
class Imagery:
    """The images of one entry of the training file; all have the same bands."""

    name: str
    bands: tuple[str, ...]
    images: tuple[Image, ...]
    spec: ImagerySpec

    def window(self, size: int, generator: np.random.Generator, tries: int = 8) -> NDArray[np.float32]:
        """Return a random window (C, size, size) of reflectance, NaN = no data; one with data in at least half of it if `tries` draws find one."""
        areas = np.array([height * width for height, width in (each.shape for each in self.images)], np.float64)
        best, most = np.full((len(self.bands), size, size), np.nan, np.float32), -1.0
        for _ in range(tries):
            image = self.images[int(generator.choice(len(areas), p=areas / areas.sum()))]
            window = self._read(image, size, generator)
            share = float(np.isfinite(window).all(0).mean())
            if share > most:
                best, most = window, share
            if most >= 0.5:
                break
        return best

    def _read(self, image: Image, size: int, generator: np.random.Generator) -> NDArray[np.float32]:
        height, width = (min(size, side) for side in image.shape)
        top, left = (int(generator.integers(side - part + 1)) for side, part in zip(image.shape, (height, width), strict=True))
        stored = image.read(top, left, height, width)
        if self.spec.nodata is not None:
            stored = np.where(stored == self.spec.nodata, np.float32(np.nan), stored)
        reflectance = stored * np.float32(self.spec.scale) + np.float32(self.spec.offset)
        return np.pad(reflectance, ((0, 0), (0, size - height), (0, size - width)), constant_values=np.nan).astype(np.float32)


def load_imagery(specs: Sequence[ImagerySpec], root: Path, size: int) -> tuple[Imagery, ...]:
    """Return the imagery of a training file's entries.

    Raises
    ------
    TrainingDataError
        An entry finds no file, its array or channels are not there, or its values are no reflectance.
    UnknownBand
        A band's name is not canonical.
    """
    loaded = tuple(_load(spec, root) for spec in specs)
    for imagery in loaded:
        sample = imagery.window(size, np.random.default_rng(0))
        finite = sample[np.isfinite(sample)]
        if finite.size and float(np.median(np.abs(finite))) > DIGITAL_NUMBERS:
            raise TrainingDataError(f"{imagery.name}: median {np.median(finite):g} is no reflectance; set scale and offset of this entry")
    return loaded


def _load(spec: ImagerySpec, root: Path) -> Imagery:
    check_bands(tuple(spec.bands))
    paths = _matches(spec, next(iter(spec.bands.values()), ""), root)
    if not paths:
        raise TrainingDataError(f"unlabelled imagery: no file matches {root / _pattern(spec, next(iter(spec.bands.values()), ''))}")
    images: tuple[Image, ...] = tuple(image for path in paths for image in (_arrays(path, spec) if path.endswith(".npz") else (_raster(path, spec),)))
    return Imagery(spec.path, tuple(spec.bands), images, spec)


def files_of(spec: ImagerySpec, root: Path) -> list[Path]:
    """Return the files that an entry reads, sorted; none where nothing matches."""
    each = spec.bands.values() if "{band}" in spec.path else ("",)
    return [Path(path) for path in sorted({path for band in each for path in _matches(spec, band, root)})]


def _pattern(spec: ImagerySpec, band: int | str) -> str:
    return spec.path.replace("{band}", str(band))


def _matches(spec: ImagerySpec, band: int | str, root: Path) -> list[str]:
    pattern = _pattern(spec, band)
    return sorted(map(str, Path("/").glob(pattern.lstrip("/")) if Path(pattern).is_absolute() else root.glob(pattern)))


def _arrays(path: str, spec: ImagerySpec) -> tuple[Image, ...]:
    channels = [each for each in spec.bands.values() if isinstance(each, int)]
    with np.load(path) as data:
        name = spec.array or next(iter(data))
        if name not in data:
            raise TrainingDataError(f"{path} has no array {name!r}; it has {', '.join(data)}")
        values = np.asarray(data[name])
    values = np.moveaxis(values, -1, -3) if spec.channels_last else values
    stack = values[None] if values.ndim == 3 else values
    if stack.ndim != 4 or len(channels) < len(spec.bands) or not all(1 <= each <= stack.shape[1] for each in channels):
        raise TrainingDataError(
            f"{path}: array {name!r} of shape {values.shape} does not have the channels {list(spec.bands.values())}, counted from 1"
        )
    return tuple(ArrayImage(each) for each in stack[:, [channel - 1 for channel in channels]])


def _raster(path: str, spec: ImagerySpec) -> RasterImage:
    import rasterio

    if "{band}" in spec.path:
        first = Path(path)
        before = str(next(iter(spec.bands.values())))
        channels = tuple((str(first.with_name(first.name.replace(before, str(each)))), 1) for each in spec.bands.values())
    else:
        channels = tuple((path, int(each)) for each in spec.bands.values())
    shapes = set()
    for file, channel in channels:
        try:
            with rasterio.open(file) as source:
                shapes.add(source.shape)
                count = source.count
        except rasterio.errors.RasterioIOError as error:
            raise TrainingDataError(f"{file} cannot be read: {error}") from error
        if not 1 <= channel <= count:
            raise TrainingDataError(f"{file} has {count} channels; channel {channel} is asked for")
    if len(shapes) > 1:
        raise TrainingDataError(f"{path} and the files of its other bands have different sizes: {sorted(shapes)}; resample them to one grid")
    return RasterImage(channels, shapes.pop())
