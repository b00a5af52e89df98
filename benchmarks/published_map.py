"""Reading a published output the way a user's own script would: the newest version of every tile, put together on its grid."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT

OUTSIDE = 251
"""Code of the quality raster for pixels outside the region."""


@dataclass(frozen=True)
class PublishedMap:
    """The tiles of one period as arrays on one grid, each (height, width)."""

    crs: Any
    transform: Affine
    landcover: np.ndarray
    """uint8; 0 no data, class codes, 254 other."""
    quality: np.ndarray
    """uint8; 251 outside the region."""
    scene: np.ndarray
    """int32; 1-based place in `scenes` of the scene that each pixel comes from, 0 none."""
    scenes: tuple[str, ...]
    """Ids of the scenes."""
    classes: dict[str, int]
    """Code of each class by name."""

    def on_this_grid(self, path: Path, band: int = 1) -> np.ndarray:
        """Return a raster's band on this map's pixels, nearest neighbour; 0 beyond the raster's edge."""
        height, width = self.landcover.shape
        with (
            rasterio.open(path) as source,
            WarpedVRT(source, crs=self.crs, transform=self.transform, width=width, height=height, resampling=Resampling.nearest) as warped,
        ):
            return warped.read(band)


def read_map(output: Path, period: str | None = None) -> PublishedMap:
    """Return the newest version of each tile of the last period (or of `period`) under `output`."""
    items = _current_items(output)
    if not items:
        raise SystemExit(f"no published tile under {output}: run the job first")
    last = period or max(path.parts[-4] for path, _ in items)
    tiles = [(path, item) for path, item in items if path.parts[-4] == last]
    opened = [rasterio.open(path.parent / item["assets"]["landcover"]["href"]) for path, item in tiles]
    resolution = opened[0].transform.a
    left, top = min(f.bounds.left for f in opened), max(f.bounds.top for f in opened)
    width = round((max(f.bounds.right for f in opened) - left) / resolution)
    height = round((top - min(f.bounds.bottom for f in opened)) / resolution)
    planes = {"landcover": np.zeros((height, width), np.uint8), "quality": np.full((height, width), OUTSIDE, np.uint8)}
    scene = np.zeros((height, width), np.int32)
    names = sorted({row["id"] for _, item in tiles for row in item["properties"]["spexmap:scenes"]})
    for (path, item), file in zip(tiles, opened, strict=True):
        row, column = round((top - file.bounds.top) / resolution), round((file.bounds.left - left) / resolution)
        here = slice(row, row + file.height), slice(column, column + file.width)
        for asset, plane in planes.items():
            plane[here] = _read(path, item, asset)
        ranks = np.zeros(65536, np.int32)
        for entry in item["properties"]["spexmap:scenes"]:
            ranks[entry["rank"]] = names.index(entry["id"]) + 1
        scene[here] = ranks[_read(path, item, "source")]
    classes = _classes(tiles[0][1])
    return PublishedMap(opened[0].crs, Affine(resolution, 0, left, 0, -resolution, top), scene=scene, scenes=tuple(names), classes=classes, **planes)


def _current_items(output: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = [
        (path, json.loads(path.read_text(encoding="utf-8"))) for path in sorted(output.glob("*/*/*/v*/*.json")) if "explanation" not in path.name
    ]
    return [(path, item) for path, item in found if item.get("type") == "Feature" and not item["properties"].get("deprecated")]


def _read(path: Path, item: dict[str, Any], asset: str) -> np.ndarray:
    with rasterio.open(path.parent / item["assets"][asset]["href"]) as file:
        return file.read(1)


def _classes(item: dict[str, Any]) -> dict[str, int]:
    asset = item["assets"]["landcover"]
    legend = asset.get("classification:classes") or asset["bands"][0]["classification:classes"]
    return {entry["name"]: int(entry["value"]) for entry in legend}


def intersection_over_union(predicted: np.ndarray, true: np.ndarray, domain: np.ndarray) -> float:
    """Return the intersection over union of two boolean arrays on `domain`; not a number where neither occurs."""
    union = int(((predicted | true) & domain).sum())
    return int((predicted & true & domain).sum()) / union if union else float("nan")
