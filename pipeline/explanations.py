"""The numbers behind a tile's explanation, counted while its blocks are finished, and the document that holds them beside the words.

All sums are whole numbers over cells of 256 x 256 pixels of the global grid, so they depend neither on the order of blocks nor on their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.errors import UnknownClass
from engine.evidence import LIMITS, SpectralRule, rules_of
from engine.explanation import describe, describe_scene, side
from engine.lexicon import DEFAULT_TERMS, Lexicon
from engine.spie.indices import spectral_index
from engine.statistics import CERTAIN, CLOSE, INDEX_SCALE, POSSIBLE, ClassStatistics, IndexCounts, RunnerUp, SceneStatistics
from pipeline.areas import CELL, PixelAreas, hectares
from pipeline.grid import PixelBox
from stac.canonical import canonical_json
from stac.legend import QUALITY_CODES, class_titles
from stac.records import NO_DATA, OTHER, OUTSIDE_REGION, MapClass

CERTAIN_PERCENT, POSSIBLE_PERCENT, CLOSE_PERCENT = round(100 * CERTAIN), round(100 * POSSIBLE), round(100 * CLOSE)
CODES, RANKS = 256, 32
_SUMS = ("pixels", "area", "certain_pixels", "certain_area", "possible_pixels", "possible_area", "confidence", "close_pixels")
_WORDS = Lexicon(DEFAULT_TERMS)


@dataclass
class ClassSums:
    """Whole-number sums over the pixels of one land-cover code; areas in square millimetres."""

    pixels: int = 0
    area: int = 0
    certain_pixels: int = 0
    certain_area: int = 0
    """Confidence above 70 %."""
    possible_pixels: int = 0
    possible_area: int = 0
    """Confidence above 30 %."""
    confidence: int = 0
    """Sum of percents."""
    indices: dict[str, list[int]] = field(default_factory=dict)
    """Spectral index to [pixels with a value, sum in ten-thousandths]."""
    sides: dict[str, list[int]] = field(default_factory=dict)
    """``index limit`` (in ten-thousandths) to [pixels above it, pixels below it]."""
    borders: dict[str, int] = field(default_factory=dict)
    """Other code (as text) to the number of pixel edges shared with it; no data has none."""
    seconds: dict[str, int] = field(default_factory=dict)
    """Other code (as text) to the pixels on which it was second; empty where nobody said."""
    close_pixels: int = 0
    """Pixels on which the second came within 20 points."""

    def add(self, other: Mapping[str, Any]) -> None:
        """Add the sums of other pixels: the fields of another `ClassSums`."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + other.get(name, 0))
        for mine, name in ((self.indices, "indices"), (self.sides, "sides")):
            for key, (first, second) in other.get(name, {}).items():
                before = mine.get(key, [0, 0])
                mine[key] = [before[0] + first, before[1] + second]
        for counts, name in ((self.borders, "borders"), (self.seconds, "seconds")):
            for code, pixels in other.get(name, {}).items():
                counts[code] = counts.get(code, 0) + pixels

    def counts(self, name: str) -> IndexCounts:
        """Return what was counted of a spectral index."""
        pixels, total = self.indices.get(name, [0, 0])
        pairs = {limit: self.sides.get(f"{name} {limit}", [0, 0]) for limit in LIMITS[name]}
        return IndexCounts(pixels, total, {limit: (above, below) for limit, (above, below) in pairs.items()})

    def mean_index(self, name: str) -> float:
        """Return the mean of a spectral index over the pixels where it has a value."""
        pixels, total = self.indices[name]
        return total / pixels / INDEX_SCALE


@dataclass
class TileStatistics:
    """Sums by land-cover code and by quality number over the blocks added so far."""

    codes: dict[int, ClassSums] = field(default_factory=dict)
    """By land-cover code, no data and other included."""
    quality: dict[int, int] = field(default_factory=dict)
    """Pixels by quality number."""

    def add(self, block: Mapping[str, Any]) -> None:
        """Add what `count_block`, or `to_dict` of other statistics, gave."""
        for code, sums in block["codes"].items():
            self.of(int(code)).add(sums)
        for number, pixels in block["quality"].items():
            self.quality[int(number)] = self.quality.get(int(number), 0) + pixels

    def of(self, code: int) -> ClassSums:
        """Return the sums of a land-cover code, zeros where it did not occur."""
        return self.codes.setdefault(code, ClassSums())

    def to_dict(self) -> dict[str, Any]:
        """Return the sums as JSON-ready data."""
        return {
            "codes": {str(code): vars(sums) for code, sums in sorted(self.codes.items())},
            "quality": {str(number): pixels for number, pixels in sorted(self.quality.items())},
        }

    def class_areas(self, classes: Sequence[MapClass]) -> dict[str, float]:
        """Return hectares by class name, ``other`` and ``no-data`` included: what the item publishes."""
        names = {**_names(classes), NO_DATA: "no-data"}
        return {name: hectares(self.of(code).area) for code, name in names.items()}

    @property
    def mapped_pixels(self) -> int:
        """Pixels that have a class or are other."""
        return sum(sums.pixels for code, sums in self.codes.items() if code != NO_DATA)

    @property
    def mapped_area(self) -> int:
        """Square millimetres that have a class or are other."""
        return sum(sums.area for code, sums in self.codes.items() if code != NO_DATA)


def _names(classes: Sequence[MapClass]) -> dict[int, str]:
    return {**{entry.code: entry.name for entry in classes}, OTHER: "other"}


def count_block(
    planes: Mapping[str, NDArray[Any]], numbers: NDArray[np.uint16], bands: Sequence[str], box: PixelBox, areas: PixelAreas
) -> dict[str, Any]:
    """Return the sums over one block as JSON-ready whole numbers: what `TileStatistics.add` takes.

    Parameters
    ----------
    planes
        landcover, confidence and quality (h, w) uint8 as published, clipped to the tile. Where the executor tells them, also runner_up, the code that
        was second, and margin, by how many percent it was: both (h, w) uint8.
    numbers
        (C, h, w) harmonised numbers: round((reflectance + 0.1) * 10000), 0 no data.
    bands
        Canonical names of the C channels.
    box
        The block's global pixels.
    areas
        Of the series' grid; make it once.
    """
    statistics = TileStatistics()
    for part, pixel_area in areas.parts(box):
        cut = part.within(box)
        landcover = planes["landcover"][cut]
        _count_confidence(statistics, landcover, planes["confidence"][cut], pixel_area)
    if "runner_up" in planes:
        _count_seconds(statistics, planes["landcover"], planes["runner_up"], planes["margin"])
    for top in range(0, box.shape[0], CELL):
        for name, values in _indices(numbers[:, top : top + CELL], bands):
            _count_index(statistics, name, planes["landcover"][top : top + CELL], values)
    counts = np.bincount(planes["quality"].ravel(), minlength=CODES)
    statistics.quality = {int(number): int(counts[number]) for number in np.flatnonzero(counts)}
    return statistics.to_dict()


def _count_confidence(statistics: TileStatistics, landcover: NDArray[np.uint8], confidence: NDArray[np.uint8], pixel_area: int) -> None:
    pairs = np.bincount((landcover.astype(np.uint16) << 8 | confidence).ravel(), minlength=CODES * CODES).reshape(CODES, CODES)
    for code in np.flatnonzero(pairs.any(axis=1)):
        counts = pairs[code, :101] if code != NO_DATA else np.zeros(101, np.int64)
        pixels, certain, possible = (int(part.sum()) for part in (pairs[code], counts[CERTAIN_PERCENT + 1 :], counts[POSSIBLE_PERCENT + 1 :]))
        statistics.of(int(code)).add(
            {
                "pixels": pixels,
                "area": pixels * pixel_area,
                "certain_pixels": certain,
                "certain_area": certain * pixel_area,
                "possible_pixels": possible,
                "possible_area": possible * pixel_area,
                "confidence": int((counts * np.arange(101)).sum()),
            }
        )


def count_borders(statistics: TileStatistics, read: Callable[[PixelBox], NDArray[np.uint8]], box: PixelBox) -> None:
    """Add the edges between different codes within each cell of the grid, over a finished tile: where its blocks met does not matter.

    Parameters
    ----------
    statistics
        Of the tile; added to in place.
    read
        Gives the land-cover codes (h, w) of global pixels inside the tile.
    box
        The tile's global pixels.
    """
    for cell in box.lattice(CELL):
        _count_edges(statistics, read(cell.intersect(box)))


def _count_edges(statistics: TileStatistics, landcover: NDArray[np.uint8]) -> None:
    for first, second in ((landcover[:, :-1], landcover[:, 1:]), (landcover[:-1], landcover[1:])):
        differ = (first != second) & (first != NO_DATA) & (second != NO_DATA)
        pairs = np.bincount(first[differ].astype(np.uint16) << 8 | second[differ], minlength=CODES * CODES)
        for pair in np.flatnonzero(pairs):
            one, other, edges = int(pair) >> 8, int(pair) & 255, int(pairs[pair])
            statistics.of(one).add({"borders": {str(other): edges}})
            statistics.of(other).add({"borders": {str(one): edges}})


def _count_seconds(statistics: TileStatistics, landcover: NDArray[np.uint8], runner_up: NDArray[np.uint8], margin: NDArray[np.uint8]) -> None:
    valid = (landcover != NO_DATA) & (landcover != OTHER)
    pairs = np.bincount(landcover[valid].astype(np.uint16) << 8 | runner_up[valid], minlength=CODES * CODES)
    for pair in np.flatnonzero(pairs):
        statistics.of(int(pair) >> 8).add({"seconds": {str(int(pair) & 255): int(pairs[pair])}})
    close = np.bincount(landcover[valid & (margin < CLOSE_PERCENT)], minlength=CODES)
    for code in np.flatnonzero(close):
        statistics.of(int(code)).add({"close_pixels": int(close[code])})


def _indices(numbers: NDArray[np.uint16], bands: Sequence[str]) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield the spectral indices that the bands offer, (h, w) in ten-thousandths, NaN where there is no data."""
    reflectance = np.where(numbers > 0, numbers * np.float32(1e-4) - np.float32(0.1), np.float32(np.nan))
    for name in LIMITS:
        values = spectral_index(name, reflectance, bands)
        if values is not None:
            yield name, np.rint(values * np.float32(INDEX_SCALE))


def _count_index(statistics: TileStatistics, name: str, landcover: NDArray[np.uint8], values: NDArray[np.float32]) -> None:
    valid = np.isfinite(values) & (landcover != NO_DATA)
    codes, values = landcover[valid], values[valid]
    # Even ranks lie between limits, odd ones on a limit.
    rank = np.zeros(codes.shape, np.uint16)
    for limit in LIMITS[name]:
        rank += (values >= limit).astype(np.uint16) + (values > limit)
    ranks = np.bincount(codes.astype(np.uint16) * RANKS + rank, minlength=CODES * RANKS).reshape(CODES, RANKS)
    totals = np.bincount(codes, weights=values, minlength=CODES)  # doubles hold these whole numbers exactly
    for code in np.flatnonzero(ranks.any(axis=1)):
        sides = {
            f"{name} {limit}": [int(ranks[code, 2 * i + 2 :].sum()), int(ranks[code, : 2 * i + 1].sum())] for i, limit in enumerate(LIMITS[name])
        }
        statistics.of(int(code)).add({"indices": {name: [int(ranks[code].sum()), int(totals[code])]}, "sides": sides})


def class_statistics(statistics: TileStatistics, classes: Sequence[MapClass]) -> list[ClassStatistics]:
    """Return the statistics as the engine's sentences take them, in the order of `classes`."""
    return [_of_class(statistics, entry, class_titles(classes)) for entry in classes]


def _of_class(statistics: TileStatistics, entry: MapClass, titles: Mapping[int, str]) -> ClassStatistics:
    sums = statistics.of(entry.code)
    edges = sum(sums.borders.values())
    everywhere = _mapped(statistics)
    offered = [name for name in LIMITS if name in everywhere.indices]
    return ClassStatistics(
        title=entry.title,
        pixels=sums.pixels,
        valid_pixels=statistics.mapped_pixels,
        certain_pixels=sums.certain_pixels,
        possible_pixels=sums.possible_pixels,
        hectares=hectares(sums.area),
        certain_hectares=hectares(sums.certain_area),
        possible_hectares=hectares(sums.possible_area),
        mapped_hectares=hectares(statistics.mapped_area),
        mean_confidence=sums.confidence / sums.pixels / 100 if sums.pixels else None,
        runner_up=_runner_up(sums, titles),
        rules=_rules(entry),
        indices={name: sums.counts(name) for name in offered},
        elsewhere={name: everywhere.counts(name).without(sums.counts(name)) for name in offered},
        neighbours={titles[int(code)]: count / edges for code, count in sorted(sums.borders.items())},
    )


def _mapped(statistics: TileStatistics) -> ClassSums:
    """Return the sums over all pixels with data."""
    total = ClassSums()
    for code, sums in statistics.codes.items():
        if code != NO_DATA:
            total.add({"indices": sums.indices, "sides": sums.sides})
    return total


def _runner_up(sums: ClassSums, titles: Mapping[int, str]) -> RunnerUp | None:
    if not sums.seconds:
        return None
    code, pixels = max(sums.seconds.items(), key=lambda item: (item[1], -int(item[0])))
    return RunnerUp(titles[int(code)], pixels / sums.pixels, sums.close_pixels / sums.pixels)


def _rules(entry: MapClass) -> tuple[SpectralRule, ...]:
    """Return how the class that a legend entry asks for usually looks; its description is the instruction."""
    try:
        return rules_of(_WORDS.find_in(entry.description) if entry.description else _WORDS.find_union(entry.name))
    except UnknownClass:
        return ()


def scene_statistics(statistics: TileStatistics, classes: Sequence[MapClass]) -> SceneStatistics:
    """Return the statistics of the whole tile as the engine's sentence takes them; pixels outside the region do not count."""
    mapped = statistics.mapped_area
    reasons = {title: statistics.quality.get(code, 0) for code, _, title, _ in QUALITY_CODES if code != OUTSIDE_REGION}
    return SceneStatistics(
        shares={entry.title: statistics.of(entry.code).area / mapped if mapped else 0.0 for entry in classes},
        other=statistics.of(OTHER).area / mapped if mapped else 0.0,
        valid_pixels=statistics.mapped_pixels,
        all_pixels=statistics.mapped_pixels + sum(reasons.values()),
        hectares=hectares(mapped),
        reasons=reasons,
    )


def explanation_json(item_id: str, statistics: TileStatistics, classes: Sequence[MapClass], sentences: Sequence[str] | None = None) -> bytes:
    """Return the bytes of a tile's ``explanation.json``: numbers by class, and a text each in which every number is one of them.

    `sentences` replaces those of `engine.explanation.describe`, one a class in the order of `classes`.
    """
    counted = class_statistics(statistics, classes)
    texts = describe(counted) if sentences is None else list(sentences)
    rows = [
        {**_row(statistics, entry.code, classes), **_evidence(each, classes), "text": text}
        for entry, each, text in zip(classes, counted, texts, strict=True)
    ]
    scene = describe_scene(scene_statistics(statistics, classes))
    document = {
        "type": "spexmap-explanation",
        "item": item_id,
        "classes": [*rows, _row(statistics, OTHER, classes)],
        "mapped_area_ha": _hectares(statistics.mapped_area),
        "mean_clear_observations": _mean_clear(statistics),
        "no_data": _no_data(statistics),
        "scene": scene,
        "text": " ".join([*texts, scene]),
        "notes": {
            "area_ha": "measured on the ellipsoid, not in the projection's plane",
            "area_range_ha": f"pixels of the class with a confidence above {CERTAIN_PERCENT} %, and above {POSSIBLE_PERCENT} %",
            "border_percent": "share of the class's border with each other class, within cells of 256 x 256 pixels of the grid",
            "evidence": "percent of the class's pixels that have what is usual for it, or the opposite, and of all others; specific: rare elsewhere",
            "share_percent": "of the mapped area, which is all but no data",
        },
    }
    return canonical_json(document)


def _row(statistics: TileStatistics, code: int, classes: Sequence[MapClass]) -> dict[str, Any]:
    sums, mapped, names = statistics.of(code), statistics.mapped_area, _names(classes)
    edges = sum(sums.borders.values())
    return {
        "code": code,
        "name": names[code],
        "title": class_titles(classes)[code],
        "pixels": sums.pixels,
        "area_ha": _hectares(sums.area),
        "area_range_ha": [_hectares(sums.certain_area), _hectares(sums.possible_area)],
        "share_percent": round(100 * sums.area / mapped, 4) if mapped else None,
        "mean_confidence_percent": round(sums.confidence / sums.pixels, 4) if sums.pixels else None,
        "indices": {name: round(sums.mean_index(name), 4) for name in sums.indices},
        "border_percent": {names[int(other)]: round(100 * count / edges, 4) for other, count in sums.borders.items()},
    }


def _evidence(s: ClassStatistics, classes: Sequence[MapClass]) -> dict[str, Any]:
    """Return the numbers behind a text's evidence and runner-up."""
    rows = []
    for rule in (rule for rule in s.rules if rule.index in s.indices):
        here, there = s.indices[rule.index], s.elsewhere[rule.index]
        usual, unusual = (round(100 * share, 4) for share in here.split(rule)) if here.pixels else (None, None)
        elsewhere = round(100 * there.split(rule)[0], 4) if there.pixels else None
        rows.append(
            {"index": rule.index, "usual": side(rule.above), "limit": rule.limit}
            | {"usual_percent": usual, "unusual_percent": unusual, "elsewhere_percent": elsewhere, "specific": rule.specific}
        )
    second = s.runner_up
    if second is None:
        return {"evidence": rows}
    name = next(entry.name for entry in classes if entry.title == second.title)
    return {"evidence": rows, "runner_up": {"name": name, "percent": round(100 * second.share, 4), "close_percent": round(100 * second.close, 4)}}


def _hectares(area: int) -> float:
    return round(hectares(area), 4)


def _no_data(statistics: TileStatistics) -> dict[str, Any]:
    reasons = {name: statistics.quality.get(code, 0) for code, name, _, _ in QUALITY_CODES}
    return {"pixels": sum(reasons.values()), "reasons": reasons, "area_ha": _hectares(statistics.of(NO_DATA).area)}


def _mean_clear(statistics: TileStatistics) -> float | None:
    counted = {number: pixels for number, pixels in statistics.quality.items() if number <= 250}
    pixels = sum(counted.values())
    return round(sum(number * count for number, count in counted.items()) / pixels, 4) if pixels else None
