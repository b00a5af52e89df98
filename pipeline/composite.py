"""How the observations of a pixel become one: the rules of harmonising, of growing clouds, and of choosing among scenes."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import floor, sqrt

import numpy as np
from numpy.typing import NDArray

from stac.scenes import CLEAR, CLOUD, BandSource

NEAR_CLOUD = 4
"""Observation code beside those of `stac.scenes`: clear by the mask, but within the dilation of a cloud. Used where no scene is clear."""


def harmonise(numbers: NDArray[np.float32], source: BandSource) -> NDArray[np.uint16]:
    """Return round((reflectance + 0.1) * 10000) clipped to 1..65535, uint16, same shape; 0 (no data) where `numbers` is not finite."""
    valid = np.isfinite(numbers)
    reflectance = np.where(valid, numbers, 0).astype(np.float64) * source.scale + source.offset
    rounded = np.clip(np.rint((reflectance + 0.1) * 10000), 1, 65535)
    return np.where(valid, rounded, 0).astype(np.uint16)


def grow_clouds(codes: NDArray[np.uint8], radius: tuple[float, float]) -> NDArray[np.uint8]:
    """Return `codes` with NEAR_CLOUD in place of CLEAR wherever a cloud lies within the ellipse of `radius` (rows, columns), both in pixels."""
    cloud = codes == CLOUD
    if min(radius) <= 0 or not cloud.any():
        return codes
    grown = codes.copy()
    grown[_dilate(cloud, *radius) & (codes == CLEAR)] = NEAR_CLOUD
    return grown


def _dilate(cloud: NDArray[np.bool_], rows: float, columns: float) -> NDArray[np.bool_]:
    """Dilate by an ellipse, one chord after another: for each row of it, whether any pixel within the chord is set."""
    near = cloud.copy()
    width, widest = cloud.shape[1], floor(columns + 1e-9)
    counted = np.pad(np.cumsum(cloud, axis=1, dtype=np.int32), ((0, 0), (widest + 1, 0)))
    counted = np.pad(counted, ((0, 0), (0, widest)), mode="edge")
    for step in range(min(floor(rows + 1e-9) + 1, len(cloud))):
        half = floor(columns * sqrt(max(0.0, 1 - (step / rows) ** 2)) + 1e-9)
        first, behind = widest - half, widest + half + 1
        chord = counted[:, behind : behind + width] != counted[:, first : first + width]
        near[step:] |= chord[: len(chord) - step]
        near[: len(chord) - step] |= chord[step:]
    return near


@dataclass
class FirstClear:
    """The first clear pixel in the scenes' order, with every band valid, wins: least-cloudy and latest, which differ in that order only."""

    numbers: NDArray[np.uint16]
    """(C, H, W), filled in place, 0 where no scene was clear yet."""
    source: NDArray[np.uint16] = field(init=False)
    """(H, W): rank of the scene that each pixel came from, 0 none."""

    def __post_init__(self) -> None:
        """Start with no scene."""
        self.source = np.zeros(self.numbers.shape[1:], np.uint16)

    def wanted(self, clear: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the pixels that are clear and not filled yet, bool (H, W)."""
        free: NDArray[np.bool_] = self.source == 0
        return clear & free

    def feed(self, rank: int, numbers: NDArray[np.uint16], wanted: NDArray[np.bool_], part: tuple[slice, slice]) -> None:
        """Take scene `rank`'s numbers (C, h, w), which cover `part` of the block, where they are wanted (h, w) and every band is valid."""
        usable = wanted & numbers.all(axis=0)
        np.copyto(self.numbers[:, *part], numbers, where=usable)
        self.source[part][usable] = rank

    @property
    def is_done(self) -> bool:
        """Whether no pixel is left to fill."""
        return bool(self.source.all())


@dataclass
class Median:
    """The median of each band over a pixel's clear observations with every band valid; of an even number, the mean of the middle two, half up."""

    observations: list[NDArray[np.uint16]] = field(default_factory=list)

    def feed(self, numbers: NDArray[np.uint16], clear: NDArray[np.bool_]) -> None:
        """Take one scene's numbers (C, h, w) where they are clear (h, w)."""
        self.observations.append(np.where(clear & numbers.all(axis=0), numbers, 0).astype(np.uint16))

    @property
    def data(self) -> NDArray[np.uint16]:
        """The composite (C, h, w), 0 where nothing was clear; at least one scene must have been fed."""
        ranked = np.sort(np.stack(self.observations), axis=0)
        count = (ranked != 0).sum(axis=0)
        first = len(ranked) - count
        middle = [np.minimum(first + step, len(ranked) - 1)[None] for step in ((count - 1).clip(0) // 2, count // 2)]
        low, high = (np.take_along_axis(ranked, at, axis=0)[0].astype(np.uint32) for at in middle)
        return np.where(count > 0, (low + high + 1) // 2, 0).astype(np.uint16)
