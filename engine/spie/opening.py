"""Finding imagery: GeoTIFF files, folders of one-band files, and .npz arrays of chips, with the band that each channel holds."""

from __future__ import annotations

import glob
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import rasterio
from pyproj import CRS

from engine.bands import BANDS, check_bands
from engine.spie.errors import UnusableImagery
from engine.spie.imagery import ArrayImage, Calibration, Image, RasterImage, calibrated

SUFFIXES = (".tif", ".tiff", ".npz")
SKIPPED = "-"
"""Stands in a list of bands for a channel that is not used."""

_CANONICAL = {band.name for band in BANDS}


def open_imagery(paths: Sequence[str], bands: Sequence[str] = (), calibration: Calibration | None = None) -> list[Image]:
    """Return the images at paths, folders and glob patterns, in order of name.

    Parameters
    ----------
    paths
        GeoTIFF or .npz files, folders of them, or patterns.
    bands
        Empty: the descriptions of a file's channels are canonical names. Names in the order of the channels, ``-`` for one that is not used. Or
        ``KEY=NAME``: the channel described as KEY, or the one-band file whose name ends with KEY.
    calibration
        What makes reflectance of the numbers, where the files do not say it.

    Raises
    ------
    UnusableImagery, UnknownBand
        Nothing there, unknown or contradictory bands, files of one image with different grids, no scale.
    """
    files = _listed(paths)
    chosen = calibration or Calibration()
    keys = _keys(bands)
    arrays = [image for path in files if path.suffix == ".npz" for image in _array_images(path, bands, chosen)]
    rasters = [path for path in files if path.suffix != ".npz"]
    images: list[Image] = [*arrays, *(_keyed_images(rasters, keys, chosen) if keys else [_one_file(path, bands, chosen) for path in rasters])]
    return _uniquely_named(sorted(images, key=lambda image: (image.name, image.origin)))


def _listed(paths: Sequence[str]) -> list[Path]:
    found: list[Path] = []
    for given in paths:
        path = Path(given)
        matches = [Path(match) for match in glob.glob(given, recursive=True)] if not path.exists() else [path]  # noqa: PTH207
        inside = [each for match in matches for each in (sorted(match.rglob("*")) if match.is_dir() else [match])]
        usable = [each for each in inside if each.suffix.lower() in SUFFIXES]
        if not usable:
            raise UnusableImagery(f"no GeoTIFF and no .npz at {given}")
        found += usable
    return list(dict.fromkeys(sorted(found)))


def _keys(bands: Sequence[str]) -> dict[str, str]:
    pairs = [entry.partition("=") for entry in bands]
    if not any(sign for _, sign, _ in pairs):
        return {}
    if not all(sign for _, sign, _ in pairs):
        raise UnusableImagery(f"bands {','.join(bands)}: either all of the form KEY=NAME or all names")
    check_bands([name for _, _, name in pairs])
    return {key: name for key, _, name in pairs}


def _one_file(path: Path, bands: Sequence[str], calibration: Calibration) -> RasterImage:
    with rasterio.open(path) as source:
        described = [(text or "").lower() for text in source.descriptions]
    if not bands:
        names = [name if name in _CANONICAL else SKIPPED for name in described]
        if set(names) == {SKIPPED}:
            raise UnusableImagery(f"{path}: the channels are not described by canonical band names; give --bands, such as red,green,blue,nir")
    else:
        names = list(bands)
    if len(names) != len(described):
        raise UnusableImagery(f"{path} has {len(described)} channels, --bands names {len(names)}; write {SKIPPED} for a channel that is not used")
    channels = tuple(i for i, name in enumerate(names, 1) if name != SKIPPED)
    return _raster(path.stem, [path] * len(channels), channels, [names[i - 1] for i in channels], calibration)


def _keyed_images(files: Sequence[Path], keys: Mapping[str, str], calibration: Calibration) -> list[RasterImage]:
    """Return the images whose channels are named by key: described so inside one file, or one file each."""
    images, groups = [], dict[tuple[Path, str], dict[str, Path]]()
    for path in files:
        with rasterio.open(path) as source:
            described = list(source.descriptions)
        if set(keys) <= set(described):
            images.append(_raster(path.stem, [path] * len(keys), [described.index(key) + 1 for key in keys], list(keys.values()), calibration))
            continue
        key = next((key for key in keys if path.stem == key or path.stem.endswith(("_" + key, "." + key))), None)
        if key is not None:
            groups.setdefault((path.parent, path.stem.removesuffix(key).rstrip("_.")), {})[key] = path
    for (folder, prefix), members in sorted(groups.items()):
        if set(members) != set(keys):
            raise UnusableImagery(f"{folder}: no file for {', '.join(sorted(set(keys) - set(members)))} beside {', '.join(sorted(members))}")
        images.append(_raster(prefix or folder.resolve().name, [members[key] for key in keys], [1] * len(keys), list(keys.values()), calibration))
    if not images:
        raise UnusableImagery(f"none of {len(files)} files has channels described as, or a name that ends with, {', '.join(keys)}")
    return images


def _raster(name: str, files: Sequence[Path], channels: Sequence[int], bands: Sequence[str], calibration: Calibration) -> RasterImage:
    check_bands(bands)
    grids = {}
    for path in dict.fromkeys(files):
        with rasterio.open(path) as source:
            crs = None if source.crs is None else CRS.from_wkt(source.crs.to_wkt())
            grids[path] = (source.shape, crs, source.transform)
            if source.transform.is_identity and crs is not None:
                raise UnusableImagery(f"{path} has a CRS and no transform")
    first, *others = grids.items()
    for path, grid in others:
        if grid[0] != first[1][0] or grid[1] != first[1][1] or not grid[2].almost_equals(first[1][2]):
            raise UnusableImagery(f"{path} and {first[0]} have different grids; resample them to one")
    shape, crs, transform = first[1]
    image = RasterImage(name, tuple(files), tuple(channels), tuple(bands), calibration, shape, crs, transform)
    for path in grids:
        calibrated(path, calibration)
    return image


def _array_images(path: Path, bands: Sequence[str], calibration: Calibration) -> list[ArrayImage]:
    with np.load(path) as data:
        if "reflectance" not in data or data["reflectance"].ndim != 4:
            raise UnusableImagery(f"{path} holds no array `reflectance` of four dimensions (N, C, H, W)")
        stored = data["reflectance"]
        places = data.get("place")
        names = data["chip_id"] if "chip_id" in data else np.arange(len(stored))
    if len(bands) != stored.shape[1]:
        raise UnusableImagery(f"{path} has {stored.shape[1]} channels, --bands names {len(bands)}; write {SKIPPED} for a channel that is not used")
    channels = [i for i, name in enumerate(bands) if name != SKIPPED]
    used = tuple(bands[i] for i in channels)
    check_bands(used)
    if calibration.scale is None and stored.dtype.kind in "iu":
        raise UnusableImagery(f"{path} holds whole numbers; give --scale (0.0001 for most satellite products)")
    return [
        ArrayImage(
            f"{path.stem}_{int(names[i]):05d}", path, i, used, calibration, stored[i, channels], "" if places is None else f"{path.name}:{places[i]}"
        )
        for i in range(len(stored))
    ]


def _uniquely_named(images: Sequence[Image]) -> list[Image]:
    named: list[Image] = []
    taken: set[str] = set()
    for image in images:
        folder = Path(image.origin).parent.name
        tries = [image.name, f"{folder}_{image.name}", *(f"{image.name}_{i}" for i in range(2, len(images) + 2))]
        name = next(each for each in tries if each not in taken)
        taken.add(name)
        named.append(image if name == image.name else replace(image, name=name))  # type: ignore[type-var]
    return named
