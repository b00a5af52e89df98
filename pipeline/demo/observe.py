"""From the landscape to the numbers of a product: what each pass sees of one block of a tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.demo.acquisitions import ACQUISITIONS, Acquisition, cloud_thickness, seasonal_reflectance, shadow_thickness, sunlight, through_air
from pipeline.demo.ground import Field, Ground
from pipeline.demo.landscape import landscape
from pipeline.demo.noise import Patch, fractal
from pipeline.demo.spectra import BANDS
from pipeline.demo.tiles import PixelGrid, Tile, beyond_swath, covering_patch, sample

SENSOR_NOISE = 0.0012
"""Standard deviation of reflectance, besides half a percent of the signal."""
AIR_STEP = 20.0
"""Pixel side in metres on which clouds and haze are computed."""
POINT_SPREAD = 0.9
"""Standard deviation of the sensor's point spread in half pixels of the band: world pixels of 5 m, or means of two by two for the 20 m bands."""

Numbers = dict[str, NDArray[np.uint16] | NDArray[np.uint8]]


@dataclass(frozen=True)
class Air:
    """What stands between the ground and the sensor on one day, on one grid: optical thicknesses, (height, width) float32."""

    cloud: Field
    shadow: Field
    haze: Field

    def pooled(self) -> Air:
        """Return the same air on pixels of twice the side."""
        return Air(pool(self.cloud), pool(self.shadow), pool(self.haze))


def observe(tile: Tile, block: PixelGrid, seed: int) -> list[Numbers]:
    """Return, for each acquisition, the digital numbers of a block by asset key, each at its own resolution.

    Ten bands are uint16 with 0 for no data, "scl" is uint8.
    """
    x, y = block.world()
    patch = covering_patch(x, y)
    ground = landscape(patch, seed)
    return [_observe_pass(tile, block, ground, acquisition, x, y) for acquisition in ACQUISITIONS]


def air_over(x: NDArray[np.float64], y: NDArray[np.float64], seed: int, acquisition: Acquisition) -> Air:
    """Return the air above the points (world metres)."""
    patch = covering_patch(x, y, AIR_STEP)
    fields = cloud_thickness(patch, seed, acquisition), shadow_thickness(patch, seed, acquisition), _haze(patch, seed, acquisition)
    cloud, shadow, haze = (sample(field, patch, x, y) for field in fields)
    return Air(cloud, shadow, haze)


def _haze(patch: Patch, seed: int, acquisition: Acquisition) -> Field:
    haze: Field = np.maximum(1 + np.float32(0.35) * fractal(patch, seed, 220 + acquisition.number, 9000, 3), 0)
    return haze


def pool(field: Field) -> Field:
    """Return the means of two by two pixels."""
    height, width = field.shape
    means: Field = field.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3), dtype=np.float32)
    return means


def _observe_pass(tile: Tile, block: PixelGrid, ground: Ground, acquisition: Acquisition, x: NDArray[np.float64], y: NDArray[np.float64]) -> Numbers:
    air = {10: air_over(x, y, ground.seed, acquisition)}
    air[20] = air[10].pooled()
    coarse = block.coarser(20).world()
    places = {10: (x, y), 20: coarse}
    table = seasonal_reflectance(acquisition)
    light = ground.tone * sunlight(ground.elevation, ground.patch.step, acquisition)
    noise = np.random.default_rng([ground.seed, acquisition.number, block.epsg, int(block.left), int(block.top)])
    seen: dict[str, Field] = {}
    for number, band in enumerate(BANDS):
        plane = (table[ground.first, number] * (1 - ground.blend) + table[ground.second, number] * ground.blend) * light
        blurred = gaussian_filter(plane if band.resolution == 10 else pool(plane), POINT_SPREAD, truncate=2.5)
        surface = sample(blurred, ground.patch, *places[band.resolution])
        here = air[band.resolution]
        product = through_air(surface, number, acquisition, here.haze, here.shadow, here.cloud)
        error = noise.standard_normal(product.shape, np.float32)
        seen[band.key] = product + error * (SENSOR_NOISE + 0.005 * product)
    scl = classify_scene(seen, air[20], noise)
    gone = {key: _no_data(tile, acquisition, *place) for key, place in places.items()}
    numbers: Numbers = {band.key: _digital_numbers(seen[band.key], acquisition, gone[band.resolution]) for band in BANDS}
    numbers["scl"] = np.where(gone[20], np.uint8(0), scl)
    return numbers


def _no_data(tile: Tile, acquisition: Acquisition, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    if not is_cut(tile, acquisition):
        return np.zeros(x.shape, bool)
    return beyond_swath(tile.grid.width, x, y)


def is_cut(tile: Tile, acquisition: Acquisition) -> bool:
    """Return whether the edge of the swath runs through this tile in this pass."""
    return acquisition.swath_edge and tile.grid.epsg == 32632


def _digital_numbers(reflectance: Field, acquisition: Acquisition, gone: NDArray[np.bool_]) -> NDArray[np.uint16]:
    numbers = np.rint(reflectance * 10000) + acquisition.offset
    return np.where(gone, 0, np.clip(numbers, 1, 65535)).astype(np.uint16)


def classify_scene(seen: dict[str, Field], air: Air, noise: np.random.Generator) -> NDArray[np.uint8]:
    """Return a scene classification as its maker's would come out, uint8 on the 20 m grid.

    The surface is told by thresholds on the product; the edges of clouds are missed and overdone as in reality.

    Parameters
    ----------
    seen
        Reflectance of the bands as the product shows them.
    air
        The true clouds and shadows, on the 20 m grid; they are blurred and disturbed before they are cut.
    noise
        Where the disturbance comes from.
    """
    blue, green, red, nir = (pool(seen[key]) for key in ("blue", "green", "red", "nir"))
    vegetation = (nir - red) / np.maximum(nir + red, 1e-3)
    scl = np.full(blue.shape, 5, np.uint8)
    scl[vegetation > 0.4] = 4
    scl[(vegetation > 0.30) & (vegetation <= 0.36)] = 7
    scl[(nir < 0.13) & (seen["swir16"] < 0.11)] = 2
    scl[(green > nir) & (seen["swir16"] < 0.07)] = 6
    doubt = np.exp(0.5 * gaussian_filter(noise.standard_normal(blue.shape, np.float32), 3) * 9)
    cloud, shadow = gaussian_filter(air.cloud, 1.5) * doubt, gaussian_filter(air.shadow, 1.5) * doubt
    scl[shadow > 0.25] = 3
    scl[(cloud > 0.07) & (blue > 0.04)] = 10
    scl[(cloud > 0.2) | ((blue > 0.30) & (cloud > 0.01))] = 8
    scl[cloud > 0.9] = 9
    return scl
