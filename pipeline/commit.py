"""From a tile's staged blocks to its published version: rasters, preview, explanation, and last of all the STAC item, which is the commit record.

Run as a task on any node. Everything is made on local disk, uploaded under the new version's name and checked before the item is written; a
crash at any point leaves a folder without an item, which the next attempt writes again. Staged blocks are deleted after the item is there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import VersionTaken
from pipeline.explanations import TileStatistics, count_borders, explanation_json
from pipeline.failures import Failure, failure_of
from pipeline.faults import reason
from pipeline.grid import PixelBox
from pipeline.mosaic import Planes, TileRasters, make_rasters
from pipeline.period import Period
from pipeline.plan import TilePlan
from pipeline.published import read_item
from pipeline.series import Series
from pipeline.staging import delete_damaged, discard, read_staged
from pipeline.storage import Fence, Storage
from stac.canonical import canonical_json
from stac.geometry import footprint_of
from stac.publish import item
from stac.records import ItemKey, LeftOut, MapClass, ModelReference, PublishedFile, TileRecord
from stac.scenes import Scene

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CommitContext:
    """What is the same for every tile of a run."""

    output: str
    series: Series
    period: Period
    created: datetime
    model: ModelReference
    identity: Mapping[str, Any]
    software: Mapping[str, str]
    license: str
    attribution: tuple[str, ...]
    explain: bool
    fence: Fence | None = None
    """Asked before every write whether the run still holds its output."""

    def key(self, tile: str, version: int) -> ItemKey:
        """Return what names one version of `tile`."""
        return ItemKey(self.series.name, tile, self.period.start, self.period.end, version)


def legend(series: Series) -> tuple[MapClass, ...]:
    """Return the classes of a series as the catalog writes them."""
    return tuple(MapClass(entry.code, entry.name, entry.title, entry.color, entry.instruction) for entry in series.classes)


@dataclass(frozen=True)
class Commit:
    """A tile of which every block is staged."""

    context: CommitContext
    tile: TilePlan
    scenes: tuple[Scene, ...]
    """In rank order."""
    left_out: Mapping[str, str]
    """Scene id to the reason why the tile is made without it."""
    fingerprint: str
    boxes: tuple[PixelBox, ...]
    version: int


@dataclass(frozen=True)
class Committed:
    """A published version of a tile."""

    tile: str
    version: int
    areas: Mapping[str, float]
    """Hectares by class name."""


@dataclass(frozen=True)
class CommitFailed:
    """A commit that raised."""

    commit: Commit
    reason: str
    failure: Failure = Failure.ERROR


def commit(order: Commit) -> Committed | CommitFailed:
    """See `commit_tile`; an exception comes back as `CommitFailed`."""
    try:
        return commit_tile(order)
    except Exception as error:
        log.exception("tile %s", order.tile.id)
        return CommitFailed(order, reason(error), failure_of(error))


def commit_tile(commit: Commit) -> Committed:
    """Publish a tile and return what it holds.

    A version that was committed by an earlier attempt of the same task is left as it is.

    Raises
    ------
    ValueError, FileNotFoundError
        A staged block is damaged (all damaged ones are deleted, so that the next attempt makes them again) or missing.
    """
    context = commit.context
    storage = Storage(context.output, context.fence)
    key = context.key(commit.tile.id, commit.version)
    if (before := read_item(storage, key.path)) is not None:
        return _committed_before(storage, commit, key, before)
    with TemporaryDirectory(prefix="spexmap-") as folder:
        statistics = TileStatistics()
        rasters = make_rasters(
            _planes(storage, commit, statistics), commit.tile.box, context.series.grid, legend(context.series), Path(folder), key.id
        )
        with rasterio.open(rasters.files["landcover"]) as landcover:
            count_borders(statistics, partial(_codes, landcover, commit.tile.box), commit.tile.box)
        files = dict(rasters.published)
        explanation = explanation_json(key.id, statistics, legend(context.series)) if context.explain else None
        if explanation is not None:
            files["explanation"] = _published_bytes(key.file_name("explanation"), explanation)
        _upload(storage, key, rasters, explanation)
    areas = statistics.class_areas(legend(context.series))
    storage.write_bytes(key.path, canonical_json(item(_record(commit, key, files, areas))))
    discard(storage, commit.fingerprint)
    return Committed(commit.tile.id, commit.version, areas)


def _committed_before(storage: Storage, commit: Commit, key: ItemKey, document: Mapping[str, Any]) -> Committed:
    properties = document["properties"]
    if properties["spexmap:fingerprint"] != commit.fingerprint:
        raise VersionTaken(f"{storage.url(key.path)} was published by another run meanwhile; run the same command again")
    discard(storage, commit.fingerprint)
    return Committed(commit.tile.id, commit.version, properties["spexmap:class_areas_ha"])


def _planes(storage: Storage, commit: Commit, statistics: TileStatistics) -> Iterator[tuple[PixelBox, Planes]]:
    """Yield the staged blocks one at a time, adding up what was counted over them; where one is damaged all damaged ones are deleted."""
    try:
        for block in read_staged(storage, commit.fingerprint, commit.boxes):
            statistics.add(block.statistics)
            yield block.box, block.planes
    except ValueError:
        delete_damaged(storage, commit.fingerprint, commit.boxes)
        raise


def _codes(landcover: Any, tile: PixelBox, part: PixelBox) -> NDArray[np.uint8]:
    """Return the codes of a part of a tile from its open raster."""
    codes: NDArray[np.uint8] = landcover.read(1, window=Window(part.left - tile.left, part.top - tile.top, *reversed(part.shape)))
    return codes


def _upload(storage: Storage, key: ItemKey, rasters: TileRasters, explanation: bytes | None) -> None:
    def put(asset: str) -> None:
        storage.put_file(rasters.files[asset], f"{key.folder}/{key.file_name(asset)}")

    # Side by side: a store that lets one of them wait does not hold up the others.
    with ThreadPoolExecutor(len(rasters.files)) as pool:
        for _ in pool.map(put, rasters.files):
            pass
    if explanation is not None:
        storage.write_bytes(f"{key.folder}/{key.file_name('explanation')}", explanation)


def _published_bytes(name: str, content: bytes) -> PublishedFile:
    return PublishedFile(name, len(content), hashlib.sha256(content).hexdigest())


def _record(commit: Commit, key: ItemKey, files: Mapping[str, PublishedFile], areas: Mapping[str, float]) -> TileRecord:
    context = commit.context
    geobox = context.series.grid.geobox(commit.tile.box)
    return TileRecord(
        key=key,
        geobox=geobox,
        footprint=footprint_of(geobox),
        files=files,
        classes=legend(context.series),
        scenes=commit.scenes,
        left_out=tuple(LeftOut(name, reason) for name, reason in sorted(commit.left_out.items())),
        class_areas=areas,
        model=context.model,
        fingerprint=commit.fingerprint,
        identity=context.identity,
        created=context.created,
        license=context.license,
        software=context.software,
        composite=context.series.composite,
        attribution=context.attribution,
    )
