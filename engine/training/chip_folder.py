"""Labelled chips of a user: a folder of GeoTIFF pairs, read for evaluation and for fine-tuning.

::

    FOLDER/classes.yaml
    FOLDER/images/NAME.tif      one channel for each band, any number type
    FOLDER/labels/NAME.tif      one channel of class codes 0..255, same height and width, same name

``classes.yaml``::

    bands: [blue, green, red, nir]        # canonical names in channel order
    classes: {1: water, 2: tree cover}    # code in the label files: name of the class; every other code is ignored
    scale: 0.0001                         # reflectance = number * scale + offset; default 1
    offset: 0.0                           # default 0
    no_data: 0                            # number that means no data in every channel; default what the file says
    places: {chip_07: lake, chip_08: lake}   # chips that overlap on the ground share a place; default every chip is its own place
    new: {orchard: {parent: vegetation}}     # what fine-tuning should know of classes that the model does not; see `engine.training.newclasses`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.bands import check_bands
from spexmap import SpexmapError

IGNORE = 255
DIGITAL_NUMBERS = 1.5
"""A median above this is no reflectance."""

KEYS = ("bands", "classes", "scale", "offset", "no_data", "places", "new")


class InvalidChips(SpexmapError, ValueError):
    """A folder or file of labelled chips that cannot be read as one; the message says which file and what to change."""


@dataclass(frozen=True)
class LabelledChips:
    """Chips with their labels, of any sensor and any classes."""

    reflectance: NDArray[np.float32]
    """(N, C, H, W) surface reflectance, NaN = no data; smaller chips are padded with NaN at the bottom and right."""
    bands: tuple[str, ...]
    labels: NDArray[np.uint8]
    """(N, H, W): index into `classes`, 255 ignored."""
    classes: tuple[str, ...]
    places: tuple[str, ...]
    """(N,): chips of one place overlap on the ground and are never split."""
    names: tuple[str, ...]
    """(N,): what a chip is called in reports."""
    clean: NDArray[np.uint8] | None = field(default=None)
    """(N, H, W): the labels without those that the spectra contradict; None where no rule says which."""

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.reflectance)

    def at(self, index: NDArray[np.intp]) -> LabelledChips:
        """Return the chips of an index array."""
        return LabelledChips(
            self.reflectance[index],
            self.bands,
            self.labels[index],
            self.classes,
            tuple(self.places[i] for i in index),
            tuple(self.names[i] for i in index),
            None if self.clean is None else self.clean[index],
        )


@dataclass(frozen=True)
class _Legend:
    """What classes.yaml says."""

    bands: tuple[str, ...]
    classes: Mapping[int, str]
    scale: float
    offset: float
    no_data: float | None
    places: Mapping[str, str]


def is_chip_folder(path: Path) -> bool:
    """Return whether a folder holds chips as GeoTIFF pairs."""
    return (path / "classes.yaml").is_file()


def load_chip_folder(path: Path, every_class: bool = False) -> LabelledChips:
    """Return the chips of a folder, in the order of their names.

    Parameters
    ----------
    path
        The folder.
    every_class
        Whether each class must have a pixel with data, as training on it needs.

    Raises
    ------
    InvalidChips
        classes.yaml is missing or wrong, an image has no labels or the other way round, a pair does not fit together, numbers are no
        reflectance after scale and offset, or no pixel has a label of the classes, or with `every_class` of one of them.
    UnknownBand
        A band's name is not canonical or given twice.
    """
    legend = _read_legend(path / "classes.yaml")
    names = _paired_names(path)
    pairs = [_read_pair(path, name, legend) for name in names]
    height, width = (max(labels.shape[axis] for _, labels in pairs) for axis in (0, 1))
    reflectance = np.full((len(pairs), len(legend.bands), height, width), np.nan, np.float32)
    labels = np.full((len(pairs), height, width), IGNORE, np.uint8)
    for i, (chip, classes) in enumerate(pairs):
        reflectance[i, :, : chip.shape[1], : chip.shape[2]] = chip
        labels[i, : classes.shape[0], : classes.shape[1]] = classes
    if (labels == IGNORE).all():
        raise InvalidChips(f"{path / 'labels'}: no pixel has one of the codes {', '.join(map(str, legend.classes))} of classes.yaml")
    if every_class:
        _check_every_class(path, labels, legend)
    places = tuple(legend.places.get(name, name) for name in names)
    return LabelledChips(reflectance, legend.bands, labels, tuple(legend.classes.values()), places, tuple(names))


def _check_every_class(path: Path, labels: NDArray[np.uint8], legend: _Legend) -> None:
    there = set(np.unique(labels).tolist())
    absent = [f"{name!r} (code {code})" for index, (code, name) in enumerate(legend.classes.items()) if index not in there]
    if absent:
        raise InvalidChips(
            f"{path / 'classes.yaml'}: no pixel with data in {path / 'labels'} is of class {', '.join(absent)}, so it cannot be learnt; "
            "take it out of classes, correct its code, or add chips that show it"
        )


def _read_legend(path: Path) -> _Legend:
    import yaml

    if not path.is_file():
        raise InvalidChips(f"{path} is missing; it names the bands and the codes of the classes")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InvalidChips(f"{path} is not YAML: {error}") from error
    if not isinstance(given, dict) or not {"bands", "classes"} <= set(given):
        raise InvalidChips(f"{path} must have the keys bands and classes")
    unknown = sorted(map(str, set(given) - set(KEYS)))
    if unknown:
        raise InvalidChips(f"{path}: unknown key {', '.join(unknown)}; known: {', '.join(KEYS)}")
    bands = tuple(map(str, given["bands"] if isinstance(given["bands"], list) else ()))
    check_bands(bands)
    places = given.get("places") or {}
    if not bands or not isinstance(places, dict):
        raise InvalidChips(f"{path}: bands must be a list of names, places a mapping of chip name to place")
    scale, offset, no_data = (_number(given, key, default, path) for key, default in (("scale", 1.0), ("offset", 0.0), ("no_data", None)))
    return _Legend(bands, _classes(given["classes"], path), scale or 1.0, offset or 0.0, no_data, {str(k): str(v) for k, v in places.items()})


def _number(given: Mapping[str, Any], key: str, default: float | None, path: Path) -> float | None:
    value = given.get(key, default)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    raise InvalidChips(f"{path}: {key} is {value!r}; it must be a number")


def _classes(given: object, path: Path) -> dict[int, str]:
    if not isinstance(given, dict) or not given:
        raise InvalidChips(f"{path}: classes must be a mapping of code to name, such as {{1: water}}")
    bad = [code for code in given if not (isinstance(code, int) and 0 <= code <= 255)]
    if bad:
        raise InvalidChips(f"{path}: class code {bad[0]!r} is not a whole number from 0 to 255")
    names = [str(name) for name in given.values()]
    if len(set(names)) < len(names) or len(names) >= IGNORE:
        raise InvalidChips(f"{path}: every class needs a name of its own")
    return dict(zip(given, names, strict=True))


def _paired_names(path: Path) -> list[str]:
    images, labels = ({file.stem for file in (path / kind).glob("*.tif")} for kind in ("images", "labels"))
    if not images:
        raise InvalidChips(f"{path / 'images'} holds no .tif")
    alone = sorted(images ^ labels)
    if alone:
        missing = "labels" if alone[0] in images else "images"
        raise InvalidChips(f"{path / missing / (alone[0] + '.tif')} is missing; every image needs labels of the same name ({len(alone)} without)")
    return sorted(images)


def _read_pair(path: Path, name: str, legend: _Legend) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    import rasterio

    image, labels = path / "images" / f"{name}.tif", path / "labels" / f"{name}.tif"
    try:
        with rasterio.open(image) as pixels, rasterio.open(labels) as codes:
            _check_pair(image, pixels, labels, codes, legend)
            chip = pixels.read(masked=legend.no_data is None).astype(np.float32)
            cover = codes.read(1)
    except rasterio.errors.RasterioIOError as error:
        raise InvalidChips(f"{image} and its labels cannot be read: {error}") from error
    missing = np.ma.getmaskarray(chip) if legend.no_data is None else chip == legend.no_data
    reflectance = np.where(missing, np.float32(np.nan), np.ma.getdata(chip) * np.float32(legend.scale) + np.float32(legend.offset))
    return _checked(reflectance.astype(np.float32), image), _indices(cover, reflectance, legend)


def _check_pair(image: Path, pixels: Any, labels: Path, codes: Any, legend: _Legend) -> None:
    if pixels.count != len(legend.bands):
        raise InvalidChips(f"{image} has {pixels.count} channels, classes.yaml names {len(legend.bands)} bands: {', '.join(legend.bands)}")
    if codes.count != 1 or codes.dtypes[0] not in ("uint8", "uint16", "int16", "int32", "uint32"):
        raise InvalidChips(f"{labels} has {codes.count} channels of {codes.dtypes[0]}; it must have one of whole numbers, the class codes")
    if pixels.shape != codes.shape:
        raise InvalidChips(f"{image} is {pixels.shape[0]} x {pixels.shape[1]} pixels, its labels {codes.shape[0]} x {codes.shape[1]}")
    both = pixels.crs is not None and codes.crs is not None
    if both and (pixels.crs != codes.crs or not pixels.transform.almost_equals(codes.transform, 1e-3 * abs(pixels.transform.a))):
        raise InvalidChips(f"{image} and its labels lie on different grids; resample the labels to the image")


def _checked(reflectance: NDArray[np.float32], image: Path) -> NDArray[np.float32]:
    finite = reflectance[np.isfinite(reflectance)]
    if np.isinf(reflectance).any():
        raise InvalidChips(f"{image} holds infinite numbers; mark pixels without data by no_data or NaN")
    if finite.size and float(np.median(np.abs(finite))) > DIGITAL_NUMBERS:
        raise InvalidChips(f"{image}: median {np.median(finite):g} is no reflectance; set scale and offset in classes.yaml (scale: 0.0001 for most)")
    return reflectance


def _indices(cover: NDArray[Any], reflectance: NDArray[np.float32], legend: _Legend) -> NDArray[np.uint8]:
    labels = np.full(cover.shape, IGNORE, np.uint8)
    for index, code in enumerate(legend.classes):
        labels[cover == code] = index
    labels[np.isnan(reflectance).any(0)] = IGNORE
    return labels
