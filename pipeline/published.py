"""What an output already holds of a series: its committed tiles, by period and version.

A tile counts as published when its STAC item is there, for the item is written last. Folders of versions without an item are left-overs of
an interruption.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

from pipeline.storage import Storage
from stac.records import ItemEntry, ItemKey

log = logging.getLogger(__name__)

_ITEM = re.compile(r"([^/]+)/(\d{4}-\d\d-\d\d)_(\d{4}-\d\d-\d\d)/([^/]+)/v(\d+)/[^/]+\.json")
_READERS = 16


@dataclass(frozen=True)
class PublishedTile:
    """One committed version of one tile."""

    key: ItemKey
    item: Mapping[str, Any]
    """The STAC item."""

    @property
    def fingerprint(self) -> str:
        """What the tile was made from, as the item keeps it."""
        return str(self.item["properties"].get("spexmap:fingerprint", ""))


def published_tiles(storage: Storage, folder: str) -> tuple[PublishedTile, ...]:
    """Return every committed version of every tile below `folder` (a series, or one period of it), ordered by path."""
    keys = [key for path in storage.find(folder) if (key := _key_of(path)) is not None]
    with ThreadPoolExecutor(_READERS) as pool:
        return tuple(tile for tile in pool.map(partial(_read, storage), keys) if tile is not None)


def latest_versions(tiles: Iterable[PublishedTile]) -> tuple[PublishedTile, ...]:
    """Return the newest version of each tile in each period, ordered by period and tile."""
    latest = {(tile.key.period, tile.key.tile): tile for tile in sorted(tiles, key=lambda tile: tile.key.version)}
    return tuple(latest[key] for key in sorted(latest))


def _key_of(path: str) -> ItemKey | None:
    match = _ITEM.fullmatch(path)
    if match is None:
        return None
    series, start, end, tile, version = match.groups()
    try:
        key = ItemKey(series, tile, date.fromisoformat(start), date.fromisoformat(end), int(version))
    except ValueError:  # 2021-99-99 is no day, and its folder none of ours
        return None
    return key if key.path == path else None


def _read(storage: Storage, key: ItemKey) -> PublishedTile | None:
    item = read_item(storage, key.path)
    return None if item is None else PublishedTile(key, item)


def read_item(storage: Storage, path: str) -> Mapping[str, Any] | None:
    """Return the item at `path`, None where there is none; with a warning also where it is damaged: that version is made again."""
    content = storage.read_if_there(path)
    if content is None:
        return None
    try:
        item = json.loads(content)
        ItemEntry.of(path, item)
        _, _, _, _, _, _ = item["properties"]["proj:transform"]
        _, _ = item["properties"]["proj:shape"]
        return item if item["properties"]["spexmap:fingerprint"] else None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning("%s is damaged (%s: %s): that version is made again", storage.url(path), type(error).__name__, error)
        return None
