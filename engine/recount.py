"""What a text about a chip may say, counted again from probabilities and reflectance, apart from the code that writes the texts.

Nothing here is shared with the writer: the formulas of the indices, what is usual for a class and what counts as a class's pixels are written down
twice, so that a mistake on one side shows as a contradiction.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

ABOVE, BELOW = "above", "below"

Expectation = tuple[str, str, float]
"""Index, side and limit on which a class is usually found."""

EXPECTATIONS: Mapping[str, tuple[Expectation, ...]] = {
    "water": (("MNDWI", ABOVE, 0.0), ("NDWI", ABOVE, 0.0), ("NDVI", BELOW, 0.2)),
    "vegetation": (("NDVI", ABOVE, 0.2), ("MNDWI", BELOW, 0.0)),
    "tree_cover": (("NDVI", ABOVE, 0.35), ("MNDWI", BELOW, 0.0)),
    "cropland": (("NDVI", ABOVE, 0.2), ("MNDWI", BELOW, 0.0)),
    "grass_or_shrub": (("NDVI", ABOVE, 0.2), ("MNDWI", BELOW, 0.0)),
    "wetland": (("NDVI", ABOVE, 0.2), ("NDMI", ABOVE, 0.0)),
    "building": (("NDVI", BELOW, 0.5), ("MNDWI", BELOW, 0.0), ("NGRDI", BELOW, 0.05)),
    "bare": (("NDVI", BELOW, 0.25), ("MNDWI", BELOW, 0.0), ("NGRDI", BELOW, 0.0)),
}
MISSED = {("water", "MNDWI"), ("water", "NDWI")}
"""Class and index that are worth a word where other pixels have them."""
_RATIOS = {"NDVI": ("nir", "red"), "NDWI": ("green", "nir"), "MNDWI": ("green", "swir16"), "NGRDI": ("green", "red"), "NDMI": ("nir", "swir16")}
"""Bands a, b of (a - b) / (a + b)."""
_DARKEST = 0.001
TOLD = 2


@dataclass(frozen=True)
class Sides:
    """One index over some pixels, in percent of those that have a value."""

    above: float
    below: float
    mean: float

    def on(self, side: str) -> float:
        """Return the percent on a side."""
        return self.above if side == ABOVE else self.below


@dataclass(frozen=True)
class ClassFacts:
    """One class as counted again; shares in percent."""

    title: str
    pixels: int
    share: float
    low: float
    """Percent on a chip, hectares on a map."""
    high: float
    confidence: float = 0.0
    hectares: float | None = None
    expected: tuple[Expectation, ...] = ()
    """What the class usually shows, as far as the bands offer it."""
    indices: Mapping[str, Sides] = field(default_factory=dict)
    missed: Expectation | None = None
    elsewhere: Mapping[str, Sides] = field(default_factory=dict)
    """Of all other pixels with data."""
    seconds: Mapping[str, float] | None = None
    """By title; None where it is not known which class was second."""
    close: float = 0.0
    borders: Mapping[str, float] = field(default_factory=dict)
    hidden: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By hidden band and title: percent of the pixels that become that class."""


@dataclass(frozen=True)
class Facts:
    """A chip or a map as counted again."""

    classes: tuple[ClassFacts, ...]
    other: float
    valid_pixels: int
    all_pixels: int
    hectares: float | None = None
    reasons: Mapping[str, float] = field(default_factory=dict)
    """Percent of all pixels without data, by reason in words."""


def expectations(parts: Sequence[str], indices: Collection[str] | None = None) -> tuple[Expectation, ...]:
    """Return what a class or union usually shows in the indices at hand (None: in any)."""
    known = [{(index, side): limit for index, side, limit in EXPECTATIONS.get(part, ())} for part in parts]
    common = [key for key in known[0] if all(key in each for each in known)] if known else []
    found = [(index, side, (min if side == ABOVE else max)(each[index, side] for each in known)) for index, side in common]
    return tuple(each for each in found if indices is None or each[0] in indices)


def missed_by(parts: Sequence[str], expected: Sequence[Expectation]) -> Expectation | None:
    """Return what is worth a word where pixels have it that were not given to the class."""
    return next((each for each in expected if all((part, each[0]) in MISSED for part in parts)), None)


def recount_chip(
    probabilities: NDArray[np.float32],
    reflectance: NDArray[np.floating],
    bands: Sequence[str],
    parts: Sequence[Sequence[str]],
    titles: Sequence[str],
    thresholds: Sequence[float],
    overlaps: Sequence[Collection[int]] = (),
    hidden: Mapping[str, NDArray[np.float32]] | None = None,
) -> Facts:
    """Return what may be said about a chip: (K, H, W) probabilities, (C, H, W) reflectance, both with NaN = no data."""
    valid = np.asarray(~np.isnan(probabilities).any(0))
    chip = _Chip(np.where(valid, probabilities, -1), valid, [*titles, "other"], thresholds, overlaps or [()] * len(titles))
    indices = {name: np.where(valid, values, np.nan) for name, values in _indices(reflectance, bands).items()}
    without = {band: np.where(valid, each, -1) for band, each in (hidden or {}).items()}
    masks = [chip.labels(k, chip.probabilities) == k for k in range(len(titles))]
    none = valid & ~np.any(masks, axis=0)
    return Facts(
        classes=tuple(_class_facts(chip, k, parts[k], indices, without) for k in range(len(titles))),
        other=_percent(none.sum(), valid.sum()),
        valid_pixels=int(valid.sum()),
        all_pixels=valid.size,
    )


@dataclass(frozen=True)
class _Chip:
    probabilities: NDArray[np.floating]
    """-1 where there is no data."""
    valid: NDArray[np.bool_]
    titles: list[str]
    thresholds: Sequence[float]
    overlaps: Sequence[Collection[int]]

    def rivals(self, k: int) -> list[int]:
        return [j for j in range(len(self.thresholds)) if j == k or j not in self.overlaps[k]]

    def labels(self, k: int, probabilities: NDArray[np.floating]) -> NDArray[np.int64]:
        """Return the map of a class and its rivals: positions, K for none, -1 without data."""
        best, label = np.full(self.valid.shape, -np.inf), np.full(self.valid.shape, -1)
        passed = np.zeros(self.valid.shape, bool)
        for j in self.rivals(k):
            label[probabilities[j] > best] = j
            best = np.maximum(best, probabilities[j])
            passed |= probabilities[j] >= np.float32(self.thresholds[j])
        label[~passed] = len(self.thresholds)
        label[~self.valid] = -1
        return label


def _class_facts(
    chip: _Chip, k: int, parts: Sequence[str], indices: Mapping[str, NDArray[np.floating]], hidden: Mapping[str, NDArray[np.floating]]
) -> ClassFacts:
    labels, mine = chip.labels(k, chip.probabilities), chip.labels(k, chip.probabilities) == k
    seen = chip.probabilities[k][chip.valid]
    expected = expectations(parts, indices)
    pixels, others = int(mine.sum()), [j for j in chip.rivals(k) if j != k]
    seconds, close = _seconds(chip, k, mine, others) if pixels and others else (None, 0.0)
    return ClassFacts(
        title=chip.titles[k],
        pixels=pixels,
        share=_percent(pixels, chip.valid.sum()),
        low=_percent((seen > np.float32(0.7)).sum(), seen.size),
        high=_percent((seen > np.float32(0.3)).sum(), seen.size),
        confidence=100 * float(np.mean(chip.probabilities[k][mine], dtype=np.float64)) if pixels else 0.0,
        expected=expected,
        indices=_sides(indices, mine, expected),
        missed=missed_by(parts, expected),
        elsewhere=_sides(indices, chip.valid & ~mine, expected),
        seconds=seconds,
        close=close,
        borders=_borders(labels, k, chip.titles),
        hidden={band: _becomes(chip.labels(k, each)[mine], k, chip.titles) for band, each in hidden.items()} if pixels else {},
    )


def _seconds(chip: _Chip, k: int, mine: NDArray[np.bool_], others: Sequence[int]) -> tuple[dict[str, float], float]:
    second, which = np.full(int(mine.sum()), -np.inf), np.full(int(mine.sum()), -1)
    for j in others:
        here = chip.probabilities[j][mine]
        which[here > second] = j
        second = np.maximum(second, here)
    lead = chip.probabilities[k][mine].astype(np.float32) - second.astype(np.float32)
    return {chip.titles[j]: _percent((which == j).sum(), which.size) for j in others}, _percent((lead < np.float32(0.2)).sum(), lead.size)


def _sides(indices: Mapping[str, NDArray[np.floating]], where: NDArray[np.bool_], expected: Sequence[Expectation]) -> dict[str, Sides]:
    found = {}
    for name, _, limit in expected:
        values = indices[name][where]
        values = values[~np.isnan(values)]
        if values.size:
            found[name] = Sides(_percent((values > limit).sum(), values.size), _percent((values < limit).sum(), values.size), float(values.mean()))
    return found


def _borders(labels: NDArray[np.int64], k: int, titles: Sequence[str]) -> dict[str, float]:
    meets: list[NDArray[np.int64]] = []
    for turned in (labels, labels.T):
        first, second = turned[:-1], turned[1:]
        meets += [second[(first == k) & (second != k)], first[(second == k) & (first != k)]]
    other = np.concatenate(meets)
    other = other[other >= 0]
    return {titles[j]: _percent((other == j).sum(), other.size) for j in np.unique(other)}


def _becomes(labels: NDArray[np.int64], k: int, titles: Sequence[str]) -> dict[str, float]:
    return {titles[j]: _percent((labels == j).sum(), labels.size) for j in np.unique(labels) if j not in (k, -1)}


def _indices(reflectance: NDArray[np.floating], bands: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return the normalised differences that the bands offer, to four decimals."""
    planes = {name: np.maximum(np.asarray(plane, np.float64), _DARKEST) for name, plane in zip(bands, reflectance, strict=True)}
    if "nir" not in planes and "nir08" in planes:
        planes["nir"] = planes["nir08"]
    with np.errstate(invalid="ignore"):
        pairs = {name: (planes[a], planes[b]) for name, (a, b) in _RATIOS.items() if a in planes and b in planes}
        return {name: np.round((a - b) / (a + b), 4) for name, (a, b) in pairs.items()}


def _percent(part: Any, whole: Any) -> float:
    return 100.0 * float(part) / float(whole) if whole else 0.0
