"""The page that a person reads after a run: what was mapped, from which scenes, how large, how well it hangs together, and what went wrong."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from pipeline.grid import PixelBox
from pipeline.plan import Plan
from pipeline.runs import RunRecord, TileRecord
from pipeline.seams import SeamScore, TransitionProfile
from pipeline.storage import Storage
from stac.legend import OTHER_COLOR
from stac.records import ItemKey

READERS = 16
MAP_SIDE = 1100
"""Longer side of the page's map in pixels."""
TILES_WITH_SEAMS = 12
"""Seams are scored on this many tiles at most, spread over the run: it reads whole rasters."""


@dataclass(frozen=True)
class TileLine:
    """One tile on the page."""

    id: str
    state: str
    version: int
    reason: str
    seconds: float
    areas: Mapping[str, float]
    """Hectares by class name."""
    href: str | None
    """Its item, seen from the report."""
    image: str | None
    """Its preview as a data URI."""
    place: Mapping[str, float]
    """left, top, width, height in percent of the page's map."""
    seam: SeamScore | None


@dataclass(frozen=True)
class SceneLine:
    """One scene on the page."""

    id: str
    acquired: str
    cloud_cover: float | None
    calibration: str
    tiles: int
    """Tiles that it was used in."""
    left_out: Mapping[str, str]
    """Tile to the reason why it was not used there."""


@dataclass(frozen=True)
class ClassLine:
    """One class on the page."""

    name: str
    title: str
    color: str
    hectares: float
    share: float
    """Percent of the mapped area."""


@dataclass(frozen=True)
class RunReport:
    """Everything that the page shows."""

    record: RunRecord
    duration: str
    tiles: tuple[TileLine, ...]
    classes: tuple[ClassLine, ...]
    """Legend with totals, other last."""
    no_data_ha: float
    scenes: tuple[SceneLine, ...]
    refused: tuple[tuple[str, str], ...]
    map_shape: tuple[int, int]
    """Height and width of the page's map in pixels."""
    tile_seconds: Mapping[str, float]
    """median, slowest and total, over the tiles that were made."""

    @property
    def seams(self) -> tuple[TileLine, ...]:
        """Tiles with a seam score."""
        return tuple(tile for tile in self.tiles if tile.seam is not None)


def write_report(storage: Storage, record: RunRecord, plan: Plan, tiles: Sequence[TileRecord]) -> str:
    """Write ``runs/<run-id>/report.html`` and return its path below the output."""
    path = f"runs/{record.run_id}/report.html"
    storage.write_bytes(path, render(collect(storage, record, plan, tiles)))
    return path


def render(report: RunReport) -> bytes:
    """Return the page: one HTML file that needs nothing else."""
    environment = Environment(loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("report.html").render(report=report).encode()


def collect(storage: Storage, record: RunRecord, plan: Plan, tiles: Sequence[TileRecord]) -> RunReport:
    """Return what the page shows about a run, read from its plan, its tiles and their items."""
    ordered = sorted(tiles, key=lambda tile: tile.tile)
    scored = _spread([tile.tile for tile in ordered if tile.version], TILES_WITH_SEAMS)
    frame = _Frame.of(plan)
    with ThreadPoolExecutor(READERS) as pool:
        items = dict(zip((tile.tile for tile in ordered), pool.map(partial(_item, storage, plan), ordered), strict=True))
        lines = tuple(pool.map(lambda tile: _tile_line(storage, plan, frame, tile, items[tile.tile], tile.tile in scored), ordered))
    classes, no_data = _totals(plan, lines)
    return RunReport(
        record=record,
        duration=_duration(record),
        tiles=lines,
        classes=classes,
        no_data_ha=no_data,
        scenes=_scene_lines(plan, items),
        refused=tuple(sorted(plan.refused)),
        map_shape=frame.pixels(frame.outer),
        tile_seconds=_seconds(lines),
    )


def _spread(names: Sequence[str], count: int) -> set[str]:
    """Pick at most `count` of `names`, evenly."""
    step = max(1, math.ceil(len(names) / count))
    return set(names[::step])


def _key(plan: Plan, tile: TileRecord) -> ItemKey:
    return ItemKey(plan.series.name, tile.tile, plan.period.start, plan.period.end, tile.version)


def _item(storage: Storage, plan: Plan, tile: TileRecord) -> dict[str, Any]:
    """Return the item of a tile, or nothing where it was not published."""
    if not tile.version:
        return {}
    document: dict[str, Any] = json.loads(storage.read_bytes(_key(plan, tile).path))
    return document


def _tile_line(storage: Storage, plan: Plan, frame: _Frame, tile: TileRecord, item: Mapping[str, Any], with_seams: bool) -> TileLine:
    key, box = _key(plan, tile), frame.boxes[tile.tile]
    areas = tile.areas or (item["properties"].get("spexmap:class_areas_ha", {}) if item else {})
    return TileLine(
        id=tile.tile,
        state=tile.state,
        version=tile.version,
        reason=tile.reason,
        seconds=tile.seconds,
        areas=areas,
        href=f"../../{key.path}" if item else None,
        image=_image(storage, frame.pixels(box), key) if item else None,
        place=frame.place(box),
        seam=_seam(storage, plan, key, box) if item and with_seams else None,
    )


def _image(storage: Storage, shape: tuple[int, int], key: ItemKey) -> str:
    """Return the tile's preview, at most `shape` (height, width) large, as a data URI."""
    preview = Image.open(io.BytesIO(storage.read_bytes(f"{key.folder}/{key.file_name('thumbnail')}")))
    buffer = io.BytesIO()
    preview.resize((min(shape[1], preview.width), min(shape[0], preview.height)), Image.Resampling.NEAREST).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


@dataclass(frozen=True)
class _Frame:
    """Where tiles lie on the page's map."""

    outer: PixelBox
    boxes: Mapping[str, PixelBox]

    @classmethod
    def of(cls, plan: Plan) -> _Frame:
        boxes = {tile.id: tile.box for tile in plan.tiles}
        tops, lefts, bottoms, rights = zip(*((box.top, box.left, box.bottom, box.right) for box in boxes.values()), strict=True)
        return cls(PixelBox(min(tops), min(lefts), max(bottoms), max(rights)), boxes)

    def pixels(self, box: PixelBox) -> tuple[int, int]:
        """Height and width of `box` on the page."""
        scale = MAP_SIDE / max(self.outer.shape)
        return max(1, math.ceil(box.shape[0] * scale)), max(1, math.ceil(box.shape[1] * scale))

    def place(self, box: PixelBox) -> dict[str, float]:
        """Left, top, width and height of `box` in percent of the map."""
        (height, width), (outer_height, outer_width) = box.shape, self.outer.shape
        return {
            "left": 100 * (box.left - self.outer.left) / outer_width,
            "top": 100 * (box.top - self.outer.top) / outer_height,
            "width": 100 * width / outer_width,
            "height": 100 * height / outer_height,
        }


def _seam(storage: Storage, plan: Plan, key: ItemKey, box: PixelBox) -> SeamScore | None:
    """Score the tile's window borders: the lines at multiples of the stride."""
    with storage.local_copy(f"{key.folder}/{key.file_name('landcover')}") as raster:
        profile = TransitionProfile.of_file(raster)
    return profile.score([_lattice_lines(box.top, box.bottom, plan.stride), _lattice_lines(box.left, box.right, plan.stride)])


def _lattice_lines(start: int, stop: int, stride: int) -> list[int]:
    first = -(-start // stride) * stride
    return [place - start for place in range(first, stop, stride)]


def _totals(plan: Plan, tiles: Iterable[TileLine]) -> tuple[tuple[ClassLine, ...], float]:
    sums: dict[str, float] = {}
    for tile in tiles:
        for name, area in tile.areas.items():
            sums[name] = sums.get(name, 0.0) + area
    no_data = sums.pop("no-data", 0.0)
    mapped = sum(sums.values())
    legend = [(entry.name, entry.title, entry.color) for entry in plan.series.classes] + [("other", "Other", OTHER_COLOR)]
    lines = (
        ClassLine(name, title, color, sums.get(name, 0.0), 100 * sums.get(name, 0.0) / mapped if mapped else 0.0) for name, title, color in legend
    )
    return tuple(lines), no_data


def _scene_lines(plan: Plan, items: Mapping[str, Mapping[str, Any]]) -> tuple[SceneLine, ...]:
    used: dict[str, int] = {}
    missing: dict[str, dict[str, str]] = {}
    for tile, item in items.items():
        properties = item.get("properties", {})
        for scene in properties.get("spexmap:scenes", ()):
            used[scene["id"]] = used.get(scene["id"], 0) + 1
        for scene in properties.get("spexmap:scenes_left_out", ()):
            missing.setdefault(scene["id"], {})[tile] = scene["reason"]
    return tuple(
        SceneLine(
            scene.id, f"{scene.datetime:%Y-%m-%d %H:%M}", scene.cloud_cover, scene.calibration, used.get(scene.id, 0), missing.get(scene.id, {})
        )
        for scene in plan.scenes
    )


def _duration(record: RunRecord) -> str:
    if not record.started or not record.ended:
        return ""
    seconds = round((datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started)).total_seconds())
    hours, rest = divmod(seconds, 3600)
    return f"{hours} h {rest // 60:02d} min" if hours else f"{rest // 60} min {rest % 60:02d} s"


def _seconds(tiles: Sequence[TileLine]) -> dict[str, float]:
    made = sorted(tile.seconds for tile in tiles if tile.state == "done")
    return {"median": made[len(made) // 2], "slowest": made[-1], "total": sum(made)} if made else {}
