"""Score maps of the real scenes against what the scenes' own classification says on every clear date.

    python benchmarks/scenes.py styria OUTPUT CATALOG [--json]
    python benchmarks/scenes.py fort-mcmurray OUTPUT CATALOG [--json]

The reference are pixels that SCL calls vegetation, not vegetated or water on every date on which they are clear: two dates or more in Styria, the one
date at Fort McMurray. Cloud shadow, dark areas and unclassified pixels are left out by that. Floors: at least 99 % of the pixels that any scene shows
clear are mapped; water 0.55 and vegetation 0.90 in Styria; water 0.75 at Fort McMurray. Exit status 1 where one is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from published_map import OUTSIDE, PublishedMap, intersection_over_union, read_map

CLEAR = (2, 4, 5, 6, 7, 11)
VEGETATION, NOT_VEGETATED, WATER = 4, 5, 6
FLOORS = {"styria": {"water": 0.55, "vegetation": 0.90}, "fort-mcmurray": {"water": 0.75}}
DATES = {"styria": 2, "fort-mcmurray": 1}
MAPPED = 0.99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", choices=sorted(FLOORS))
    parser.add_argument("output", type=Path, help="output folder of the run")
    parser.add_argument("catalog", type=Path, help="catalog.json that the job read")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    published = read_map(arguments.output)
    figures = score(published, observations(published, arguments.catalog), DATES[arguments.place])
    floors = FLOORS[arguments.place]
    missed = [f"{name}: IoU {figures['iou'][name]:.3f} is below {floor}" for name, floor in floors.items() if not figures["iou"][name] >= floor]
    if not figures["mapped_share"] >= MAPPED:
        missed.append(f"only {figures['mapped_share']:.2%} of the pixels that a scene shows clear are mapped")
    figures = {"place": arguments.place, **figures, "failures": missed}
    print(json.dumps(figures, indent=1, sort_keys=True) if arguments.json else report(figures))
    return 1 if missed else 0


def observations(published: PublishedMap, catalog: Path) -> list[np.ndarray]:
    """Return one scene classification a date on the map's grid; where tiles overlap, the first of them that is clear."""
    days: dict[str, np.ndarray] = {}
    for path in sorted(catalog.parent.rglob("*.json")):
        item = json.loads(path.read_text(encoding="utf-8"))
        if item.get("type") != "Feature":
            continue
        codes = published.on_this_grid(path.parent / item["assets"]["scl"]["href"])
        day = days.setdefault(item["properties"]["datetime"][:10], np.zeros_like(codes))
        better = ~np.isin(day, CLEAR) & (codes > 0)
        day[better] = codes[better]
    return list(days.values())


def score(published: PublishedMap, days: list[np.ndarray], least: int) -> dict[str, object]:
    """Return the map's figures against pixels on which at least `least` clear dates agree."""
    inside = published.quality != OUTSIDE
    clear = np.stack([np.isin(day, CLEAR) for day in days])
    ever = clear.any(axis=0) & inside
    highest = np.max([np.where(ok, day, 0) for ok, day in zip(clear, days, strict=True)], axis=0)
    lowest = np.min([np.where(ok, day, 255) for ok, day in zip(clear, days, strict=True)], axis=0)
    domain = inside & (clear.sum(axis=0) >= least) & (highest == lowest) & np.isin(highest, (VEGETATION, NOT_VEGETATED, WATER))
    predicted = {name: published.landcover == published.classes[name] for name in ("vegetation", "water")}
    reference = {"vegetation": highest == VEGETATION, "water": highest == WATER}
    return {
        "mapped_share": float((published.landcover[ever] > 0).mean()),
        "reference_pixels": {name: int((mask & domain).sum()) for name, mask in reference.items()} | {"all": int(domain.sum())},
        "iou": {name: intersection_over_union(predicted[name], reference[name], domain) for name in reference},
        "constant_map_iou": {name: float(mask[domain].mean()) for name, mask in reference.items()},
    }


def report(figures: dict[str, object]) -> str:
    """Return the figures as lines for a person."""
    lines = [f"{figures['place']}: {figures['mapped_share']:.2%} of the pixels that any scene shows clear are mapped"]
    for name, value in figures["iou"].items():
        pixels, constant = figures["reference_pixels"][name], figures["constant_map_iou"][name]
        lines.append(f"  {name:<11} IoU {value:.3f} against SCL ({pixels} pixels; a constant map has {constant:.3f})")
    return "\n".join([*lines, *(f"BELOW THE FLOOR: {sentence}" for sentence in figures["failures"])])


if __name__ == "__main__":
    sys.exit(main())
