"""The ground of a patch of the world while it is being painted: materials, their mixture, brightness and relief."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.demo.noise import Patch, Spot
from pipeline.demo.spectra import Material, cover_of

Mask = NDArray[np.bool_]
Field = NDArray[np.float32]


@dataclass
class Ground:
    """What lies in each five-metre pixel of `patch`; every array is (height, width)."""

    patch: Patch
    seed: int
    first: NDArray[np.uint8]
    """Material that fills the share 1 - blend."""
    second: NDArray[np.uint8]
    """Material that fills the share `blend`."""
    blend: Field
    tone: Field
    """Relative brightness, about 1."""
    elevation: Field
    """Metres."""

    @classmethod
    def blank(cls, patch: Patch, seed: int, elevation: Field) -> Ground:
        """Return bare pasture over the given relief."""
        first = np.full(patch.shape, Material.PASTURE, np.uint8)
        return cls(patch, seed, first, first.copy(), np.zeros(patch.shape, np.float32), np.ones(patch.shape, np.float32), elevation)

    def paint(self, mask: Mask, first: Material, second: Material | None = None, blend: Field | float = 0.0) -> None:
        """Cover `mask` (this patch's shape) with `first`, of which the share `blend` is `second`."""
        self.view().paint(mask, first, second, blend)

    def view(self, rows: slice = slice(None), columns: slice = slice(None)) -> View:
        """Return a window of the ground that paints into it."""
        return View(self.first[rows, columns], self.second[rows, columns], self.blend[rows, columns], self.tone[rows, columns])

    def around(self, spot: Spot, radius: float) -> Surroundings | None:
        """Return the window within `radius` metres of `spot`, or None where it lies outside the patch."""
        columns = _within(self.patch.x - spot.x, radius)
        rows = _within(self.patch.y - spot.y, radius)
        if rows.start == rows.stop or columns.start == columns.stop:
            return None
        east = (self.patch.x[columns] - spot.x).astype(np.float32)[None, :]
        north = (self.patch.y[rows] - spot.y).astype(np.float32)[:, None]
        return Surroundings(self.view(rows, columns), rows, columns, east, north)

    @property
    def cover(self) -> NDArray[np.uint8]:
        """Land-cover code of the material that fills most of each pixel."""
        return cover_of(np.where(self.blend < 0.5, self.first, self.second))


@dataclass(frozen=True)
class View:
    """A window of a `Ground`: its arrays are views, so painting here paints there."""

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]
    blend: Field
    tone: Field

    def paint(self, mask: Mask, first: Material, second: Material | None = None, blend: Field | float = 0.0) -> None:
        """Cover `mask` (this window's shape) with `first`, of which the share `blend` is `second`."""
        self.first[mask] = first
        self.second[mask] = first if second is None else second
        self.blend[mask] = blend[mask] if isinstance(blend, np.ndarray) else blend
        self.tone[mask] = 1


@dataclass(frozen=True)
class Surroundings:
    """The window of the ground around a spot."""

    view: View
    rows: slice
    columns: slice
    east: Field
    """Metres east of the spot, (1, width)."""
    north: Field
    """Metres north of the spot, (height, 1)."""

    def turned(self, angle: float) -> tuple[Field, Field]:
        """Return coordinates in metres along two axes turned by `angle` radians, each (height, width)."""
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        return cosine * self.east + sine * self.north, cosine * self.north - sine * self.east


def _within(offset: NDArray[np.float64], radius: float) -> slice:
    inside = np.flatnonzero(np.abs(offset) < radius)
    return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)
