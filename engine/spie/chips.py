"""Where chips are cut, which of them lie on the same ground, and which part of the data set a place belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from shapely import STRtree
from shapely.geometry import Polygon
from shapely.geometry import box as rectangle

from engine.spie.errors import InvalidBuild
from engine.spie.imagery import Box, Image

SLIVER = 0.02
"""Chips that share less than this part of the smaller one do not count as overlapping: grids of two dates differ by a pixel."""

TRAIN, VAL = "train", "val"


@dataclass(frozen=True)
class Cutting:
    """How imagery is cut into chips."""

    chip: int = 512
    """Side of a chip in pixels."""
    stride: int = 384
    """Step between chips of a block in pixels."""
    block: int = 2
    """Chips along a side of a block. Chips of one block overlap and share a place; blocks do not overlap, so that one scene has many places."""

    def __post_init__(self) -> None:
        """Refuse sides and steps that leave gaps or nothing."""
        if self.chip < 8 or self.block < 1 or not 1 <= self.stride <= self.chip:
            raise InvalidBuild(f"chip {self.chip}, stride {self.stride}, block {self.block}: chip at least 8, stride 1 to chip, block at least 1")

    def starts(self, size: int) -> list[int]:
        """Return the first pixels of the chips along a side of `size` pixels; all pixels are covered, those beyond the side are padding.

        The last chip of a block ends where the block ends: it is moved there if its neighbour reaches it, else there is one more chip.
        """
        side = self.chip + (self.block - 1) * self.stride
        firsts = list(range(0, max(size - self.chip, 0) + 1, side))
        ends = [*firsts[1:], size]
        return [start for first, end in zip(firsts, ends, strict=True) for start in self._within(first, end)]

    def _within(self, first: int, end: int) -> list[int]:
        starts = list(range(first, max(end - self.chip, first) + 1, self.stride))
        left = end - (starts[-1] + self.chip)
        if left > 0 and (len(starts) == 1 or left > self.chip - self.stride):
            starts.append(end - self.chip)
        elif left > 0:
            starts[-1] += left
        return starts

    def boxes(self, shape: tuple[int, int]) -> list[Box]:
        """Return the chips of an image, row by row."""
        return [Box(top, left, self.chip, self.chip) for top in self.starts(shape[0]) for left in self.starts(shape[1])]


@dataclass(frozen=True)
class Chip:
    """One chip of one image."""

    image: Image
    box: Box

    @property
    def name(self) -> str:
        """Unique within a data set."""
        return f"{self.image.name}_{self.box.top:05d}_{self.box.left:05d}"


def footprint(chip: Chip) -> Polygon:
    """Return where a chip lies: longitude and latitude, or pixels of its image where that has no georeference."""
    top, left, height, width = chip.box
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    if chip.image.crs is None:
        return rectangle(left, top, left + width, top + height)
    to_degrees = _to_degrees(chip.image.crs)
    return Polygon([to_degrees.transform(*(chip.image.transform @ corner)) for corner in corners])


@lru_cache(maxsize=64)
def _to_degrees(crs: CRS) -> Transformer:
    return Transformer.from_crs(crs, CRS("EPSG:4326"), always_xy=True)


def place_numbers(chips: Sequence[Chip]) -> list[int]:
    """Return a place for each chip, numbered from 0 in order; chips that overlap on the ground, directly or through others, share one.

    Chips without a georeference overlap within their image only; images that name the same place share it.
    """
    parents = list(range(len(chips)))
    planes: dict[str, list[int]] = {}
    named: dict[str, list[int]] = {}
    for i, chip in enumerate(chips):
        planes.setdefault(chip.image.name if chip.image.crs is None else "", []).append(i)
        if chip.image.place:
            named.setdefault(chip.image.place, []).append(i)
    for members in planes.values():
        for a, b in _overlapping([footprint(chips[i]) for i in members]):
            _join(parents, members[a], members[b])
    for members in named.values():
        for other in members[1:]:
            _join(parents, members[0], other)
    roots = [_root(parents, i) for i in range(len(chips))]
    order = {root: number for number, root in enumerate(dict.fromkeys(roots))}
    return [order[root] for root in roots]


def _overlapping(shapes: Sequence[Polygon]) -> list[tuple[int, int]]:
    pairs: NDArray[np.int64] = STRtree(shapes).query(shapes, predicate="intersects")
    return [(a, b) for a, b in pairs.T.tolist() if a < b and _shares_ground(shapes[a], shapes[b])]


def _shares_ground(a: Polygon, b: Polygon) -> bool:
    return bool(a.intersection(b).area > SLIVER * min(a.area, b.area))


def _root(parents: list[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


def _join(parents: list[int], a: int, b: int) -> None:
    first, second = sorted((_root(parents, a), _root(parents, b)))
    parents[second] = first


def splits(chips: Sequence[Chip], places: Sequence[int], val_share: float, seed: int) -> list[str]:
    """Return `train` or `val` for each chip, whole places at a time, in an order that depends on `seed` and on names only.

    Places go to `val` until it has `val_share` of the chips; a place that would bring it above twice that share stays in `train`. Where all are
    too large for that, the smallest of two or more places is `val`.
    """
    members: dict[int, list[int]] = {}
    for i, place in enumerate(places):
        members.setdefault(place, []).append(i)
    order = sorted(members, key=lambda place: hashlib.sha256(f"{seed}:{chips[members[place][0]].name}".encode()).hexdigest())
    wanted, val = val_share * len(chips), set[int]()
    count = 0
    for place in order:
        size = len(members[place])
        if count < wanted and count + size <= 2 * wanted and len(val) + 1 < len(order):
            val.add(place)
            count += size
    if not val and wanted > 0 and len(order) > 1:
        val.add(min(order, key=lambda place: len(members[place])))
    return [VAL if place in val else TRAIN for place in places]
