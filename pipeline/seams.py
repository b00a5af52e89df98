"""Do the borders of windows, blocks, tiles or zones show in a map? Compares class changes across them with those across other lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from stac.records import NO_DATA

LINES = 200
QUANTILES = (0.005, 0.995)
"""Ends of the 99 % range."""
STRIP = 512
Classes = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class SeamScore:
    """Rate of class changes across given borders, and across as many random lines."""

    rate: float
    """Share of pixel pairs across the borders, 0..1, that differ in class; NaN where no pair has data."""
    low: float
    high: float
    """Ends of the 99 % range of the random lines' rates."""
    median: float

    @property
    def within(self) -> bool:
        """Whether the borders are no different from random lines."""
        return bool(self.low <= self.rate <= self.high)


def transition_rate(classes: Classes, line: int | NDArray[np.integer[Any]], axis: int = 1) -> float:
    """Return the share of pixel pairs across a line, 0..1, that differ in class.

    Parameters
    ----------
    classes
        (H, W) land-cover codes, 0 no data; pairs with no data are left out.
    line
        The line runs between `line` - 1 and `line`. A number is a straight line; an array holds the place in every row (axis 1, (H,)) or in every
        column (axis 0, (W,)), as the border of two zones has. Places outside the map are left out.
    axis
        1: a line from top to bottom, columns are compared. 0: from left to right, rows are compared.

    NaN where no pair is left.
    """
    changed, pairs = _count(classes if axis == 1 else classes.T, line)
    return changed / pairs if pairs else float("nan")


def _count(classes: Classes, line: int | NDArray[np.integer[Any]]) -> tuple[int, int]:
    rows, columns = classes.shape
    places = np.broadcast_to(np.asarray(line), (rows,))
    inside = np.flatnonzero((places >= 1) & (places < columns))
    before, after = classes[inside, places[inside] - 1], classes[inside, places[inside]]
    valid = (before != NO_DATA) & (after != NO_DATA)
    return int((valid & (before != after)).sum()), int(valid.sum())


def line_score(classes: Classes, line: int | NDArray[np.integer[Any]], axis: int = 1, lines: int = LINES, seed: int = 0) -> SeamScore:
    """Return how a line compares with `lines` random ones: the same line moved sideways by at least two pixels, where at least half of it has data.

    Raises ValueError where the map offers no such place.
    """
    oriented = classes if axis == 1 else classes.T
    places = np.broadcast_to(np.asarray(line), (oriented.shape[0],))
    _, wanted = _count(oriented, places)
    rates = []
    for shift in _shifts(oriented.shape[1], np.random.default_rng(seed)):
        changed, pairs = _count(oriented, places + shift)
        if pairs and 2 * pairs >= wanted:
            rates.append(changed / pairs)
        if len(rates) == lines:
            break
    if not rates:
        raise ValueError("no random line of the map has as much data as the border; use a larger map")
    return _score(transition_rate(oriented, places), np.array(rates))


def _shifts(width: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """All shifts that keep some of a line on the map, in random order: drawn without replacement."""
    shifts = np.concatenate([np.arange(-width + 1, -1), np.arange(2, width)])
    return generator.permutation(shifts)


def _score(rate: float, rates: NDArray[np.float64]) -> SeamScore:
    low, median, high = np.quantile(rates, [QUANTILES[0], 0.5, QUANTILES[1]])
    return SeamScore(rate, float(low), float(high), float(median))


@dataclass(frozen=True)
class TransitionProfile:
    """Class changes across every straight line of a map, counted in one pass."""

    changed: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Pairs that differ across rows (H,) and columns (W,); place i is the line between i - 1 and i, place 0 holds none."""
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]]
    """Pairs with data."""

    @classmethod
    def of_strips(cls, strips: Iterable[Classes], shape: tuple[int, int]) -> TransitionProfile:
        """Count over strips of rows (h, W) that come from top to bottom and make up a map of `shape`."""
        changed, pairs = tuple(np.zeros(side, np.int64) for side in shape), tuple(np.zeros(side, np.int64) for side in shape)
        top, above = 0, np.zeros((1, shape[1]), np.uint8)
        for strip in strips:
            rows = slice(top, top + strip.shape[0])
            joined = np.concatenate([above, strip])
            for axis, (before, after) in enumerate(((joined[:-1], joined[1:]), (strip[:, :-1], strip[:, 1:]))):
                valid = (before != NO_DATA) & (after != NO_DATA)
                across = rows if axis == 0 else slice(1, None)
                pairs[axis][across] += np.count_nonzero(valid, axis=1 - axis)
                changed[axis][across] += np.count_nonzero(valid & (before != after), axis=1 - axis)
            top, above = rows.stop, strip[-1:]
        return cls((changed[0], changed[1]), (pairs[0], pairs[1]))

    @classmethod
    def of_file(cls, path: Path) -> TransitionProfile:
        """Count over the raster at `path`, strip by strip of 512 rows."""
        with rasterio.open(path) as raster:
            tops = range(0, raster.height, STRIP)
            strips = (raster.read(1, window=Window(0, top, raster.width, min(STRIP, raster.height - top))) for top in tops)
            return cls.of_strips(strips, raster.shape)

    def score(self, boundaries: Sequence[Sequence[int]], lines: int = LINES, seed: int = 0) -> SeamScore | None:
        """Return how the given lines, taken together, compare with as many random ones, drawn `lines` times.

        `boundaries` holds the rows and the columns that a border lies before; None where none of them has data.
        """
        places = [np.array([place for place in axis if 0 < place < len(self.pairs[number])], np.int64) for number, axis in enumerate(boundaries)]
        changed, pairs = self._pooled(places)
        if not pairs:
            return None
        generator = np.random.default_rng(seed)
        sums = [self._pooled([self._draw(generator, number, kept) for number, kept in enumerate(places)]) for _ in range(lines)]
        return _score(changed / pairs, np.array([some / all_ for some, all_ in sums if all_] or [changed / pairs]))

    def _pooled(self, places: Sequence[NDArray[np.int64]]) -> tuple[int, int]:
        changed = sum(int(self.changed[number][kept].sum()) for number, kept in enumerate(places))
        return changed, sum(int(self.pairs[number][kept].sum()) for number, kept in enumerate(places))

    def _draw(self, generator: np.random.Generator, number: int, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """Draw as many lines that are none of `places`."""
        others = np.setdiff1d(np.flatnonzero(self.pairs[number]), places)
        return generator.choice(others, min(len(places), len(others)), replace=False) if len(others) else places


def seam_score(classes: Classes, rows: Sequence[int], columns: Sequence[int], lines: int = LINES, seed: int = 0) -> SeamScore | None:
    """Return how the borders before `rows` and `columns` of a map (H, W) compare with random lines; None where none of them has data."""
    return TransitionProfile.of_strips([classes], (classes.shape[0], classes.shape[1])).score([rows, columns], lines, seed)
