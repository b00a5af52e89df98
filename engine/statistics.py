"""What is counted over the pixels of a class, on a chip or on a map, so that words can be said about it.

Counts are whole numbers and spectral indices are rounded to ten-thousandths, so that sums over blocks do not depend on their order or size.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.evidence import LIMITS, SpectralRule, rules_of
from engine.spie.indices import spectral_index

CERTAIN, POSSIBLE = 0.7, 0.3
"""Probabilities between which the range of an area lies."""
CLOSE = 0.2
"""A second class whose probability lies less than this below the winner's is close."""
INDEX_SCALE = 10_000
"""Spectral indices are counted in whole ten-thousandths."""


@dataclass(frozen=True)
class IndexCounts:
    """One spectral index over the pixels of a class."""

    pixels: int
    """Pixels where the index has a value."""
    total: int
    """Sum of its values in ten-thousandths."""
    sides: Mapping[int, tuple[int, int]]
    """By limit in ten-thousandths: pixels above it, pixels below it."""

    @property
    def mean(self) -> float:
        """Mean value; 0 where no pixel has one."""
        return self.total / self.pixels / INDEX_SCALE if self.pixels else 0.0

    def split(self, rule: SpectralRule) -> tuple[float, float]:
        """Return the shares (0..1) of the pixels on the usual and on the unusual side of a rule."""
        above, below = self.sides[rule.number]
        usual, unusual = (above, below) if rule.above else (below, above)
        return usual / self.pixels, unusual / self.pixels

    def without(self, part: IndexCounts) -> IndexCounts:
        """Return the counts over the pixels that are not those of `part`."""
        sides = {limit: (above - part.sides[limit][0], below - part.sides[limit][1]) for limit, (above, below) in self.sides.items()}
        return IndexCounts(self.pixels - part.pixels, self.total - part.total, sides)


def count_index(values: NDArray[np.floating], limits: Sequence[int]) -> IndexCounts:
    """Return the counts over values in ten-thousandths (whole numbers, NaN = no data)."""
    valid = values[np.isfinite(values)]
    sides = {limit: (int((valid > limit).sum()), int((valid < limit).sum())) for limit in limits}
    return IndexCounts(len(valid), int(valid.sum(dtype=np.float64)), sides)


@dataclass(frozen=True)
class RunnerUp:
    """Which class was second over the pixels of a class."""

    title: str
    """The class that was second most often."""
    share: float
    """Share of the pixels, 0..1, on which it was."""
    close: float
    """Share of the pixels, 0..1, on which the second, whichever it is, comes within `CLOSE` of the first."""


@dataclass(frozen=True)
class Occlusion:
    """What becomes of the pixels of a class when one band is hidden from the model."""

    band: str
    changed: float
    """Share of the pixels, 0..1, that get another class."""
    title: str
    """What most of those become."""


@dataclass(frozen=True)
class ClassStatistics:
    """What is known of one class on one map or chip; sums of blocks make a map's."""

    title: str
    """How the sentence calls it."""
    pixels: int
    """Pixels of which this is the class."""
    valid_pixels: int
    """Pixels with data."""
    certain_pixels: int | None = None
    """Pixels whose probability of this class is above 0.7: the lower end of the range."""
    possible_pixels: int | None = None
    """Pixels whose probability of this class is above 0.3: the upper end of the range."""
    hectares: float | None = None
    """Area of the pixels on the ground; None on a chip."""
    certain_hectares: float | None = None
    possible_hectares: float | None = None
    mapped_hectares: float | None = None
    """Area of all pixels with data."""
    mean_confidence: float | None = None
    """Mean probability of this class over its pixels, 0..1."""
    runner_up: RunnerUp | None = None
    rules: tuple[SpectralRule, ...] = ()
    """What the class usually looks like in the spectral indices, the most telling first."""
    indices: Mapping[str, IndexCounts] = field(default_factory=dict)
    """Spectral indices over its pixels, by name."""
    elsewhere: Mapping[str, IndexCounts] = field(default_factory=dict)
    """Spectral indices over all other pixels with data, by name."""
    neighbours: Mapping[str, float] = field(default_factory=dict)
    """Share of the class's border, 0..1, with each other class by title."""
    occlusions: tuple[Occlusion, ...] = ()
    """One for each band that was hidden."""

    @property
    def share(self) -> float:
        """Share of the area with data, 0..1; 0 where there is none."""
        if self.hectares is not None and self.mapped_hectares is not None:
            return self.hectares / self.mapped_hectares if self.mapped_hectares else 0.0
        return self.pixels / self.valid_pixels if self.valid_pixels else 0.0


@dataclass(frozen=True)
class SceneStatistics:
    """What is known of a whole map or chip."""

    shares: Mapping[str, float]
    """Share of what has data, 0..1, by title of the class."""
    other: float
    """Share of what has data and is none of the classes, 0..1."""
    valid_pixels: int
    all_pixels: int
    """Of a map: of the region."""
    hectares: float | None = None
    """Area with data; None on a chip."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Pixels without data by reason in words; empty where reasons are not known."""


def landcover_of(probabilities: NDArray[np.float32], thresholds: Sequence[float]) -> NDArray[np.int16]:
    """Return the class of each pixel (H, W): position 0..K-1 of the highest probability (lowest on ties), K for other, -1 for NaN."""
    valid = np.isfinite(probabilities).all(0)
    filled = np.where(valid, probabilities, 0.0)
    passes = (filled >= np.asarray(thresholds, np.float32)[:, None, None]).any(0)
    winner = np.where(passes, filled.argmax(0), len(probabilities))
    return np.where(valid, winner, -1).astype(np.int16)


class ChipStatistics:
    """Counts over one chip.

    Parameters
    ----------
    probabilities, reflectance
        (K, H, W) and (C, H, W), NaN = no data.
    bands
        Canonical names of the C channels.
    parts, titles, thresholds
        Of the K classes; `parts` are the model's own names of the classes whose union is asked, one for a single class.
    overlaps
        For each class the positions of those that may share a pixel with it (a class and its children, a union and its parts); each class is
        then compared with the others only. Default: none.
    hidden
        By band the probabilities (K, H, W) that the model gives without it.
    """

    def __init__(
        self,
        probabilities: NDArray[np.float32],
        reflectance: NDArray[np.floating],
        bands: Sequence[str],
        parts: Sequence[Sequence[str]],
        titles: Sequence[str],
        thresholds: Sequence[float],
        overlaps: Sequence[Collection[int]] | None = None,
        hidden: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self._probabilities, self._parts, self._titles, self._thresholds = probabilities, parts, [*titles, "other"], thresholds
        self._overlaps = overlaps or [()] * len(parts)
        self._hidden = hidden or {}
        self._valid = np.asarray(np.isfinite(probabilities).all(0))
        found = {name: spectral_index(name, reflectance, bands) for name in LIMITS}
        self._indices = {name: np.where(self._valid, np.rint(v * np.float32(INDEX_SCALE)), np.nan) for name, v in found.items() if v is not None}
        self._everywhere = {name: count_index(values, LIMITS[name]) for name, values in self._indices.items()}

    def classes(self) -> list[ClassStatistics]:
        """Return the statistics of the K classes."""
        return [self._class(k) for k in range(len(self._parts))]

    def scene(self) -> SceneStatistics:
        """Return the statistics of the whole chip."""
        planes = [self.mask(k) for k in range(len(self._parts))]
        valid = int(self._valid.sum())
        none = int((self._valid & ~np.logical_or.reduce(planes)).sum())
        shares = {title: int(plane.sum()) / valid if valid else 0.0 for title, plane in zip(self._titles, planes, strict=False)}
        return SceneStatistics(shares, none / valid if valid else 0.0, valid, self._valid.size)

    def mask(self, k: int) -> NDArray[np.bool_]:
        """Return where class `k` wins over those that it competes with, (H, W)."""
        return np.asarray(self._plane(k) == k)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """Where there is data, (H, W)."""
        return self._valid

    def _rivals(self, k: int) -> list[int]:
        return [j for j in range(len(self._parts)) if j not in self._overlaps[k]]

    def _plane(self, k: int, probabilities: NDArray[np.float32] | None = None) -> NDArray[np.int16]:
        """Return the map (H, W) of class `k` and those that it competes with: positions, K other, -1 no data."""
        rivals = self._rivals(k)
        winner = landcover_of((self._probabilities if probabilities is None else probabilities)[rivals], [self._thresholds[j] for j in rivals])
        return np.array([*rivals, len(self._parts), -1], np.int16)[winner]

    def _class(self, k: int) -> ClassStatistics:
        plane, probability = self._plane(k), self._probabilities[k]
        mine = plane == k
        here = {name: count_index(values[mine], LIMITS[name]) for name, values in self._indices.items()}
        edges = count_borders(plane, len(self._titles))[k]
        return ClassStatistics(
            title=self._titles[k],
            pixels=int(mine.sum()),
            valid_pixels=int(self._valid.sum()),
            certain_pixels=int((probability[self._valid] > CERTAIN).sum()),
            possible_pixels=int((probability[self._valid] > POSSIBLE).sum()),
            mean_confidence=float(probability[mine].mean(dtype=np.float64)) if mine.any() else None,
            runner_up=self._runner_up(k, mine),
            rules=rules_of(self._parts[k]),
            indices=here,
            elsewhere={name: self._everywhere[name].without(counts) for name, counts in here.items()},
            neighbours={self._titles[j]: int(edges[j]) / int(edges.sum()) for j in np.flatnonzero(edges)},
            occlusions=tuple(self._occlusion(k, mine, band) for band in self._hidden) if mine.any() else (),
        )

    def _runner_up(self, k: int, mine: NDArray[np.bool_]) -> RunnerUp | None:
        others = [j for j in self._rivals(k) if j != k]
        if not others or not mine.any():
            return None
        rest = self._probabilities[others][:, mine]
        counts = np.bincount(rest.argmax(0), minlength=len(others))
        close = (self._probabilities[k][mine] - rest.max(0) < np.float32(CLOSE)).sum()
        return RunnerUp(self._titles[others[int(counts.argmax())]], int(counts.max()) / rest.shape[1], int(close) / rest.shape[1])

    def _occlusion(self, k: int, mine: NDArray[np.bool_], band: str) -> Occlusion:
        then = self._plane(k, self._hidden[band])[mine]
        becomes = np.bincount(then[(then != k) & (then >= 0)], minlength=len(self._titles))
        return Occlusion(band, int(becomes.sum()) / len(then), self._titles[int(becomes.argmax())] if becomes.any() else "")


def count_borders(winner: NDArray[np.int16], classes: int) -> NDArray[np.int64]:
    """Return how many pixel edges each pair of classes shares, (classes, classes), symmetric, diagonal 0; negative codes are left out."""
    counts = np.zeros((classes, classes), np.int64)
    for a, b in ((winner[:, :-1], winner[:, 1:]), (winner[:-1], winner[1:])):
        differ = (a != b) & (a >= 0) & (b >= 0)
        np.add.at(counts, (a[differ], b[differ]), 1)
    return counts + counts.T
