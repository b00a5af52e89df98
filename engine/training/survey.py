"""Surveyed spectra painted into chips: materials that the chips' few places lack, above all ground that stays bare.

The spectra are top-of-atmosphere medians of a year at places whose land cover surveyors saw. They are brought near surface reflectance by
taking off a typical path radiance and transmission per band; what is left is within the range that `other_light` varies anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engine.training.augment import Sample
from engine.training.data import LEAVES

PATH = np.array([0.068, 0.032, 0.017, 0.006, 0.001, 0.0], np.float32)
TRANSMISSION = np.array([0.82, 0.87, 0.92, 0.96, 0.97, 0.97], np.float32)
"""Blue, green, red, nir, swir16 and swir22 of a clear sky over Europe."""

SURVEYED = {"vegetation": (3, 4, 5, 8), "building": (1,), "water": (6,), "bare": (2,), "wetland": (7,)}
"""Codes of the survey that are each class: cropland, grassland, shrubland and woodland; artificial; water; bare; wetland. The median of a year
does not show what kind of vegetation a field is on one day, so the other kinds are not painted."""

SHARES = {"vegetation": 0.12, "building": 0.20, "water": 0.27, "bare": 0.37, "wetland": 0.04}
"""How often a painted patch is of each class."""

PLANTS_BETWEEN = {"building": 0.8}
"""How often a patch is partly half plants: gardens between roofs."""

TURBID = 0.6
SEDIMENT = np.array([0.75, 1.0, 1.0, 0.45, 0.01, 0.01], np.float32)
"""How often water carries sediment or salt, and what that reflects: visible and some near infrared light, none beyond."""

_GIVEN = [0, 1, 2, 6, 7, 8]
_SNOW_NDSI, _BARE_NDVI, _PLANTS_NDVI = 0.1, 0.16, 0.25


@dataclass(frozen=True)
class Survey:
    """Spectra (n, 6) near surface reflectance of the classes of `SHARES`, in their order."""

    spectra: tuple[NDArray[np.float32], ...]

    def paint(self, sample: Sample, generator: np.random.Generator, chance: float = 0.5) -> Sample:
        """Return the sample (6, H, W) with, at times, one to three patches of surveyed materials and their labels."""
        if generator.random() >= chance:
            return sample
        for _ in range(int(generator.integers(1, 4))):
            sample = self._paint_patch(sample, generator)
        return sample

    def _paint_patch(self, sample: Sample, generator: np.random.Generator) -> Sample:
        index = int(generator.choice(len(SHARES), p=list(SHARES.values())))
        cover = blob(sample.labels.shape, generator)
        material = self._material(index, sample.labels.shape, generator)
        reflectance = sample.reflectance * (1 - cover) + material * cover
        leaf = LEAVES.index(list(SHARES)[index])
        return Sample(reflectance.astype(np.float32), np.where(cover > 0.5, np.uint8(leaf), sample.labels))

    def _material(self, index: int, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float32]:
        """Return a surface (6, H, W) that mixes two spectra of the class, rough from pixel to pixel."""
        name = list(SHARES)[index]
        first, second = self.spectra[index][generator.integers(len(self.spectra[index]), size=2)]
        if generator.random() < PLANTS_BETWEEN.get(name, 0.0):
            second = 0.5 * first + 0.5 * self.spectra[0][generator.integers(len(self.spectra[0]))]
        if name == "water" and generator.random() < TURBID:
            first = first + generator.uniform(0.0, 0.5) * SEDIMENT
        share = ndimage.gaussian_filter(generator.standard_normal(shape), generator.uniform(0.3, 4.0), mode="wrap")
        share = np.clip(0.5 + 0.5 * share / (share.std() + 1e-9), 0, 1)
        grain = 1.0 + generator.uniform(0.02, 0.12) * generator.standard_normal(shape)
        return np.asarray((first[:, None, None] * share + second[:, None, None] * (1 - share)) * grain, np.float32)


def blob(shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float32]:
    """Return a soft mask 0..1 (H, W) of irregular patches that cover 1 to 12 % of it."""
    relief = ndimage.gaussian_filter(generator.standard_normal(shape), generator.uniform(2.0, 10.0), mode="wrap")
    inside = relief > np.quantile(relief, 1.0 - generator.uniform(0.01, 0.12))
    return np.asarray(ndimage.gaussian_filter(inside.astype(np.float32), 0.6))


def load_survey(path: Path) -> Survey:
    """Return the survey of an .npz file (arrays `reflectance` in nine bands, `land_cover`); snow and green "bare" ground are left out."""
    with np.load(path) as data:
        toa, cover = data["reflectance"][:, _GIVEN] * np.float32(1e-4), data["land_cover"]
    surface = np.clip((toa - PATH) / TRANSMISSION, 0.0, 1.2).astype(np.float32)
    _, green, red, nir, swir, _ = surface.T
    ndvi, ndsi = (nir - red) / np.maximum(nir + red, 0.01), (green - swir) / np.maximum(green + swir, 0.01)
    keep = {"bare": (ndvi < _BARE_NDVI) & (ndsi < _SNOW_NDSI), "water": ndvi < 0.0, "vegetation": ndvi > _PLANTS_NDVI, "wetland": ndvi > _PLANTS_NDVI}
    everywhere = np.ones(len(cover), bool)
    return Survey(tuple(surface[np.isin(cover, SURVEYED[name]) & keep.get(name, everywhere)] for name in SHARES))
