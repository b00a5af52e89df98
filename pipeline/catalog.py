"""The documents over the tiles: superseded items, VRTs, the model's item, the series' collection, the root catalog.

All of them follow from the items that are there, so writing them again is always right: after an interruption, after a run with nothing to
do. A document that would not change
is not written.
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import JobError
from pipeline.grid import PixelBox
from pipeline.published import PublishedTile, latest_versions, published_tiles
from pipeline.series import Series
from pipeline.storage import Storage
from pipeline.vrt import VrtTile, landcover_vrt, vrt_path
from stac import publish
from stac.canonical import canonical_json
from stac.records import ItemEntry, MapClass, SeriesRecord

log = logging.getLogger(__name__)

CATALOG, IDENTIFIER = "catalog.json", "spexmap"
DESCRIPTION = "Land-cover maps made by spexmap: a tile is one item with class, confidence, source scene and quality of every pixel."


def publish_series(storage: Storage, series: Series, record: SeriesRecord, model_item: Mapping[str, Any]) -> int:
    """Bring every document over the tiles of a series up to date; return how many were written."""
    tiles = published_tiles(storage, series.name)
    if not tiles:
        return 0
    latest = latest_versions(tiles)
    written = _supersede(storage, tiles, latest)
    of_series = [tile for tile in latest if _is_of(tile, series)]
    written += _write_vrts(storage, series, record.classes, of_series)
    written += _write(storage, publish.model_path(series.name, record.model.id), canonical_json(model_item))
    entries = [ItemEntry.of(tile.key.path, tile.item) for tile in of_series]
    written += _write(storage, publish.collection_path(series.name), canonical_json(publish.collection(record, entries)))
    return written + _write_catalog(storage)


def check_catalog_is_ours(storage: Storage) -> None:
    """Raise JobError where the output's folder has a catalog.json that is no root catalog of maps: scenes may lie there, and it would be replaced."""
    content = storage.read_if_there(CATALOG)
    if not content:
        return  # an empty file is what a machine leaves that lost its power: it is written anew, as it follows from the items
    try:
        found = json.loads(content)
        ours = (found["type"], found["id"]) == ("Catalog", IDENTIFIER)
    except (ValueError, KeyError, TypeError, RecursionError):
        ours = False
    if not ours:
        raise JobError(f"output: {storage.shown} has a {CATALOG} that spexmap did not write; give a folder of its own, or take that file away")


def _supersede(storage: Storage, tiles: Iterable[PublishedTile], latest: Iterable[PublishedTile]) -> int:
    """Mark every version that has a successor; a crash between a new item and this leaves it to the next run."""
    newest = {(tile.key.period, tile.key.tile): tile for tile in latest}
    versions = {(tile.key.period, tile.key.tile, tile.key.version): tile for tile in tiles}
    written = 0
    for (period, name, version), tile in sorted(versions.items()):
        successor = next(
            (
                versions[period, name, later]
                for later in range(version + 1, newest[period, name].key.version + 1)
                if (period, name, later) in versions
            ),
            None,
        )
        if successor is not None:
            document = publish.supersede(tile.item, successor.item, newest[period, name].item)
            written += _write(storage, tile.key.path, canonical_json(document))
    return written


def _is_of(tile: PublishedTile, series: Series) -> bool:
    """Whether a tile lies on the series' grid: a new series under the same name may have another one."""
    properties = tile.item["properties"]
    box = _box(tile, series)
    grid = series.grid
    cell = next(iter(box.lattice(grid.tile)))
    return grid.tile_id(cell) == tile.key.tile and properties["proj:shape"] == list(box.shape)


def _box(tile: PublishedTile, series: Series) -> PixelBox:
    """Return the tile's pixels on the series' grid."""
    a, _, x, _, _, y = tile.item["properties"]["proj:transform"]
    height, width = tile.item["properties"]["proj:shape"]
    left, top = round((x - series.grid.origin[0]) / a), round((series.grid.origin[1] - y) / a)
    return PixelBox(top, left, top + height, left + width)


def _write_vrts(storage: Storage, series: Series, classes: tuple[MapClass, ...], tiles: Iterable[PublishedTile]) -> int:
    periods: dict[str, list[VrtTile]] = defaultdict(list)
    for tile in tiles:
        periods[tile.key.period_folder].append(VrtTile(f"{tile.key.folder}/{tile.key.file_name('landcover')}", _box(tile, series)))
    return sum(_write(storage, vrt_path(folder), landcover_vrt(listed, series.grid, classes, folder)) for folder, listed in sorted(periods.items()))


def _write_catalog(storage: Storage) -> int:
    """Write the root catalog over every collection of the output."""
    paths = [path for path in storage.find() if path.count("/") == 1 and path.endswith("/collection.json")]
    titles = {path.split("/")[0]: title for path in paths if (title := _title(storage, path)) is not None}
    return _write(storage, CATALOG, canonical_json(publish.catalog(IDENTIFIER, "Land-cover maps", DESCRIPTION, titles)))


def _title(storage: Storage, path: str) -> str | None:
    """Return the title of a collection; with a warning None where it is damaged, which a run of its own series mends."""
    try:
        return str(json.loads(storage.read_bytes(path)).get("title", ""))
    except (ValueError, AttributeError) as error:
        log.warning("%s is damaged (%s) and is left out of the catalog until its series is run again", storage.url(path), error)
        return None


def _write(storage: Storage, path: str, content: bytes) -> int:
    """Write `content` unless it is there already; return how many files were written."""
    if storage.read_if_there(path) == content:
        return 0
    storage.write_bytes(path, content)
    return 1
