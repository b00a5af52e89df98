"""The three passes of the simulated satellite: season, sun, air, clouds and how the ground segment published the numbers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.ground import Field
from pipeline.demo.noise import Patch, fractal
from pipeline.demo.spectra import BANDS, REFLECTANCE, Material


@dataclass(frozen=True)
class Acquisition:
    """One pass over both tiles."""

    number: int
    """0, 1, 2; chooses the random fields of the pass."""
    time: datetime
    platform: str
    baseline: str
    """Processing baseline of the products; from 04.00 on the numbers are made with an offset of 1000."""
    offset_removed: bool
    """Whether the publisher took the offset out of the numbers again (Earth Search's `boa_offset_applied`)."""
    sun_azimuth: float
    """Degrees clockwise from north."""
    sun_elevation: float
    """Degrees."""
    cloud_level: float
    """Cloud grows where its random field (unit variance) exceeds this."""
    cloud_height: float
    """Metres above the ground: how far shadows lie from their clouds."""
    haze: float
    """What the atmospheric correction left over, as an optical thickness in the blue band."""
    moisture: float
    """Of bare soil, 0 dry to 1 wet."""
    season: float
    """0 early summer (crops half grown) to 1 harvest."""
    swath_edge: bool = False
    """Whether the western tile is cut by the edge of the swath."""

    @property
    def offset(self) -> int:
        """What has to be taken off the published numbers before they are divided by 10,000."""
        return 1000 if self.baseline >= "04.00" and not self.offset_removed else 0

    @property
    def generated(self) -> datetime:
        """When the product was made: hours after the pass, or in the reprocessing campaign of a later baseline."""
        return self.time + timedelta(hours=9) if self.baseline < "04.00" else datetime(2023, 3, 1, 6, tzinfo=UTC) + timedelta(days=self.number)


ACQUISITIONS = (
    Acquisition(0, datetime(2021, 6, 12, 10, 10, 31, tzinfo=UTC), "sentinel-2a", "03.00", False, 146.0, 64.5, 0.42, 1500, 0.010, 0.6, 0.1),
    Acquisition(1, datetime(2021, 6, 27, 10, 10, 29, tzinfo=UTC), "sentinel-2b", "05.00", False, 144.0, 64.6, 0.05, 1100, 0.030, 0.2, 0.5, True),
    Acquisition(2, datetime(2021, 7, 12, 10, 10, 32, tzinfo=UTC), "sentinel-2a", "05.00", True, 143.5, 63.3, 1.05, 1800, 0.016, 0.0, 0.9),
)
"""One product before baseline 04.00, one with the offset still in its numbers, one whose publisher removed it."""

CLOUD_REFLECTANCE = np.array([0.62, 0.60, 0.59, 0.60, 0.61, 0.61, 0.62, 0.62, 0.48, 0.40], np.float32)
"""(bands,) of a thick water cloud."""
DIRECT_LIGHT = np.array([0.66, 0.72, 0.76, 0.77, 0.79, 0.80, 0.81, 0.82, 0.88, 0.90], np.float32)
"""(bands,) share of the light that comes straight from the sun: what a shadow takes away."""


def seasonal_reflectance(acquisition: Acquisition) -> NDArray[np.float32]:
    """Return the materials' reflectance on that day, (materials, bands) float32: crops grow, cereals ripen, meadows dry, wet soil is darker."""
    table = REFLECTANCE.copy()
    season = acquisition.season
    for material, other, share in (
        (Material.GREEN_CROP, Material.DARK_SOIL, 0.30 * (1 - season)),
        (Material.RIPE_CROP, Material.GREEN_CROP, 0.75 * (1 - season)),
        (Material.PASTURE, Material.DRY_GRASS, 0.15 * season),
        (Material.DRY_GRASS, Material.PASTURE, 0.40 * (1 - season)),
    ):
        table[material] = (1 - share) * REFLECTANCE[material] + share * REFLECTANCE[other]
    for soil in (Material.DARK_SOIL, Material.BRIGHT_SOIL, Material.SAND, Material.GRAVEL):
        table[soil] *= 1 - 0.18 * acquisition.moisture
    return table


def cloud_thickness(patch: Patch, seed: int, acquisition: Acquisition) -> Field:
    """Return the optical thickness of the clouds straight above each pixel of `patch`: 0 clear, below 0.3 a veil, above 1 hides the ground."""
    cumulus = fractal(patch, seed, 200 + acquisition.number, 2400, 7, 0.55) - np.float32(acquisition.cloud_level)
    veil = fractal(patch, seed, 210 + acquisition.number, 7000, 3) - np.float32(1.7)
    thickness: Field = (5 * np.maximum(cumulus, 0) ** 1.4 + 0.35 * np.maximum(veil, 0)).astype(np.float32)
    return thickness


def shadow_thickness(patch: Patch, seed: int, acquisition: Acquisition) -> Field:
    """Return the thickness of the cloud between each pixel and the sun, whole pixels of `patch` away."""
    away = acquisition.cloud_height / np.tan(np.radians(acquisition.sun_elevation)) / patch.step
    azimuth = np.radians(acquisition.sun_azimuth)
    sunward = Patch(patch.left + round(away * np.sin(azimuth)), patch.top - round(away * np.cos(azimuth)), patch.width, patch.height, patch.step)
    return cloud_thickness(sunward, seed, acquisition)


def sunlight(elevation: Field, step: float, acquisition: Acquisition) -> Field:
    """Return the light on the slope relative to level ground, softened by the light of the sky (as in the C-correction, with C = 0.5)."""
    south, east = np.gradient(elevation, np.float32(step))
    azimuth, zenith = np.radians(acquisition.sun_azimuth), np.radians(90 - acquisition.sun_elevation)
    facing = np.cos(zenith) + np.sin(zenith) * (-east * np.sin(azimuth) + south * np.cos(azimuth))
    incidence = np.maximum(facing / np.sqrt(1 + south**2 + east**2), 0)
    light: Field = ((incidence + 0.5) / (np.cos(zenith) + 0.5)).astype(np.float32)
    return light


def through_air(reflectance: Field, band: int, acquisition: Acquisition, haze: Field, shadow: Field, cloud: Field) -> Field:
    """Return what the sensor's product shows of `reflectance` in one band under haze, cloud shadow and cloud (optical thicknesses, same shape)."""
    lit = reflectance * (1 - DIRECT_LIGHT[band] * (1 - np.exp(-1.3 * shadow)))
    path = acquisition.haze * haze * np.float32((0.49 / BANDS[band].wavelength) ** 1.5)
    hazy = lit * (1 - path) + np.float32(0.32) * path
    seen = np.exp(-0.8 * cloud)
    brightness = CLOUD_REFLECTANCE[band] * (0.8 + 0.4 * (1 - np.exp(-cloud / 3)))
    product: Field = (hazy * seen + brightness * (1 - seen)).astype(np.float32)
    return product
