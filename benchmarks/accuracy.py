"""Score a published map of the demo against the demo's truth.

    python benchmarks/accuracy.py demo/output demo [--json]

Scored are the pixels of the region that are truly clear in at least one scene; a pixel that was not mapped counts as wrong. Floors: intersection
over union of 0.5 for every class, overall accuracy 0.10 above the best constant map, and no seam: the class-transition rate along the border of the
two zones lies within the 99 % range of the rates along 200 random lines like it. Exit status 1 where a floor is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import rasterio
from published_map import OUTSIDE, PublishedMap, intersection_over_union, read_map
from pyproj import Transformer

CLASSES = ("vegetation", "building", "water", "bare")
MERIDIAN = 12.0
"""Border of UTM zones 32 and 33, degrees east."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="output folder of the run")
    parser.add_argument("demo", type=Path, help="folder that spexmap demo wrote")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    published = read_map(arguments.output)
    figures = {**score(published, arguments.demo), "border": border_figures(published, arguments.demo)}
    figures["failures"] = failures(figures)
    print(json.dumps(figures, indent=1, sort_keys=True) if arguments.json else report(figures))
    return 1 if figures["failures"] else 0


def score(published: PublishedMap, demo: Path) -> dict[str, object]:
    """Return accuracy figures of the map on truly clear pixels."""
    truth = published.on_this_grid(demo / "truth" / "landcover.tif")
    clear_file = demo / "truth" / "clear.tif"
    with rasterio.open(clear_file) as file:
        bands = file.count
    clear = np.any([published.on_this_grid(clear_file, band) == 1 for band in range(1, bands + 1)], axis=0)
    domain = clear & (truth > 0) & (published.quality != OUTSIDE)
    # The truth numbers the classes 1 to 4 in the demo's order; the map's own codes are looked up by name.
    mapped = np.zeros(truth.shape, np.uint8)
    for code, name in enumerate(CLASSES, start=1):
        mapped[published.landcover == published.classes[name]] = code
    counts = np.bincount(truth[domain], minlength=len(CLASSES) + 1)[1:]
    return {
        "pixels": int(domain.sum()),
        "mapped_share": float((published.landcover[domain] > 0).mean()),
        "class_shares": {name: float(counts[code] / counts.sum()) for code, name in enumerate(CLASSES)},
        "iou": {name: intersection_over_union(mapped == code, truth == code, domain) for code, name in enumerate(CLASSES, start=1)},
        "overall_accuracy": float((mapped == truth)[domain].mean()),
        "best_constant": float(counts.max() / counts.sum()),
    }


def border_figures(published: PublishedMap, demo: Path) -> dict[str, object]:
    """Return the transition rates along the two borders of the zones, the meridian and the seam of the mosaic, against random lines."""
    rows = np.arange(published.landcover.shape[0])
    lines = {"meridian": meridian_line(published, rows)}
    seam = seam_line(published, demo, rows)
    if seam is not None:
        lines["seam"] = seam
    random = random_rates(published, list(lines.values()), rows)
    low, high = np.percentile(random, [0.5, 99.5])
    rates = {name: transition_rate(published.landcover, rows, line) for name, line in lines.items()}
    within = {name: bool(low <= rate <= high) for name, rate in rates.items()}
    return {
        "rates": rates,
        "random_lines": len(random),
        "random_median": float(np.median(random)),
        "range": [float(low), float(high)],
        "within": within,
    }


def meridian_line(published: PublishedMap, rows: np.ndarray) -> np.ndarray:
    """Return the column of 12 degrees east in every row, (height,) float64."""
    middle = published.transform.c + published.transform.a * published.landcover.shape[1] / 2
    y = published.transform.f + (rows + 0.5) * published.transform.e
    latitude = Transformer.from_crs(published.crs, 4326, always_xy=True).transform(np.full(rows.shape, middle), y)[1]
    x, _ = Transformer.from_crs(4326, published.crs, always_xy=True).transform(np.full(rows.shape, MERIDIAN), latitude)
    return (np.asarray(x) - published.transform.c) / published.transform.a


def seam_line(published: PublishedMap, demo: Path, rows: np.ndarray) -> np.ndarray | None:
    """Return the straight line that best parts pixels taken from one zone's scenes from those of the other, or None where one zone fills the map.

    In each row the best column has the most pixels of the western zone left of it and of the eastern zone right of it (or the other way round); the
    line is the median slope through these columns, so that cloud gaps filled from the other zone do not bend it.
    """
    zone = scene_zones(published, demo)[published.scene]
    west, east = (zone == value for value in sorted(set(np.unique(zone)) - {0})[:2]) if len(set(np.unique(zone)) - {0}) >= 2 else (None, None)
    if west is None:
        return None
    balance = np.cumsum(west.astype(np.int32) - east.astype(np.int32), axis=1)
    usable = west.any(axis=1) & east.any(axis=1)
    columns = np.argmax(np.abs(balance) if balance[:, -1].mean() < 0 else balance, axis=1) + 1.0
    row, column = rows[usable], columns[usable]
    if len(row) < 20:
        return None
    pairs = np.random.default_rng(0).integers(0, len(row), (4000, 2))
    apart = np.abs(row[pairs[:, 0]] - row[pairs[:, 1]]) > len(rows) / 10
    slope = np.median((column[pairs[apart, 0]] - column[pairs[apart, 1]]) / (row[pairs[apart, 0]] - row[pairs[apart, 1]]))
    return np.median(column - slope * row) + slope * rows


def scene_zones(published: PublishedMap, demo: Path) -> np.ndarray:
    """Return the EPSG code of each scene of the map by its place, (scenes + 1,) with 0 for none."""
    items = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in demo.glob("*/*/*.json")}
    return np.array([0, *(items[name]["properties"]["proj:epsg"] for name in published.scenes)])


def transition_rate(landcover: np.ndarray, rows: np.ndarray, line: np.ndarray) -> float:
    """Return the share of rows in which the classes left and right of the line differ, of those where both are mapped (NaN if fewer than half)."""
    right = np.rint(line).astype(int)
    inside = (right >= 1) & (right < landcover.shape[1])
    first, second = landcover[rows[inside], right[inside] - 1], landcover[rows[inside], right[inside]]
    both = (first > 0) & (second > 0)
    return float((first != second)[both].mean()) if both.sum() >= len(rows) / 2 else float("nan")


def random_rates(published: PublishedMap, borders: list[np.ndarray], rows: np.ndarray, count: int = 200) -> np.ndarray:
    """Return the rates along `count` lines of the first border's course, shifted and turned by up to 5 degrees, 10 pixels or more off all borders."""
    random = np.random.default_rng(12)
    line = borders[0]
    rates: list[float] = []
    for _ in range(100 * count):
        shift = random.uniform(-line.mean(), published.landcover.shape[1] - line.mean())
        turned = line + shift + np.tan(np.radians(random.uniform(-5, 5))) * (rows - rows.mean())
        if min(np.abs(turned - border).min() for border in borders) < 10:
            continue
        rate = transition_rate(published.landcover, rows, turned)
        if not np.isnan(rate):
            rates.append(rate)
        if len(rates) == count:
            return np.array(rates)
    raise SystemExit("the map is too narrow or too empty for lines beside the border of the zones")


def failures(figures: dict[str, object]) -> list[str]:
    """Return a sentence for each floor that was missed."""
    missed = [f"{name}: IoU {value:.3f} is below 0.5" for name, value in figures["iou"].items() if not value >= 0.5]
    if not figures["overall_accuracy"] >= figures["best_constant"] + 0.10:
        missed.append(
            f"overall accuracy {figures['overall_accuracy']:.3f} is less than 0.10 above the best constant map's {figures['best_constant']:.3f}"
        )
    border = figures["border"]
    missed += [f"{name}: transition rate {border['rates'][name]:.4f} outside {border['range']}" for name, ok in border["within"].items() if not ok]
    return missed


def report(figures: dict[str, object]) -> str:
    """Return the figures as lines for a person."""
    border = figures["border"]
    lines = [f"{figures['pixels']} clear pixels, {figures['mapped_share']:.2%} of them mapped"]
    lines += [f"  {name:<11} IoU {value:.3f}   share {figures['class_shares'][name]:.3f}" for name, value in figures["iou"].items()]
    lines.append(f"overall accuracy {figures['overall_accuracy']:.3f}, best constant map {figures['best_constant']:.3f}")
    low, high = border["range"]
    for name, rate in border["rates"].items():
        lines.append(f"class transitions along the {name}: {rate:.4f}; {border['random_lines']} random lines: {low:.4f} to {high:.4f} (99 %)")
    return "\n".join([*lines, *(f"BELOW THE FLOOR: {sentence}" for sentence in figures["failures"])])


if __name__ == "__main__":
    sys.exit(main())
