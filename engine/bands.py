"""Spectral bands by canonical name (STAC eo common names) with their wavelengths, as the stem and the indices see them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import UnknownBand


@dataclass(frozen=True)
class Band:
    """One spectral band."""

    name: str
    centre: float
    """Centre wavelength in micrometres."""
    width: float
    """Full width at half maximum in micrometres."""


BANDS: tuple[Band, ...] = (
    Band("coastal", 0.443, 0.020),
    Band("blue", 0.490, 0.065),
    Band("green", 0.560, 0.040),
    Band("red", 0.660, 0.035),
    Band("rededge071", 0.704, 0.015),
    Band("rededge075", 0.740, 0.015),
    Band("rededge078", 0.783, 0.020),
    Band("nir", 0.842, 0.115),
    Band("nir08", 0.865, 0.025),
    Band("nir09", 0.945, 0.020),
    Band("swir16", 1.610, 0.090),
    Band("swir22", 2.200, 0.180),
)
"""In wavelength order; the centres are those of Sentinel-2, from which Landsat's differ by less than the kernels of the stem resolve."""

_BY_NAME = {band.name: band for band in BANDS}


def band(name: str) -> Band:
    """Return the band of a canonical name; raises `UnknownBand` with the nearest names."""
    found = _BY_NAME.get(name)
    if found is None:
        near = difflib.get_close_matches(name.lower(), list(_BY_NAME), n=3, cutoff=0.4) or list(_BY_NAME)
        raise UnknownBand(f"band {name!r} is not a canonical band name; nearest: {', '.join(near)}")
    return found


def check_bands(names: Sequence[str], required: Sequence[str] = ()) -> tuple[Band, ...]:
    """Return the bands of `names` in the order given.

    Raises
    ------
    UnknownBand
        A name is unknown or given twice, or one of `required` is missing.
    """
    bands = tuple(band(name) for name in names)
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise UnknownBand(f"bands given twice: {', '.join(twice)}; each channel needs its own band")
    missing = [name for name in required if channel_of(name, names) is None]
    if missing:
        raise UnknownBand(f"bands missing: {', '.join(missing)}; given: {', '.join(names)}; the model needs at least {', '.join(required)}")
    return bands


def channel_of(name: str, names: Sequence[str]) -> int | None:
    """Return the channel that plays a band's role, or None. ``nir08`` plays ``nir`` where there is no ``nir``, and the other way round."""
    if name in names:
        return list(names).index(name)
    other = {"nir": "nir08", "nir08": "nir"}.get(name, "")
    return list(names).index(other) if other in names else None


def in_wavelength_order(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names sorted from blue to shortwave infrared."""
    return tuple(sorted(names, key=lambda name: band(name).centre))
