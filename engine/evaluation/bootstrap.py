"""Intervals by resampling places: chips of one place overlap on the ground, so a place is what can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES, LEVEL, SEED = 2000, 0.90, 0


def place_weights(places: Sequence[str] | NDArray[np.integer], resamples: int = RESAMPLES, seed: int = SEED) -> NDArray[np.float64]:
    """Return how often each chip counts in each resample, (resamples, chips): as many places as there are, drawn with replacement."""
    _, place = np.unique(np.asarray(places), return_inverse=True)
    number = int(place.max()) + 1
    draws = np.random.default_rng(seed).multinomial(number, np.full(number, 1.0 / number), size=resamples)
    return draws[:, place].astype(np.float64)


def interval(samples: NDArray[np.float64], level: float = LEVEL) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and upper end over the first axis that hold `level` of the resamples; NaN resamples are left out."""
    tail = 0.5 * (1.0 - level)
    values = np.asarray(samples, np.float64)
    nothing = np.isnan(values).all(0)
    low, high = np.nanquantile(np.where(nothing, 0.0, values), (tail, 1.0 - tail), axis=0)
    return np.where(nothing, np.nan, low), np.where(nothing, np.nan, high)
