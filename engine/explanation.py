"""Sentences about a land-cover map. Every number in a sentence is one of the statistics given; nothing is invented."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from engine.spie.indices import spectral_index

CERTAIN, POSSIBLE = 0.7, 0.3
"""Probabilities between which the range of an area lies."""

EVIDENCE: Mapping[str, tuple[tuple[str, bool, float], ...]] = {
    "water": (("MNDWI", True, 0.0), ("NDWI", True, 0.0), ("NDVI", False, 0.2)),
    "vegetation": (("NDVI", True, 0.3), ("NGRDI", True, 0.0)),
    "building": (("NDVI", False, 0.35), ("MNDWI", False, 0.0), ("NGRDI", False, 0.05)),
    "bare": (("NDVI", False, 0.3), ("MNDWI", False, 0.0), ("NGRDI", False, 0.0)),
}
"""Per class: index, whether it should lie above, and the value; the mean of a class on the right side is consistent with it."""

EXPLAINED_INDICES = ("NDVI", "NDWI", "MNDWI", "NGRDI")
INDICES_IN_SENTENCE = 2


@dataclass(frozen=True)
class ClassStatistics:
    """What is known of one class on one map or chip; sums of blocks make a map's."""

    name: str
    """The model's class that was asked for (chooses which indices are evidence)."""
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
    """Area of the pixels, equal-area."""
    certain_hectares: float | None = None
    possible_hectares: float | None = None
    mean_confidence: float | None = None
    """Mean probability of this class over its pixels, 0..1."""
    mean_indices: Mapping[str, float] = field(default_factory=dict)
    """Mean of spectral indices over its pixels, by name (NDVI, NDWI, MNDWI, NGRDI)."""
    neighbours: Mapping[str, float] = field(default_factory=dict)
    """Share of the class's border, 0..1, with each other class by title."""

    @property
    def share(self) -> float:
        """Share of the valid pixels, 0..1; 0 where there are none."""
        return self.pixels / self.valid_pixels if self.valid_pixels else 0.0


def describe(statistics: Sequence[ClassStatistics]) -> list[str]:
    """Return one sentence per class, in the order given."""
    return [_sentence(each) for each in statistics]


def _sentence(s: ClassStatistics) -> str:
    if not s.valid_pixels:
        return f"{s.title}: there are no pixels with data."
    if not s.pixels:
        return f"{s.title} was not found in {s.valid_pixels:,} pixels with data{_possible(s)}."
    return f"{s.title} covers {percent(s.share)} of the pixels with data{_area(s)}{_range(s)}{_confidence(s)}{_evidence(s)}{_border(s)}."


def _possible(s: ClassStatistics) -> str:
    if not s.possible_pixels:
        return ""
    return f", though {percent(s.possible_pixels / s.valid_pixels)} of them reach a probability of {percent(POSSIBLE)}"


def _area(s: ClassStatistics) -> str:
    return "" if s.hectares is None else f", {s.hectares:,.1f} ha"


def _range(s: ClassStatistics) -> str:
    if s.certain_pixels is None or s.possible_pixels is None:
        return ""
    low, high = percent(s.certain_pixels / s.valid_pixels), percent(s.possible_pixels / s.valid_pixels)
    if s.certain_hectares is not None and s.possible_hectares is not None:
        low, high = f"{s.certain_hectares:,.1f} ha", f"{s.possible_hectares:,.1f} ha"
    return f" ({low} at a probability above {percent(CERTAIN)}, {high} above {percent(POSSIBLE)})"


def _confidence(s: ClassStatistics) -> str:
    return "" if s.mean_confidence is None else f", with a mean confidence of {percent(s.mean_confidence)}"


def _evidence(s: ClassStatistics) -> str:
    """Return the means of the indices that speak about this class, those in favour first."""
    rules = [rule for rule in EVIDENCE.get(s.name, ()) if rule[0] in s.mean_indices][:INDICES_IN_SENTENCE]
    groups: dict[bool, list[str]] = {True: [], False: []}
    for index, above, limit in rules:
        value = s.mean_indices[index]
        groups[(value > limit) == above].append(f"mean {index} of {value:.2f}")
    texts = []
    if groups[True]:
        texts.append(f"; {' and '.join(groups[True])}: consistent with {s.title.lower()}")
    if groups[False]:
        texts.append(f"; {' and '.join(groups[False])}: unusual for {s.title.lower()}")
    return "".join(texts)


def _border(s: ClassStatistics) -> str:
    if not s.neighbours:
        return ""
    title, share = max(s.neighbours.items(), key=lambda item: (item[1], item[0]))
    return f"; {percent(share)} of its border is with {title.lower()}"


def percent(share: float) -> str:
    """Return a share 0..1 as text in percent, one decimal below 10 %."""
    value = 100 * share
    if 0 < value < 0.05:
        return "less than 0.1 %"
    return f"{value:.1f} %" if 0 < value < 9.95 else f"{value:.0f} %"


def landcover_of(probabilities: NDArray[np.float32], thresholds: Sequence[float]) -> NDArray[np.int16]:
    """Return the class of each pixel (H, W): position 0..K-1 of the highest probability (lowest on ties), K for other, -1 for NaN."""
    valid = np.isfinite(probabilities).all(0)
    filled = np.where(valid, probabilities, 0.0)
    passes = (filled >= np.asarray(thresholds, np.float32)[:, None, None]).any(0)
    winner = np.where(passes, filled.argmax(0), len(probabilities))
    return np.where(valid, winner, -1).astype(np.int16)


def measure(
    probabilities: NDArray[np.float32],
    reflectance: NDArray[np.floating],
    bands: Sequence[str],
    names: Sequence[str],
    titles: Sequence[str],
    thresholds: Sequence[float],
) -> list[ClassStatistics]:
    """Return the statistics of one chip.

    Parameters
    ----------
    probabilities, reflectance
        (K, H, W) and (C, H, W), NaN = no data.
    bands
        Canonical names of the C channels.
    names, titles, thresholds
        Of the K classes.
    """
    winner = landcover_of(probabilities, thresholds)
    indices = {name: spectral_index(name, reflectance, bands) for name in EXPLAINED_INDICES}
    borders = count_borders(winner, len(names) + 1)
    called = [*titles, "other"]
    return [
        _measure_class(k, winner, probabilities[k], {n: v for n, v in indices.items() if v is not None}, borders, names[k], called)
        for k in range(len(names))
    ]


def _measure_class(
    k: int,
    winner: NDArray[np.int16],
    probability: NDArray[np.float32],
    indices: Mapping[str, NDArray[np.float32]],
    borders: NDArray[np.int64],
    name: str,
    titles: Sequence[str],
) -> ClassStatistics:
    mine, length = winner == k, int(borders[k].sum())
    here = bool(mine.any())
    return ClassStatistics(
        name=name,
        title=titles[k],
        pixels=int(mine.sum()),
        valid_pixels=int((winner >= 0).sum()),
        certain_pixels=int((probability > CERTAIN).sum()),
        possible_pixels=int((probability > POSSIBLE).sum()),
        mean_confidence=float(probability[mine].mean(dtype=np.float64)) if here else None,
        mean_indices={n: float(np.nanmean(v[mine])) for n, v in indices.items()} if here else {},
        neighbours={titles[j]: borders[k, j] / length for j in range(len(titles)) if borders[k, j]} if length else {},
    )


def count_borders(winner: NDArray[np.int16], classes: int) -> NDArray[np.int64]:
    """Return how many pixel edges each pair of classes shares, (classes, classes), symmetric, diagonal 0; negative codes are left out."""
    counts = np.zeros((classes, classes), np.int64)
    for a, b in ((winner[:, :-1], winner[:, 1:]), (winner[:-1], winner[1:])):
        differ = (a != b) & (a >= 0) & (b >= 0)
        np.add.at(counts, (a[differ], b[differ]), 1)
    return counts + counts.T
