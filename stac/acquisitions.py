"""Which items show the same acquisition, so that a scene that was processed again is counted once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import pystac
from shapely.geometry.base import BaseGeometry

from stac.sensors.profile import Acquisition, Profile

SAME_MOMENT = timedelta(seconds=60)
"""Processings of one acquisition state times that differ by seconds; a satellite's next look at a tile is an orbit later."""
SAME_GROUND = 0.5
"""Intersection over union of footprints. A tile that a datastrip's border cuts is published as two items of one pass, seconds apart, which share
little: 0.15 in a real pair."""


@dataclass(frozen=True)
class Candidate:
    """An item that may become a scene, with what tells its acquisition and its processing."""

    item: pystac.Item
    profile: Profile
    acquisition: Acquisition
    footprint: BaseGeometry

    @property
    def rank(self) -> tuple[object, ...]:
        """Order of newness; id and content decide between equals, so that the catalog's order never does."""
        return self.acquisition.version, self.item.id, json.dumps(self.item.properties, sort_keys=True, default=str)


def by_acquisition(candidates: Iterable[Candidate]) -> list[list[Candidate]]:
    """Return the candidates in groups of one acquisition each, the newest processing first; independent of their order."""
    ordered = sorted(candidates, key=lambda c: (c.acquisition.place, c.acquisition.moment, c.item.id))
    groups = [group for run in _runs(ordered) for group in _connected(run)]
    return [sorted(group, key=lambda c: c.rank, reverse=True) if len(group) > 1 else group for group in groups]


def _runs(ordered: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return stretches of one place without a gap longer than `SAME_MOMENT`; they hold few members each."""
    runs: list[list[Candidate]] = []
    for candidate in ordered:
        last = runs[-1][-1].acquisition if runs else None
        if last and last.place == candidate.acquisition.place and candidate.acquisition.moment - last.moment <= SAME_MOMENT:
            runs[-1].append(candidate)
        else:
            runs.append([candidate])
    return runs


def _connected(run: Sequence[Candidate]) -> list[list[Candidate]]:
    """Return a stretch as groups within which each member shows the same ground as another one."""
    groups: list[list[Candidate]] = []
    for candidate in run:
        joined = [group for group in groups if any(_same(member, candidate) for member in group)]
        apart = [group for group in groups if not any(group is other for other in joined)]
        groups = [*apart, [*(member for group in joined for member in group), candidate]]
    return groups


def _same(one: Candidate, other: Candidate) -> bool:
    if abs(one.acquisition.moment - other.acquisition.moment) > SAME_MOMENT:
        return False
    shared = one.footprint.intersection(other.footprint).area
    return bool(shared >= SAME_GROUND * (one.footprint.area + other.footprint.area - shared))
