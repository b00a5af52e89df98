"""What tells that a file is not what its item says: it lies elsewhere, apart from its siblings, or holds numbers of another kind.

A map made from such a file would be wrong and nobody would see it, so the scene is left out and says why. Only contradictions count: a file that
covers less than its siblings is believed, for scenes are cropped, and so is any number that the sensor could have measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.grid import PixelBox
from pipeline.warp import Layout, same_crs
from stac.probe import sample_numbers
from stac.scenes import BandSource

LEAST_REFLECTANCE = 0.3
"""Numbers of a kind that ends below this reflectance cannot show land: clouds, snow and sand are brighter."""
LEAST_NUMBER = 20.0
"""A file of floating-point numbers, none above this, holds reflectance (0..1) in place of the product's integers."""
_SAMPLE = 256


@dataclass(frozen=True)
class Ground:
    """Where a file lies: its bounds in its own CRS, and the longer side of its pixels."""

    crs: str
    west: float
    south: float
    east: float
    north: float
    pixel: float

    @classmethod
    def of(cls, layout: Layout) -> Ground:
        """Return the bounds of a file whose pixels are not turned against its CRS."""
        height, width = layout.shape
        (x, y), (right, bottom) = (layout.transform * at for at in ((0, 0), (width, height)))
        pixel = max(abs(right - x) / width, abs(bottom - y) / height)
        return cls(layout.crs, min(x, right), min(y, bottom), max(x, right), max(y, bottom), pixel)

    def agrees(self, other: Ground) -> bool:
        """Return whether two files of one scene can both be right: one CRS, and one of them within the other to a pixel of the coarser."""
        if not same_crs(self.crs, other.crs):
            return False
        pixel = max(self.pixel, other.pixel)
        return self._holds(other, pixel) or other._holds(self, pixel)

    def _holds(self, other: Ground, margin: float) -> bool:
        sides = self.west - other.west, self.south - other.south, other.east - self.east, other.north - self.north
        return all(beyond <= margin for beyond in sides)


def elsewhere(layout: Layout, covered: PixelBox | None) -> str | None:
    """Return what is wrong with a file that lies nowhere near its item's footprint; `covered` bounds that in global pixels, None where unknown."""
    if covered is None or not layout.extent.intersect(covered.expand(1024)).is_empty:
        return None
    return "the file lies elsewhere than its item's footprint: its CRS or its transform is wrong, or the footprint is"


def apart(layouts: Mapping[str, Layout]) -> tuple[str, str] | None:
    """Return (href, what is wrong) of the file that does not lie where most files of its scene lie, None where all agree."""
    straight = {href: Ground.of(layout) for href, layout in layouts.items() if not (layout.transform.b or layout.transform.d)}
    agreeing = {href: [other for other in straight if ground.agrees(straight[other])] for href, ground in straight.items()}
    most = max(agreeing, key=lambda href: len(agreeing[href]), default=None)
    stray = next((href for href in straight if most is not None and href not in agreeing[most]), None)
    return None if stray is None else (stray, f"the file does not lie where other files of its scene lie, such as {_name(str(most))}")


def _name(href: str) -> str:
    return href.partition("?")[0].rpartition("/")[2]


def wrong_kind(source: BandSource, layout: Layout) -> str | None:
    """Return what is wrong with a band whose numbers cannot be those that its scale is made for."""
    kind = np.dtype(layout.dtype)
    if kind.kind in "iu":
        ends = float(np.iinfo(kind).max * source.scale + source.offset)
        return None if ends >= LEAST_REFLECTANCE else f"its numbers are {kind}, which ends at reflectance {ends:.2g} with the product's scale"
    if source.scale * LEAST_NUMBER >= LEAST_REFLECTANCE:
        return None
    numbers = sample_numbers(source, _SAMPLE)
    most = _greatest(numbers) if numbers is not None else None
    if most is None or most > LEAST_NUMBER:
        return None
    return f"its numbers are {kind} up to {most:.3g}: reflectances, where the product has integers"


def _greatest(numbers: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> float | None:
    values = numbers.astype(np.float64)
    shown = values[np.isfinite(values) & (values != 0)]
    return float(shown.max()) if shown.size else None


def first_contradiction(sources: Sequence[BandSource], layouts: Sequence[Layout], others: Mapping[str, Layout]) -> tuple[str, str] | None:
    """Return (href, what is wrong) of the first file of a scene that contradicts its item or its siblings, None where all agree.

    Parameters
    ----------
    sources, layouts
        Bands, and how their files lie on the grid.
    others
        Files of the scene that hold no band, by href: the mask.
    """
    for source, layout in zip(sources, layouts, strict=True):
        if problem := wrong_kind(source, layout):
            return source.href, problem
    return apart({source.href: layout for source, layout in zip(sources, layouts, strict=True)} | dict(others))
