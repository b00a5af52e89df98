"""Search: from a catalog, a region and a period to the scenes that a map can use, and the reasons why others cannot."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import shapely

from spexmap import SpexmapError
from stac.acquisitions import Candidate, by_acquisition
from stac.catalogs import Found, find_items
from stac.documents import failure, shown
from stac.errors import SceneRefused
from stac.footprints import footprint
from stac.items import acquired, item_id, read_item
from stac.probe import Probe, sample_numbers
from stac.query import Query
from stac.scenes import Scene
from stac.sensors import profile_of
from stac.sensors.profile import cloud_cover

__all__ = ["Query", "Refusal", "SearchResult", "find_scenes"]

PROBES = 8
"""Scenes whose pixels are looked at at a time."""
_ODD = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""What reading an odd item raises, refusals among it: one such item must not cost the others."""


@dataclass(frozen=True)
class Refusal:
    """An item in region and period that cannot be a scene."""

    id: str
    reason: str


@dataclass(frozen=True)
class SearchResult:
    """What a search found; the same for the same catalog content, whatever its order."""

    scenes: tuple[Scene, ...]
    """Sorted by id."""
    refused: tuple[Refusal, ...]
    """Sorted by id."""
    superseded: tuple[str, ...]
    """Ids of items that an item with newer processing of the same acquisition replaces."""


@dataclass(frozen=True)
class _Outcome:
    scene: Scene | None
    refused: tuple[Refusal, ...]
    superseded: tuple[str, ...]


def find_scenes(query: Query, probe: Probe | None = sample_numbers) -> SearchResult:
    """Return the scenes of a catalog that show the region in the period, each acquisition once, in its newest processing.

    Parameters
    ----------
    query
        Where to look and what for.
    probe
        Reads a few numbers of a band, where they decide what its numbers mean (Sentinel-2 from baseline 04.00 on). None looks at none.

    Raises
    ------
    CatalogError
        The catalog cannot be read.
    UnknownCollection
        It does not hold the collection.
    """
    candidates: list[Candidate] = []
    refused: list[Refusal] = []
    shapely.prepare(query.region)
    for found in find_items(query):
        try:
            candidates += _candidate(found, query)
        except _ODD as error:
            refused.append(Refusal(_shown_id(found), _reason(error)))
    with ThreadPoolExecutor(PROBES) as pool:
        outcomes = list(pool.map(lambda group: _newest(group, query.max_cloud_cover, probe), by_acquisition(candidates)))
    return _result(outcomes, refused)


def _candidate(found: Found, query: Query) -> Iterator[Candidate]:
    """Yield the item where it lies in period and region and is not excluded; raises `SceneRefused` where that cannot be told or used."""
    document = found.document
    if found.problem:
        raise SceneRefused(found.problem)
    if document.get("id") in query.exclude or not query.start <= acquired(document) <= query.end:
        return
    ground = footprint(document.get("geometry"))
    if not query.region.intersects(ground):
        return
    item_id(document)
    item = read_item(document, found.base, found.href)
    profile = profile_of(item)
    yield Candidate(item, profile, profile.acquisition(item), ground)


def _newest(group: Sequence[Candidate], max_cloud_cover: float | None, probe: Probe | None) -> _Outcome:
    """Return the scene of an acquisition: its newest processing, or the newest of those that can be used; none where that is too cloudy."""
    refused: list[Refusal] = []
    for rank, candidate in enumerate(group):
        cloudy = cloud_cover(candidate.item)
        if max_cloud_cover is not None and cloudy is not None and cloudy > max_cloud_cover:
            break
        try:
            scene = candidate.profile.to_scene(candidate.item, probe)
        except _ODD as error:
            refused.append(Refusal(candidate.item.id, _reason(error)))
            continue
        older = {other.item.id for other in group[rank + 1 :]} - {scene.id}
        return _Outcome(scene, tuple(refused), tuple(older))
    return _Outcome(None, tuple(refused), ())


def _result(outcomes: Iterable[_Outcome], refused: Iterable[Refusal]) -> SearchResult:
    outcomes = list(outcomes)
    scenes: dict[str, Scene] = {}
    everything = {*refused, *(refusal for outcome in outcomes for refusal in outcome.refused)}
    found = (outcome.scene for outcome in outcomes if outcome.scene)
    for scene in sorted(found, key=lambda s: (s.id, s.collection, s.datetime, s.href or "")):
        if scene.id in scenes:
            everything.add(Refusal(scene.id, f"another scene of this search has its id, in collection {scenes[scene.id].collection!r}"))
            continue
        scenes[scene.id] = scene
    superseded = {name for outcome in outcomes for name in outcome.superseded}
    return SearchResult(tuple(scenes.values()), tuple(sorted(everything, key=lambda r: (r.id, r.reason))), tuple(sorted(superseded)))


def _reason(error: Exception) -> str:
    """Return why an item is refused; raises `error` again where it is one of spexmap's own that ends the search."""
    if isinstance(error, SceneRefused):
        return str(error)
    if isinstance(error, SpexmapError):
        raise error
    return f"it is not understood ({type(error).__name__}: {failure(error)[:200]})"


def _shown_id(found: Found) -> str:
    """Return an item's id as it may be printed."""
    name = found.document.get("id")
    if isinstance(name, str) and name:
        return name[:200].encode("unicode_escape").decode()
    return shown(found.href) if found.problem and found.href else "(no id)"
