"""Does a published explanation say what the rasters beside it show? Counts land cover and confidence again and reads every sentence against that.

The spectra are not published, so what a text says of indices and of runners-up is held against the numbers of its own document.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from engine.checker import check_text
from engine.recount import ABOVE, ClassFacts, Expectation, Facts, Sides
from pipeline.areas import CELL, PixelAreas, hectares
from pipeline.grid import Grid, PixelBox
from stac.legend import quality_titles
from stac.records import CONFIDENCE_NO_DATA, NO_DATA, OTHER, OUTSIDE_REGION

ROUNDING = 1e-3
"""Percent points and hectares by which a number of the document, rounded to four decimals, may differ."""


def explanation_problems(paths: Mapping[str, str], item: Mapping[str, Any], series: Mapping[str, Any]) -> Iterator[str]:
    """Yield where the local ``explanation.json`` of an item contradicts the local rasters.

    Parameters
    ----------
    paths
        Local paths by asset key: explanation, landcover, confidence and quality.
    item
        The STAC item.
    series
        ``spexmap:series`` of its collection, for the grid that the cells of borders lie on.
    """
    document = json.loads(Path(paths["explanation"]).read_bytes())
    counts = _Counts(item, series)
    with rasterio.open(paths["landcover"]) as landcover, rasterio.open(paths["confidence"]) as confidence, rasterio.open(paths["quality"]) as quality:
        for strip in counts.strips():
            window = Window(0, strip.start, landcover.width, strip.stop - strip.start)
            counts.add(strip.start, *(raster.read(1, window=window) for raster in (landcover, confidence, quality)))
    rows = [row for row in document["classes"] if row["code"] != OTHER]
    for row in document["classes"]:
        yield from _row_problems(row, counts)
    text = " ".join([*(row["text"] for row in rows), document["scene"]])
    if document["text"] != text:
        yield "has a text that is not that of its classes and its scene"
    yield from (str(finding) for finding in check_text(text, _facts(rows, counts)))


class _Counts:
    """Pixels, areas, confidence and borders by code, counted cell by cell of the grid."""

    def __init__(self, item: Mapping[str, Any], series: Mapping[str, Any]) -> None:
        properties, grid = item["properties"], series["grid"]
        self._grid = Grid(grid["crs"], grid["resolution"], (grid["origin"][0], grid["origin"][1]), grid["tile"])
        transform = properties["proj:transform"]
        self._top = round((grid["origin"][1] - transform[5]) / grid["resolution"])
        self._left = round((transform[2] - grid["origin"][0]) / grid["resolution"])
        self._height, self._width = properties["proj:shape"]
        self._areas = PixelAreas(self._grid)
        self.pixels, self.quality = np.zeros((256, 256), np.int64), np.zeros(256, np.int64)
        """Pixels by code and confidence, and by quality number."""
        self.area: list[int] = [0] * 256
        self.certain: list[int] = [0] * 256
        self.possible: list[int] = [0] * 256
        self.edges = np.zeros((256, 256), np.int64)

    def strips(self) -> Iterator[slice]:
        """Yield the rows of the raster that lie in one row of cells."""
        cuts = sorted({0, self._height, *range(-self._top % CELL, self._height, CELL)})
        return (slice(start, stop) for start, stop in pairwise(cuts))

    def add(self, first_row: int, landcover: NDArray[np.uint8], confidence: NDArray[np.uint8], quality: NDArray[np.uint8]) -> None:
        """Count a strip."""
        self.quality += np.bincount(quality.ravel(), minlength=256)
        box = PixelBox(self._top + first_row, self._left, self._top + first_row + len(landcover), self._left + self._width)
        for part, pixel_area in self._areas.parts(box):
            cut = part.within(box)
            self._cell(landcover[cut], confidence[cut], pixel_area)

    def _cell(self, landcover: NDArray[np.uint8], confidence: NDArray[np.uint8], pixel_area: int) -> None:
        counted = _pairs(landcover, confidence)
        self.pixels += counted
        for code in np.unique(landcover):
            self.area[code] += int(counted[code].sum()) * pixel_area
            self.certain[code] += int(counted[code, 71:101].sum()) * pixel_area
            self.possible[code] += int(counted[code, 31:101].sum()) * pixel_area
        for turned in (landcover, landcover.T):
            one, other = turned[:-1], turned[1:]
            meet = (one != other) & (one != NO_DATA) & (other != NO_DATA)
            edges = _pairs(one[meet], other[meet])
            self.edges += edges + edges.T

    def of(self, code: int) -> int:
        """Return the pixels of a code."""
        return int(self.pixels[code].sum())

    def confidence(self, code: int) -> float:
        """Return the mean confidence of a code in percent."""
        counts = self.pixels[code, :CONFIDENCE_NO_DATA]
        return float((counts * np.arange(CONFIDENCE_NO_DATA)).sum()) / float(counts.sum()) if counts.any() else 0.0

    def share(self, code: int) -> float:
        """Return the share of a code in the mapped area, in percent."""
        return 100 * self.area[code] / self.mapped if self.mapped else 0.0

    @property
    def mapped(self) -> int:
        """Square millimetres that are not no data."""
        return sum(self.area) - self.area[NO_DATA]

    def borders(self, code: int) -> dict[int, float]:
        """Return the share of a code's border with each other code, in percent."""
        edges = self.edges[code]
        return {int(other): 100 * float(edges[other]) / float(edges.sum()) for other in np.flatnonzero(edges)}


def _pairs(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return how often each pair of numbers occurs, (256, 256)."""
    return np.bincount(first.ravel().astype(np.uint16) << 8 | second.ravel(), minlength=65536).reshape(256, 256)


def _row_problems(row: Mapping[str, Any], counts: _Counts) -> Iterator[str]:
    code = row["code"]
    pairs = (
        ("pixels", row["pixels"], counts.of(code)),
        ("area_ha", row["area_ha"], hectares(counts.area[code])),
        ("area_range_ha", row["area_range_ha"][0], hectares(counts.certain[code])),
        ("area_range_ha", row["area_range_ha"][1], hectares(counts.possible[code])),
        ("share_percent", row["share_percent"] or 0.0, counts.share(code)),
        ("mean_confidence_percent", row["mean_confidence_percent"] or 0.0, counts.confidence(code)),
    )
    for name, said, found in pairs:
        if abs(said - found) > ROUNDING:
            yield f"says {name} {said} of {row['name']}, the rasters show {found:.6g}"


def _facts(rows: list[Mapping[str, Any]], counts: _Counts) -> Facts:
    titles = {row["code"]: row["title"] for row in rows} | {OTHER: "Other"}
    names = {row["name"]: row["title"] for row in rows}
    reasons = {code: title for code, title in quality_titles().items() if code != OUTSIDE_REGION}
    valid = int(counts.pixels.sum()) - counts.of(NO_DATA)
    missing = {title: int(counts.quality[code]) for code, title in reasons.items()}
    everything = valid + sum(missing.values())
    return Facts(
        classes=tuple(_class_facts(row, counts, titles, names) for row in rows),
        other=counts.share(OTHER),
        valid_pixels=valid,
        all_pixels=everything,
        hectares=hectares(counts.mapped),
        reasons={title: 100 * pixels / everything for title, pixels in missing.items() if pixels},
    )


def _class_facts(row: Mapping[str, Any], counts: _Counts, titles: Mapping[int, str], names: Mapping[str, str]) -> ClassFacts:
    code, evidence = row["code"], row["evidence"]
    second = row.get("runner_up")
    expected: list[Expectation] = [(entry["index"], entry["usual"], entry["limit"]) for entry in evidence]
    there = [entry for entry in evidence if entry["usual_percent"] is not None]
    told = next((entry for entry in evidence if entry["elsewhere_percent"] is not None and entry["specific"]), None)
    return ClassFacts(
        title=row["title"],
        pixels=counts.of(code),
        share=counts.share(code),
        low=hectares(counts.certain[code]),
        high=hectares(counts.possible[code]),
        confidence=counts.confidence(code),
        hectares=hectares(counts.area[code]),
        expected=tuple(expected),
        indices={
            entry["index"]: _sides(entry["usual"], entry["usual_percent"], entry["unusual_percent"], row["indices"][entry["index"]])
            for entry in there
        },
        missed=None if told is None else (told["index"], told["usual"], told["limit"]),
        elsewhere={} if told is None else {told["index"]: _sides(told["usual"], told["elsewhere_percent"])},
        seconds=None if second is None else {names[second["name"]]: second["percent"]},
        close=0.0 if second is None else second["close_percent"],
        borders={titles[other]: share for other, share in counts.borders(code).items()},
    )


def _sides(usual: str, percent: float, opposite: float = 0.0, mean: float = 0.0) -> Sides:
    return Sides(percent, opposite, mean) if usual == ABOVE else Sides(opposite, percent, mean)
