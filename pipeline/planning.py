"""From a job, its region, the scenes found and the facts of a model to the frozen plan of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import shapely
from shapely.affinity import scale
from shapely.geometry.base import BaseGeometry

from pipeline.canonical import digest
from pipeline.errors import JobError
from pipeline.grid import Grid, PixelBox
from pipeline.job import JobSpec
from pipeline.period import Period
from pipeline.plan import WHOLE, Estimate, Plan, TilePlan
from pipeline.region import Region, polygons
from pipeline.series import ModelFacts, Series, map_classes
from pipeline.snap import AssetGridOf, check_holds_pixels, check_resolution, first_phase, metres_per_pixel, open_asset_grid, resolve_crs, tile_cells
from stac.scenes import Scene

BLOCK = 2560
"""Side of a block in pixels unless the run says otherwise."""

MOST_SCENES = 65535
"""The source raster counts scenes in uint16."""

BYTES_PER_NUMBER = 1.3
"""What a two-byte number takes in a deflated COG, about."""

READ_CORE_SECONDS = 1.5e-8
"""Core seconds to unpack and harmonise one number, about."""

_NEAR_INFRARED = {"nir": "nir08", "nir08": "nir"}
_UNKNOWN_CLOUD = 0.5
_FILLED = 0.005


def request_key(job: JobSpec, region: Region, model: ModelFacts) -> str:
    """Return the sha256 of what a job asks for, known before any search: a run of this key that did not end is gone on with.

    The period counts as it is written, so that ``P30D`` goes on with yesterday's run if that was interrupted. Output and secrets do not count; region
    and model count by content.
    """
    left_out: dict[str, Any] = {"source": {"headers"}, "output": True, "region": True, "model": True, "runtime": True, "fail_on_empty": True}
    asked = job.model_dump(mode="json", exclude=left_out)
    classes = [asdict(item) for item in map_classes(job.class_codes, model.classes)]
    return digest({"job": asked, "region": region.digest, "model": model.fingerprint, "classes": classes})


def make_plan(
    job: JobSpec,
    region: Region,
    period: Period,
    scenes: Sequence[Scene],
    model: ModelFacts,
    *,
    frozen: Series | None = None,
    asset_grid_of: AssetGridOf = open_asset_grid,
    refused: Iterable[tuple[str, str]] = (),
    block: int = BLOCK,
) -> Plan:
    """Return the plan of a run.

    Parameters
    ----------
    job
        What is asked for.
    region, period
        Its region and period, resolved.
    scenes
        What the search found, in any order.
    model
        Facts of the model, with the job's classes resolved.
    frozen
        The series as the output already holds it; where the job says `auto`, its grid is kept.
    asset_grid_of
        Gives the pixel grid of a band's file; the default opens it.
    refused
        Scenes that the search could not use, with the reason, for the record.
    block
        Side of a block in pixels.

    Raises
    ------
    JobError
        No scene has the bands that the model requires, two scenes have one id, or there are more of them than the source raster can count.
    GridError
        Region and grid do not fit each other.
    """
    _check_ids(scenes)
    kept, bands, lacking = choose_bands(scenes, model)
    ordered = order_scenes(kept, job.composite)
    grid = resolve_grid(job, region, kept, bands, None if frozen is None else frozen.grid, asset_grid_of)
    check_holds_pixels(grid, region)
    series = Series(job.name, grid, map_classes(job.class_codes, model.classes), model.fingerprint, job.composite, job.mask.dilate)
    high, wide = metres_per_pixel(grid, region)
    plan = Plan(
        series=series,
        period=period,
        region=region,
        bands=bands,
        scenes=ordered,
        tiles=(),
        created=newest(ordered, period),
        dilate=(round(series.dilate / high, 2), round(series.dilate / wide, 2)),
        explain=job.explain,
        window=model.window,
        stride=model.stride,
        key=request_key(job, region, model),
        refused=tuple(sorted([*refused, *lacking])),
        block=block,
    )
    plan = replace(plan, tiles=plan_tiles(plan))
    return replace(plan, estimate=estimate(plan, model))


def _check_ids(scenes: Sequence[Scene]) -> None:
    seen: set[str] = set()
    for scene in scenes:
        if scene.id in seen:
            raise JobError(f"source: two scenes are called {scene.id}; name one source.collection, ids are unique only within one")
        seen.add(scene.id)
    if len(scenes) > MOST_SCENES:
        raise JobError(f"{len(scenes)} scenes are more than {MOST_SCENES}; shorten the period, lower source.max_cloud_cover or cut the region")


def choose_bands(scenes: Sequence[Scene], model: ModelFacts) -> tuple[tuple[Scene, ...], tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Return the scenes that have every required band, cut down to the bands used; those bands; and (id, reason) of the others.

    Used are the model's bands that every kept scene has. ``nir08`` and ``nir`` answer for each other where the model would see no near infrared
    otherwise.

    Raises
    ------
    JobError
        There are scenes and none has the required bands.
    """
    lacking = {scene.id: [band for band in model.required_bands if _answer(scene, band) is None] for scene in scenes}
    kept = [scene for scene in scenes if not lacking[scene.id]]
    if scenes and not kept:
        sensors = ", ".join(sorted({scene.sensor for scene in scenes}))
        missing = ", ".join(sorted({band for bands in lacking.values() for band in bands}))
        raise JobError(f"source: sensor {sensors} lacks band {missing}, which the model requires; choose another collection or another model")
    bands = _common_bands(kept, model)
    cut = tuple(replace(scene, bands={band: scene.bands[_answer(scene, band) or band] for band in bands}) for scene in kept)
    refused = tuple((name, f"lacks band {', '.join(missing)}") for name, missing in sorted(lacking.items()) if missing)
    return cut, bands, refused


def _common_bands(scenes: Sequence[Scene], model: ModelFacts) -> tuple[str, ...]:
    """Return the bands of `model` that all `scenes` have, in the model's order."""
    common = {band for band in model.bands if all(band in scene.bands for scene in scenes)}
    infrared = [band for band in model.bands if band in _NEAR_INFRARED]
    if infrared and not common.intersection(infrared) and all(_answer(scene, infrared[0]) for scene in scenes):
        common.add(infrared[0])
    return tuple(band for band in model.bands if band in common)


def _answer(scene: Scene, band: str) -> str | None:
    """Return by which of its own bands a scene answers for `band`."""
    if band in scene.bands:
        return band
    other = _NEAR_INFRARED.get(band)
    return other if other in scene.bands else None


def order_scenes(scenes: Iterable[Scene], composite: str) -> tuple[Scene, ...]:
    """Return the scenes in the run's global total order, the same whatever order they come in.

    least-cloudy: cloud cover ascending (unknown last), newest first, id; latest: newest first, id; median: id.
    """

    def newest_first(scene: Scene) -> tuple[float, str]:
        return -scene.datetime.timestamp(), scene.id

    def least_cloudy(scene: Scene) -> tuple[float, float, str]:
        return math.inf if scene.cloud_cover is None else scene.cloud_cover, *newest_first(scene)

    if composite == "least-cloudy":
        return tuple(sorted(scenes, key=least_cloudy))
    if composite == "latest":
        return tuple(sorted(scenes, key=newest_first))
    return tuple(sorted(scenes, key=lambda scene: scene.id))


def newest(scenes: Sequence[Scene], period: Period) -> datetime:
    """Return when the newest input was made: the latest acquisition or catalog update, the period's first instant where there is no scene."""
    times: list[datetime | None] = [time for scene in scenes for time in (scene.datetime, scene.updated)]
    return max((time for time in times if time is not None), default=period.first_instant).astimezone(UTC)


def resolve_grid(
    job: JobSpec,
    region: Region,
    scenes: Sequence[Scene],
    bands: Sequence[str],
    frozen: Grid | None = None,
    asset_grid_of: AssetGridOf = open_asset_grid,
) -> Grid:
    """Return the grid of the series; where the job says `auto` and the series exists (`frozen`), what it has.

    An `auto` origin is the pixel phase of the first scene by id whose file can be opened (its blue band, or the first one), so that scenes on that
    grid are read without resampling; the lattice of tiles is then anchored within a pixel of the CRS's (0, 0).

    Raises
    ------
    GridError
        See `pipeline.snap.resolve_crs` and `check_resolution`; or no scene's file can be opened.
    """
    wanted = job.grid
    crs = resolve_crs(wanted.crs, region, None if frozen is None else frozen.crs)
    check_resolution(crs, wanted.resolution)
    if wanted.origin != "auto":
        origin = wanted.origin[0], wanted.origin[1]
    elif frozen is not None:
        origin = frozen.origin
    elif scenes:
        sources = (scene.bands["blue" if "blue" in scene.bands else bands[0]] for scene in sorted(scenes, key=lambda scene: scene.id))
        origin = first_phase(sources, crs, wanted.resolution, asset_grid_of)
    else:
        origin = 0.0, 0.0
    return Grid(crs, wanted.resolution, origin, wanted.tile)


def plan_tiles(plan: Plan) -> tuple[TilePlan, ...]:
    """Return the tiles of a plan in order of their ids, each with its scenes and fingerprint."""
    grid = plan.grid
    cells = list(tile_cells(grid, plan.region))
    reach = (_halo(plan, plan.dilate[0]), _halo(plan, plan.dilate[1]))
    read = [plan.outline(box.expand(*reach)) for _, box, _ in cells]
    touching = scenes_touching(plan.scenes, read)
    tiles = [_tile(plan, cell, box, part, ranks) for (cell, box, part), ranks in zip(cells, touching, strict=True)]
    return tuple(sorted(tiles, key=lambda tile: tile.id))


def _halo(plan: Plan, dilate: float) -> int:
    """Return how many pixels beyond a tile are read: windows reach out by less than their side, the grown mask by `dilate` more."""
    return plan.window + math.ceil(dilate) + 1


def scenes_touching(scenes: Sequence[Scene], outlines: Sequence[BaseGeometry]) -> list[list[int]]:
    """Return for each outline (polygons in degrees) the indices, ascending, of the scenes that may hold pixels of it.

    Footprints are published with few vertices, and a straight line in degrees is not the edge of an image: each counts as 3 % larger. One too many
    costs a look into an empty window.
    """
    tree = shapely.STRtree([_grown(scene.footprint) for scene in scenes])
    everything = list(range(len(scenes)))
    # Where the halo of a tile leaves the CRS its outline has no degrees; then all scenes count.
    known = [np.isfinite(outline.bounds).all() for outline in outlines]
    return [
        sorted(int(index) for index in tree.query(outline, predicate="intersects")) if finite else everything
        for outline, finite in zip(outlines, known, strict=True)
    ]


def _grown(footprint: BaseGeometry) -> BaseGeometry:
    return shapely.union_all([shape for part in polygons(footprint) for shape in (part, scale(part, 1.03, 1.03, origin="center"))])


def _tile(plan: Plan, cell: PixelBox, box: PixelBox, part: BaseGeometry, ranks: Sequence[int]) -> TilePlan:
    scenes = [plan.scenes[rank] for rank in ranks]
    whole = part.equals(plan.grid.geobox(box).extent.geom)
    tile = TilePlan(plan.grid.tile_id(cell), box, tuple(scene.id for scene in scenes), "", WHOLE if whole else _part_digest(plan.grid, part))
    return replace(tile, fingerprint=plan.fingerprint_of(tile, scenes))


def _part_digest(grid: Grid, part: BaseGeometry) -> str:
    """Return a hash of polygons on the grid, vertices rounded to a thousandth of a pixel."""
    corner, pixel = np.array(grid.origin), grid.resolution
    pixels = shapely.transform(part, lambda points: np.round((points - corner) / pixel, 3) + 0.0)
    return digest(shapely.to_wkb(pixels.normalize(), hex=True, byte_order=1))


def estimate(plan: Plan, model: ModelFacts) -> Estimate:
    """Return what the run is expected to take; right within a factor of two where scenes are clouded as published.

    Windows: each block computes those that touch it, ``B / stride + ceil(window / stride) - 1`` an axis. Numbers to read: pixels of the tile under
    each footprint times bands (and mask), scene after scene while more than 0.5 % of the tile is expected to be left unfilled (for the median: all
    scenes). Bytes: 1.3 a number. Core hours: the model's core seconds a window and 15 ns a number; GPU hours: the model's GPU seconds a window.
    """
    windows = sum(_windows(block, plan) for tile in plan.tiles for block in plan.blocks_of(tile))
    numbers = sum(_numbers(plan, tile) for tile in plan.tiles)
    seconds = windows * model.core_seconds + numbers * READ_CORE_SECONDS
    return Estimate(
        scenes=len(plan.scenes),
        tiles=len(plan.tiles),
        windows=windows,
        bytes=round(numbers * BYTES_PER_NUMBER),
        core_hours=round(seconds / 3600, 4),
        gpu_hours=round(windows * model.gpu_seconds / 3600, 4),
    )


def _windows(block: PixelBox, plan: Plan) -> int:
    rows = _windows_of_span(block.top, block.bottom, plan.window, plan.stride)
    return rows * _windows_of_span(block.left, block.right, plan.window, plan.stride)


def _windows_of_span(start: int, stop: int, window: int, stride: int) -> int:
    """Return how many windows, on the lattice of `stride` anchored at 0, touch pixels [start, stop)."""
    return (stop - 1) // stride - (start - window) // stride


def _numbers(plan: Plan, tile: TilePlan) -> float:
    """Return how many numbers of bands and masks are expected to be read for a tile."""
    outline = plan.outline(tile.box)
    pixels, left, numbers = math.prod(tile.box.shape), 1.0, 0.0
    for scene in plan.scenes_of(tile):
        share = shapely.intersection(outline, scene.footprint).area / outline.area
        numbers += pixels * share * (len(scene.bands) + (scene.mask is not None))
        cloud = _UNKNOWN_CLOUD if scene.cloud_cover is None else scene.cloud_cover / 100
        left *= 1 - share * (1 - cloud)
        if left < _FILLED and plan.series.composite != "median":
            break
    return numbers
