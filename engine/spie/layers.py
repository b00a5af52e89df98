"""What lies over imagery: label rasters, label vectors and cloud masks, on the pixels of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import geopandas
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import features
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

from engine.spie.errors import UnusableImagery
from engine.spie.imagery import ArrayImage, Box, Image, RasterImage, cut

UNKNOWN = -1
"""Code of pixels about which a layer says nothing."""

VECTOR_SUFFIXES = (".gpkg", ".geojson", ".json", ".shp", ".fgb", ".parquet")


class Layer(Protocol):
    """Whole-number codes over images."""

    def codes(self, image: Image, box: Box, shape: tuple[int, int] | None = None) -> NDArray[np.int32]:
        """Return the codes of a box (h, w), -1 where the layer says nothing; `shape` samples a box that lies inside the image."""


@dataclass(frozen=True)
class RasterLayer:
    """A GeoTIFF, a folder with one file for each image, or the end of the name of a file beside each image; array name for .npz."""

    where: str

    def codes(self, image: Image, box: Box, shape: tuple[int, int] | None = None) -> NDArray[np.int32]:
        """Return the codes (h, w) as `Layer` says, by the nearest pixel."""
        if isinstance(image, ArrayImage):
            return cut(_array_codes(image.file, self.where)[image.number], box, shape, np.int32(UNKNOWN))
        path = self._path(image)
        if image.crs is None:
            return cut(_codes_on_grid(path, image.shape), box, shape, np.int32(UNKNOWN))
        return _warped_codes(path, image, box, shape)

    def _path(self, image: Image) -> Path:
        given = Path(self.where)
        if given.is_file():
            return given
        assert isinstance(image, RasterImage)
        folder = image.files[0].parent
        names = (f"{image.name}.tif", f"{image.files[0].stem}.tif")
        beside = (f"{self.where}.tif", f"{image.name}_{self.where}.tif")
        tries = [given / name for name in names] if given.is_dir() else [folder / name for name in beside]
        found = next((path for path in tries if path.is_file()), None)
        if found is None:
            raise UnusableImagery(f"no layer for {image.origin}: neither {' nor '.join(map(str, dict.fromkeys(tries)))} is there")
        return found


@lru_cache(maxsize=4)
def _array_codes(file: Path, name: str) -> NDArray[np.int32]:
    with np.load(file) as data:
        if name not in data:
            raise UnusableImagery(f"{file} holds no array {name!r}; it holds {', '.join(data)}")
        return np.asarray(data[name], np.int32)


@lru_cache(maxsize=1)
def _codes_on_grid(path: Path, shape: tuple[int, int]) -> NDArray[np.int32]:
    with rasterio.open(path) as source:
        if source.shape != shape:
            raise UnusableImagery(f"{path} has {source.shape} pixels, the image {shape}; without a georeference they must be equal")
        return _whole_codes(path, source.read(1), source.read_masks(1) > 0)


def _warped_codes(path: Path, image: Image, box: Box, shape: tuple[int, int] | None) -> NDArray[np.int32]:
    assert image.crs is not None
    sampled = shape or (box.height, box.width)
    step = image.transform.scale(box.width / sampled[1], box.height / sampled[0])
    transform = image.transform @ image.transform.translation(box.left, box.top) @ step
    with rasterio.open(path) as source:
        if source.crs is None:
            raise UnusableImagery(f"{path} has no CRS, {image.origin} has one")
        grid = {"crs": image.crs.to_wkt(), "transform": transform, "width": sampled[1], "height": sampled[0]}
        with WarpedVRT(source, **grid, resampling=Resampling.nearest, add_alpha=source.nodata is None) as warped:
            codes, mask = warped.read(1), warped.dataset_mask() > 0
    return _whole_codes(path, codes, mask)


def _whole_codes(path: Path, codes: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Return codes as int32, -1 outside the mask; refuses numbers with decimals."""
    whole = np.where(mask, codes.astype(np.float64), UNKNOWN)
    if (whole != np.rint(whole)).any():
        raise UnusableImagery(f"{path} holds numbers with decimals, not codes")
    return whole.astype(np.int32)


@dataclass(frozen=True)
class VectorLayer:
    """Polygons of a vector file, burnt with the position of their value in `values`; where there is none, the position after the last."""

    path: Path
    field: str | None
    """Column of the values; None: every polygon has the first value."""
    values: Sequence[str]

    def codes(self, image: Image, box: Box, shape: tuple[int, int] | None = None) -> NDArray[np.int32]:
        """Return the codes (h, w) as `Layer` says; a pixel belongs to the polygon that holds its centre, the later one where two do."""
        if image.crs is None:
            raise UnusableImagery(f"{image.origin} has no georeference; labels of {self.path} cannot be laid over it")
        sampled = shape or (box.height, box.width)
        step = image.transform.scale(box.width / sampled[1], box.height / sampled[0])
        transform = image.transform @ image.transform.translation(box.left, box.top) @ step
        shapes = _burnt(self.path, self.field, tuple(self.values), image.crs.to_wkt())
        codes = np.full(sampled, len(self.values), np.int32)
        if shapes:
            features.rasterize(shapes, out=codes, transform=transform)
        return codes


@lru_cache(maxsize=4)
def _burnt(path: Path, field: str | None, values: tuple[str, ...], crs: str) -> list[tuple[Any, int]]:
    table = geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)
    if table.crs is None:
        raise UnusableImagery(f"{path} has no CRS")
    if field is not None and field not in table.columns:
        raise UnusableImagery(f"{path} has no column {field!r}; it has {', '.join(map(str, table.columns))}")
    texts = [values[0]] * len(table) if field is None else [str(value) for value in table[field]]
    position = {value: number for number, value in enumerate(values)}
    rows = zip(table.to_crs(crs).geometry, texts, strict=True)
    return [(shape, position.get(text, len(values))) for shape, text in rows if shape is not None and not shape.is_empty]


@dataclass(frozen=True)
class Labels:
    """A layer whose codes stand for classes."""

    layer: Layer
    classes: Mapping[int, str]
    """Class by code; a code that is not here is land cover of no class asked."""

    def masks(self, image: Image, box: Box) -> tuple[dict[str, NDArray[np.bool_]], NDArray[np.bool_]]:
        """Return a mask (h, w) for each class, and where the labels say anything."""
        codes = self.layer.codes(image, box)
        names = list(dict.fromkeys(self.classes.values()))
        return {name: np.isin(codes, [code for code, each in self.classes.items() if each == name]) for name in names}, codes != UNKNOWN


@dataclass(frozen=True)
class Clouds:
    """A layer that says which pixels not to look at."""

    layer: Layer
    values: tuple[int, ...] = ()
    """Codes that are masked."""
    bits: tuple[int, ...] = ()
    """Bits, from 0, any of which masks a pixel."""

    def mask(self, image: Image, box: Box, shape: tuple[int, int] | None = None) -> NDArray[np.bool_]:
        """Return where not to look (h, w); a pixel of which the layer says nothing counts as clear."""
        codes = self.layer.codes(image, box, shape)
        flags = sum(1 << bit for bit in self.bits)
        return np.asarray((codes != UNKNOWN) & (np.isin(codes, self.values) | ((codes & flags) != 0)))


def open_labels(where: str, field: str | None, classes: Mapping[str, str]) -> Labels:
    """Return labels at a path or of an array; `classes` has the class of each code or value as text.

    Raises
    ------
    UnusableImagery
        No code is named, or a raster's code is no whole number.
    """
    if not classes:
        raise UnusableImagery(f"labels {where} need --classes CODE=CLASS, such as 80=water,50=building")
    path = Path(where)
    if path.suffix.lower() in VECTOR_SUFFIXES:
        if not path.is_file():
            raise UnusableImagery(f"no labels at {path}")
        return Labels(VectorLayer(path, field, tuple(classes)), dict(enumerate(classes.values())))
    try:
        return Labels(RasterLayer(where), {int(code): name for code, name in classes.items()})
    except ValueError:
        raise UnusableImagery(f"labels {where} are a raster, its codes are whole numbers, not {', '.join(classes)}") from None
