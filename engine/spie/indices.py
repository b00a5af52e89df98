"""Spectral indices by spyndex, and what they say at first sight about each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import spyndex
from numpy.typing import NDArray

from engine.bands import channel_of

SPYNDEX_BANDS = {"A": "coastal", "B": "blue", "G": "green", "R": "red", "N": "nir", "S1": "swir16", "S2": "swir22"}
"""Canonical band of each letter that spyndex uses in formulas."""

HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class Rule:
    """One comparison of a prior: index above (or below) a threshold that Otsu may move within the guard band."""

    index: str
    above: bool
    threshold: float
    guard: float = 0.0
    """The threshold may move this far; 0 keeps it fixed."""


PRIORS: dict[str, tuple[tuple[Rule, ...], ...]] = {
    "water": (
        (Rule("MNDWI", True, 0.05, 0.10), Rule("NDVI", False, 0.20)),
        (Rule("NDWI", True, 0.05, 0.10),),
    ),
    "vegetation": ((Rule("NDVI", True, 0.40, 0.10),), (Rule("NGRDI", True, 0.05, 0.05),)),
    "building": ((Rule("NDBI", True, -0.05, 0.10), Rule("NDVI", False, 0.30), Rule("MNDWI", False, -0.05), Rule("NDBI", False, 0.15)),),
    "bare": (
        (Rule("NDBI", True, 0.10, 0.05), Rule("NDVI", False, 0.25), Rule("MNDWI", False, -0.15)),
        (Rule("NDVI", False, 0.20, 0.05), Rule("NDWI", False, -0.05)),
    ),
}
"""Per class the alternatives in order of preference; the first whose indices the band set offers is used, and all of its rules must hold."""


def index_bands(name: str) -> tuple[str, ...]:
    """Return the canonical bands that an index needs, as far as they are bands."""
    return tuple(SPYNDEX_BANDS[letter] for letter in spyndex.indices[name].bands)


def available(name: str, bands: Sequence[str]) -> bool:
    """Return whether the band set offers what an index needs."""
    return all(channel_of(each, bands) is not None for each in index_bands(name))


def spectral_index(name: str, reflectance: NDArray[np.floating], bands: Sequence[str]) -> NDArray[np.float32] | None:
    """Return an index of a chip, or None where the band set lacks what it needs.

    Parameters
    ----------
    name
        Name in spyndex's catalogue (NDVI, NDWI, MNDWI, NDBI, NGRDI, ...).
    reflectance
        (C, H, W) surface reflectance 0..1, NaN = no data. Values below 0.001 count as 0.001, which keeps ratios finite.
    bands
        Canonical names of the channels.
    """
    if not available(name, bands):
        return None
    parameters = {}
    for letter in spyndex.indices[name].bands:
        channel = channel_of(SPYNDEX_BANDS[letter], bands)
        parameters[letter] = np.maximum(np.asarray(reflectance[channel], np.float32), np.float32(1e-3))
    return np.asarray(spyndex.computeIndex([name], parameters), np.float32).reshape(reflectance.shape[1:])


def spectral_prior(target: str, reflectance: NDArray[np.floating], bands: Sequence[str]) -> NDArray[np.bool_] | None:
    """Return where indices alone suggest a class, (H, W), or None where the band set has no index for it. NaN is never suggested."""
    for rules in PRIORS.get(target, ()):
        if all(available(rule.index, bands) for rule in rules):
            mask = np.ones(reflectance.shape[1:], bool)
            for rule in rules:
                mask &= _holds(rule, spectral_index(rule.index, reflectance, bands))
            return mask
    return None


def _holds(rule: Rule, values: NDArray[np.float32] | None) -> NDArray[np.bool_]:
    assert values is not None
    threshold = otsu_within(values, rule.threshold - rule.guard, rule.threshold + rule.guard, rule.threshold) if rule.guard else rule.threshold
    return values > threshold if rule.above else values < threshold


def otsu_within(values: NDArray[np.float32], low: float, high: float, default: float) -> float:
    """Return Otsu's threshold of the finite values if it lies in low..high, else `default`."""
    finite = values[np.isfinite(values)]
    if finite.size < 2 or finite.min() == finite.max():
        return default
    counts, edges = np.histogram(np.clip(finite, -1, 1), HISTOGRAM_BINS, (-1.0, 1.0))
    centres = 0.5 * (edges[1:] + edges[:-1])
    below = np.cumsum(counts)
    above = below[-1] - below
    moment = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (moment / below - (moment[-1] - moment) / above) ** 2
    best = float(edges[1 + int(np.nanargmax(np.where(np.isfinite(between), between, -1.0)))])
    return best if low <= best <= high else default
