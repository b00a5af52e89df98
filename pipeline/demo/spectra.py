"""Typical surface reflectance of the materials that the simulated landscape is made of, in the ten bands of Sentinel-2.

The numbers are rounded typical values in the range that published libraries show for such surfaces (ECOSTRESS/ASTER library, USGS Spectral Library
version 7, and the PROSPECT and SAIL models for canopies; see docs/demo.md), averaged by eye over each band. They are not measurements of any one
sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Band:
    """One band of the sensor as the catalog publishes it."""

    key: str
    """Asset key of Earth Search v1."""
    file: str
    """Name of the sensor's own band."""
    common_name: str
    title: str
    wavelength: float
    """Centre in micrometres."""
    width: float
    """Full width at half maximum in micrometres."""
    resolution: int
    """Pixel side in metres."""


BANDS = (
    Band("blue", "B02", "blue", "Blue (band 2) - 10m", 0.49, 0.098, 10),
    Band("green", "B03", "green", "Green (band 3) - 10m", 0.56, 0.045, 10),
    Band("red", "B04", "red", "Red (band 4) - 10m", 0.665, 0.038, 10),
    Band("rededge1", "B05", "rededge", "Red edge 1 (band 5) - 20m", 0.704, 0.019, 20),
    Band("rededge2", "B06", "rededge", "Red edge 2 (band 6) - 20m", 0.74, 0.018, 20),
    Band("rededge3", "B07", "rededge", "Red edge 3 (band 7) - 20m", 0.783, 0.028, 20),
    Band("nir", "B08", "nir", "NIR 1 (band 8) - 10m", 0.842, 0.145, 10),
    Band("nir08", "B8A", "nir08", "NIR 2 (band 8A) - 20m", 0.865, 0.033, 20),
    Band("swir16", "B11", "swir16", "SWIR 1 (band 11) - 20m", 1.61, 0.143, 20),
    Band("swir22", "B12", "swir22", "SWIR 2 (band 12) - 20m", 2.19, 0.242, 20),
)


class Material(IntEnum):
    """What the ground is made of; the number is the row of `REFLECTANCE`."""

    DECIDUOUS = 0
    CONIFER = 1
    PASTURE = 2
    DRY_GRASS = 3
    GREEN_CROP = 4
    RIPE_CROP = 5
    DARK_SOIL = 6
    BRIGHT_SOIL = 7
    GRAVEL = 8
    SAND = 9
    ROCK = 10
    CONCRETE = 11
    ASPHALT = 12
    RED_TILE = 13
    DARK_ROOF = 14
    METAL_ROOF = 15
    CLEAR_WATER = 16
    TURBID_WATER = 17


class Cover(IntEnum):
    """Classes of the true land cover, with the codes that the demo's job gives them."""

    VEGETATION = 1
    BUILDING = 2
    WATER = 3
    BARE = 4


def cover_of(materials: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the land-cover code of each material, in the same shape."""
    codes = np.full(len(Material), Cover.VEGETATION, np.uint8)
    codes[[Material.DARK_SOIL, Material.BRIGHT_SOIL, Material.GRAVEL, Material.SAND, Material.ROCK]] = Cover.BARE
    codes[[Material.CONCRETE, Material.ASPHALT, Material.RED_TILE, Material.DARK_ROOF, Material.METAL_ROOF]] = Cover.BUILDING
    codes[[Material.CLEAR_WATER, Material.TURBID_WATER]] = Cover.WATER
    return codes[materials]


REFLECTANCE = np.array(
    # blue   green  red    re1    re2    re3    nir    nir08  swir16 swir22
    [
        [0.025, 0.050, 0.028, 0.085, 0.265, 0.345, 0.365, 0.380, 0.185, 0.085],
        [0.019, 0.033, 0.021, 0.052, 0.155, 0.200, 0.212, 0.222, 0.098, 0.044],
        [0.036, 0.072, 0.047, 0.115, 0.275, 0.345, 0.362, 0.378, 0.235, 0.130],
        [0.060, 0.090, 0.098, 0.140, 0.205, 0.240, 0.258, 0.278, 0.310, 0.210],
        [0.032, 0.066, 0.038, 0.102, 0.310, 0.405, 0.425, 0.440, 0.215, 0.105],
        [0.062, 0.096, 0.112, 0.155, 0.215, 0.248, 0.268, 0.288, 0.315, 0.215],
        [0.048, 0.066, 0.085, 0.100, 0.112, 0.122, 0.134, 0.145, 0.205, 0.175],
        [0.105, 0.145, 0.190, 0.212, 0.232, 0.248, 0.265, 0.280, 0.365, 0.325],
        [0.185, 0.222, 0.252, 0.264, 0.271, 0.277, 0.284, 0.289, 0.325, 0.295],
        [0.165, 0.218, 0.270, 0.291, 0.305, 0.316, 0.330, 0.338, 0.405, 0.370],
        [0.160, 0.188, 0.210, 0.220, 0.227, 0.233, 0.240, 0.245, 0.280, 0.252],
        [0.165, 0.190, 0.210, 0.218, 0.226, 0.232, 0.240, 0.244, 0.275, 0.255],
        [0.078, 0.088, 0.097, 0.101, 0.105, 0.108, 0.112, 0.115, 0.138, 0.132],
        [0.070, 0.095, 0.170, 0.205, 0.222, 0.236, 0.250, 0.262, 0.320, 0.285],
        [0.058, 0.065, 0.070, 0.073, 0.076, 0.079, 0.083, 0.086, 0.105, 0.102],
        [0.310, 0.330, 0.340, 0.342, 0.345, 0.346, 0.350, 0.350, 0.335, 0.305],
        [0.034, 0.030, 0.016, 0.012, 0.009, 0.008, 0.007, 0.007, 0.004, 0.003],
        [0.060, 0.083, 0.070, 0.058, 0.034, 0.032, 0.028, 0.025, 0.009, 0.006],
    ],
    np.float32,
)
"""(materials, bands) reflectance 0..1."""

TEXTURE = np.array([0.16, 0.16, 0.06, 0.06, 0.05, 0.05, 0.05, 0.04, 0.05, 0.05, 0.12, 0.10, 0.08, 0.12, 0.10, 0.15, 0.03, 0.05], np.float32)
"""(materials,) relative standard deviation of brightness from one five-metre pixel to the next: crowns, stones, roofs."""
