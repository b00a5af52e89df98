"""What can be surface reflectance, and what is digital numbers, fill values or a scale applied twice: refused before a model sees it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engine.errors import InvalidReflectance

DIGITAL_NUMBERS = 1.5
"""A band of a chip with a median above this is no reflectance."""

FLOOR, CEILING = -0.2, 7.0
"""Reflectance lies between, ends left out: harmonised numbers give -0.1 to 6.5; -0.2 is what Landsat's scale and offset make of its fill value 0."""

SCALED_TWICE = 0.002
"""A chip with data but no larger value is no reflectance: dark water stays above it, numbers that were multiplied by 1e-4 twice below."""


def as_chips(reflectance: NDArray[np.floating], bands: Sequence[str]) -> NDArray[np.float32]:
    """Return the array as float32 if its shape and type can be those of chips of these bands, else raise `InvalidReflectance`."""
    array = np.asarray(reflectance)
    if array.ndim != 4:
        raise InvalidReflectance(f"reflectance has shape {array.shape}; it must be (N, C, H, W): chips, bands, height, width")
    if 0 in array.shape:
        raise InvalidReflectance(f"reflectance is empty: shape {array.shape}")
    if array.shape[1] != len(bands):
        raise InvalidReflectance(f"reflectance has {array.shape[1]} channels but {len(bands)} bands are named: {', '.join(bands)}")
    if not (np.issubdtype(array.dtype, np.floating) or np.issubdtype(array.dtype, np.integer)):
        raise InvalidReflectance(f"reflectance is {array.dtype}; it must be floating point")
    return array.astype(np.float32)


def check_reflectance(values: NDArray[np.float32], bands: Sequence[str]) -> None:
    """Return if each band of each chip (N, C, H, W) can be reflectance, NaN = no data.

    Raises
    ------
    InvalidReflectance
        Naming the first chip, and the band where it is one band: infinite values, digital numbers, fill values that are not NaN (far out of range,
        or zero in every band of most pixels), or a scale that was applied twice.
    """
    for index, chip in enumerate(values):
        for name, plane in zip(bands, chip, strict=True):
            _check_plane(plane, f"chip {index}, band {name}")
        _check_darkness(chip, f"chip {index}")


def _check_plane(plane: NDArray[np.float32], where: str) -> None:
    if np.isinf(plane).any():
        raise InvalidReflectance(f"{where}: infinite values; mark pixels without data by NaN")
    low, high = plane <= FLOOR, plane >= CEILING
    rest = plane[plane > FLOOR]
    # More than half above: the median is, too; counting is cheaper.
    if 2 * np.count_nonzero(rest > DIGITAL_NUMBERS) > rest.size:
        raise InvalidReflectance(
            f"{where}: median {float(np.median(rest)):g} is no reflectance: these look like digital numbers; "
            "apply the product's scale and offset first"
        )
    if low.any():
        raise InvalidReflectance(
            f"{where}: {np.count_nonzero(low)} pixels at or below {FLOOR:g}, the lowest {plane[low].min():g}: this looks like a fill value; "
            "mark pixels without data by NaN"
        )
    if high.any():
        raise InvalidReflectance(
            f"{where}: {np.count_nonzero(high)} pixels at or above {CEILING:g}, the highest {plane[high].max():g}: this looks like a fill value or "
            "digital numbers; mark pixels without data by NaN, and apply the product's scale and offset to all others"
        )


def _check_darkness(chip: NDArray[np.float32], where: str) -> None:
    with_data = np.count_nonzero(~np.isnan(chip).any(0))
    zero = np.count_nonzero((chip == 0).all(0))
    if 2 * zero > with_data:
        raise InvalidReflectance(
            f"{where}: {zero} of {with_data} pixels are 0 in every band; zero in every band looks like a fill value; mark it by NaN"
        )
    if with_data and float(np.nanmax(np.abs(chip))) < SCALED_TWICE:
        raise InvalidReflectance(
            f"{where}: no value above {float(np.nanmax(np.abs(chip))):g}, which is no reflectance; the scale looks applied twice: apply it once"
        )
