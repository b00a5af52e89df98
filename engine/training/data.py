"""Labelled chips: classes, the clean rule, and which bands a sensor would have seen."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = ("vegetation", "building", "water", "bare")
"""The roots; a label is an index into them."""
KINDS = ("tree_cover", "cropland", "grass_or_shrub", "wetland")
"""Kinds of vegetation."""
LEAVES = (*CLASSES, *KINDS)
"""What a detailed label is an index into: a root other than vegetation, a kind of vegetation, or vegetation of no known kind."""
IGNORE = 255
CHIP_BANDS = ("coastal", "blue", "green", "red", "nir", "swir16", "swir22")
"""Channels of the chip files, in order."""

WORLDCOVER = {10: 0, 20: 0, 30: 0, 40: 0, 90: 0, 95: 0, 100: 0, 50: 1, 60: 3, 80: 2}
"""Class index of each WorldCover code; other codes (snow and ice) are ignored."""

WORLDCOVER_KINDS = {10: 4, 40: 5, 20: 6, 30: 6, 90: 7, 95: 7}
"""Index into `LEAVES` of the WorldCover codes that are a kind of vegetation."""

ROOT_OF = np.full(256, IGNORE, np.uint8)
"""Index into `CLASSES` of each detailed label."""
ROOT_OF[: len(LEAVES)] = [*range(len(CLASSES)), *[0] * len(KINDS)]

_CLOUD_OR_SHADOW, _FMASK_WATER = 0b1010, 0b100000


@dataclass(frozen=True)
class Chips:
    """Chips of one split, reflectance in the bands that training uses."""

    reflectance: NDArray[np.float32]
    """(N, 6, H, W): blue, green, red, nir, swir16, swir22."""
    labels: NDArray[np.uint8]
    """(N, H, W): index into `CLASSES`, 255 ignored (cloud, shadow, snow)."""
    clean: NDArray[np.uint8]
    """The same with labels that contradict the spectra ignored too."""
    leaves: NDArray[np.uint8]
    """(N, H, W): the clean labels in detail, index into `LEAVES`, 255 ignored."""
    place: NDArray[np.int16]
    """(N,): chips of one place overlap on the ground."""
    chip_id: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of chips."""
        return len(self.reflectance)

    def at(self, index: NDArray[np.intp]) -> Chips:
        """Return the chips of an index array."""
        return Chips(*(getattr(self, each.name)[index] for each in fields(self)))


TRAINING_BANDS = CHIP_BANDS[1:]


def load_chips(path: Path) -> Chips:
    """Return a split from an .npz file of HLS chips with WorldCover labels (arrays reflectance, qa, worldcover, place, chip_id)."""
    with np.load(path) as data:
        reflectance = data["reflectance"].astype(np.float32) * np.float32(1e-4)
        qa, cover = data["qa"], data["worldcover"]
        place, chip_id = data["place"], data["chip_id"]
    lookup = np.full(256, IGNORE, np.uint8)
    for code, index in WORLDCOVER.items():
        lookup[code] = index
    labels = lookup[cover]
    labels[(qa & _CLOUD_OR_SHADOW) != 0] = IGNORE
    clean = clean_labels(labels, reflectance, (qa & _FMASK_WATER) != 0)
    kinds = np.zeros(256, np.uint8)
    kinds[list(WORLDCOVER_KINDS)] = list(WORLDCOVER_KINDS.values())
    return Chips(reflectance[:, 1:], labels, clean, np.where(clean == 0, kinds[cover], clean), place, chip_id)


def clean_labels(labels: NDArray[np.uint8], reflectance: NDArray[np.float32], fmask_water: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return the labels without those that the spectra contradict.

    Ignored: land where Fmask says water and MNDWI > 0.1 (floods that WorldCover calls cropland); water with NDVI > 0.3, or with
    neither MNDWI > 0 nor Fmask water (dry shores and old water bodies). `reflectance` is (N, 7, H, W) in the order of `CHIP_BANDS`.
    """
    green, red, nir, swir = (reflectance[:, CHIP_BANDS.index(name)] for name in ("green", "red", "nir", "swir16"))
    mndwi, ndvi = _difference(green, swir), _difference(nir, red)
    water, known = labels == CLASSES.index("water"), labels != IGNORE
    flooded = known & ~water & fmask_water & (mndwi > 0.1)
    dry = water & ((ndvi > 0.3) | ~((mndwi > 0) | fmask_water))
    return np.where(flooded | dry, np.uint8(IGNORE), labels)


def _difference(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    a, b = np.maximum(a, 1e-3), np.maximum(b, 1e-3)
    return np.asarray((a - b) / (a + b), np.float32)


def sampling_weights(chips: Chips) -> NDArray[np.float64]:
    """Return the chance of each chip to be drawn: balanced by place, chips with rare classes more often."""
    _, inverse, counts = np.unique(chips.place, return_inverse=True, return_counts=True)
    weights = 1.0 / np.sqrt(counts[inverse])
    for name, share, factor in (("building", 0.03, 4.0), ("bare", 0.02, 2.0), ("water", 0.03, 1.5)):
        weights *= np.where((chips.clean == CLASSES.index(name)).mean((1, 2)) > share, factor, 1.0)
    return np.asarray(weights / weights.sum())
