"""What spectral indices say at first sight about each class: documented rules with fixed thresholds that Otsu's method may move a little.

Otsu's method: N. Otsu, A threshold selection method from gray-level histograms, IEEE Transactions on Systems, Man, and Cybernetics 9 (1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.spie.errors import IndexUnavailable
from engine.spie.indices import available, possible_indices, spectral_index, why_unavailable

HISTOGRAM_BINS = 64


@dataclass(frozen=True)
class Rule:
    """One comparison of a prior: index above (or below) a threshold that Otsu may move within the guard band."""

    index: str
    above: bool
    threshold: float
    guard: float = 0.0
    """The threshold may move this far; 0 keeps it fixed."""

    def __str__(self) -> str:
        """Return the rule as a formula, such as ``MNDWI > 0.05 (Otsu within 0.10)``."""
        moved = f" (Otsu within {self.guard:.2f})" if self.guard else ""
        return f"{self.index} {'>' if self.above else '<'} {self.threshold:.2f}{moved}"


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


def prior_rules(target: str, bands: Sequence[str]) -> tuple[Rule, ...]:
    """Return the rules by which a band set sees a class, empty where it cannot."""
    return next((rules for rules in PRIORS.get(target, ()) if all(available(rule.index, bands) for rule in rules)), ())


def require_prior(target: str, bands: Sequence[str]) -> tuple[Rule, ...]:
    """Return `prior_rules`; raises `IndexUnavailable` with the index and the band that are missing, and what would be possible."""
    rules = prior_rules(target, bands)
    if not rules:
        raise IndexUnavailable(why_no_prior(target, bands))
    return rules


def why_no_prior(target: str, bands: Sequence[str]) -> str:
    """Return why a band set has no rule for a class."""
    if target not in PRIORS:
        return f"no index rule for class {target!r}; there are rules for {', '.join(PRIORS)}"
    reasons = dict.fromkeys(reason for rules in PRIORS[target] for rule in rules if (reason := why_unavailable(rule.index, bands)))
    others = [name for name in PRIORS if prior_rules(name, bands)]
    named = [name for name in possible_indices(bands) if any(rule.index == name for rules in PRIORS.values() for part in rules for rule in part)]
    return (
        f"class {target!r}: {'; '.join(reasons)}; possible with {', '.join(bands)}: "
        f"indices {', '.join(named) or 'none'}, classes {', '.join(others) or 'none'}"
    )


def fitted_thresholds(target: str, reflectance: NDArray[np.floating], bands: Sequence[str]) -> dict[Rule, float]:
    """Return the threshold of each rule of a class on a scene (C, H, W), NaN = no data: Otsu's within the guard band, else the default."""
    return {rule: _threshold(rule, spectral_index(rule.index, reflectance, bands)) for rule in prior_rules(target, bands)}


def spectral_prior(
    target: str, reflectance: NDArray[np.floating], bands: Sequence[str], thresholds: Mapping[Rule, float] | None = None
) -> NDArray[np.bool_] | None:
    """Return where indices alone suggest a class, (H, W), or None where the band set has no index for it.

    Parameters
    ----------
    target
        A class of `PRIORS`; any other gives None.
    reflectance
        (C, H, W) surface reflectance 0..1. NaN (no data, cloud) is never suggested.
    bands
        Canonical names of the C channels.
    thresholds
        Of the whole scene, as `fitted_thresholds` returns them; without them they are fitted on this chip.
    """
    rules = prior_rules(target, bands)
    if not rules:
        return None
    mask = np.ones(reflectance.shape[1:], bool)
    for rule in rules:
        values = spectral_index(rule.index, reflectance, bands)
        assert values is not None
        threshold = _threshold(rule, values) if thresholds is None else thresholds[rule]
        mask &= values > threshold if rule.above else values < threshold
    return mask


def _threshold(rule: Rule, values: NDArray[np.float32] | None) -> float:
    if values is None or not rule.guard:
        return rule.threshold
    return otsu_within(values, rule.threshold - rule.guard, rule.threshold + rule.guard, rule.threshold)


def otsu_within(values: NDArray[np.float32], low: float, high: float, default: float) -> float:
    """Return Otsu's threshold of the finite values, from 64 bins between -1 and 1, if it lies in low..high, else `default`."""
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
