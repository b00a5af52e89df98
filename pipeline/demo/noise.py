"""Random fields that depend on the place alone: any patch of the plane can be computed by itself and fits its neighbours exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

STEP = 5.0
"""Side of a world pixel in metres: half the finest Sentinel-2 pixel, so that ten-metre pixels are mixtures."""


@dataclass(frozen=True)
class Patch:
    """Rectangle of the world's pixel lattice: column 0 starts at x = 0 and counts east, row 0 starts at y = 0 and counts south."""

    left: int
    top: int
    width: int
    height: int
    step: float = STEP
    """Pixel side in metres."""

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height, self.width

    @property
    def x(self) -> NDArray[np.float64]:
        """World x of the columns' centres, metres east, (width,)."""
        return np.asarray((self.left + 0.5 + np.arange(self.width)) * self.step, np.float64)

    @property
    def y(self) -> NDArray[np.float64]:
        """World y of the rows' centres, metres north, (height,)."""
        return np.asarray(-(self.top + 0.5 + np.arange(self.height)) * self.step, np.float64)


def uniform(seed: int, stream: int, i: NDArray[np.int64], j: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return numbers in [0, 1) that depend on seed, stream and the integer pair (i, j) alone, float32, in the broadcast shape of `i` and `j`."""
    state = np.asarray(i).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = state ^ (np.asarray(j).astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F))
    state = _scramble(state + np.uint64((seed * 0x165667B19E3779F9 + stream * 0x27D4EB2F165667C5) % 2**64))
    return ((state >> np.uint64(40)) * np.float64(2.0**-24)).astype(np.float32)


def _scramble(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def fractal(
    patch: Patch, seed: int, stream: int, wavelength: float, octaves: int = 1, gain: float = 0.5, stretch: float = 1.0
) -> NDArray[np.float32]:
    """Return a smooth random field of about zero mean and unit variance over `patch`, (height, width) float32.

    Each octave is a lattice of hashed numbers under cubic B-splines; `wavelength` is the lattice spacing of the first in metres, every further
    one halves it and is weaker by `gain`. `stretch` makes it that much longer from north to south.
    """
    total = np.zeros(patch.shape, np.float32)
    power = 0.0
    for octave in range(octaves):
        weight = gain**octave
        total += np.float32(weight) * _octave(patch, seed, stream * 64 + octave, wavelength / 2**octave, stretch)
        power += weight**2
    return total / np.float32(np.sqrt(power))


def _octave(patch: Patch, seed: int, stream: int, wavelength: float, stretch: float) -> NDArray[np.float32]:
    columns, across = _spline(patch.x / wavelength)
    rows, down = _spline(-patch.y / (wavelength * stretch))
    lattice = uniform(seed, stream, columns[None, :], rows[:, None])
    # Uniform numbers have variance 1/12, and the splines keep about a quarter of it: 2 * sqrt(12) brings it back to one.
    lattice = (lattice - np.float32(0.5)) * np.float32(6.93)
    field: NDArray[np.float32] = np.ascontiguousarray((across @ np.ascontiguousarray((down @ lattice).T)).T)
    return field


def _spline(position: NDArray[np.float64]) -> tuple[NDArray[np.int64], csr_matrix]:
    """Return the lattice indices that `position` (in lattice units) needs and the sparse cubic B-spline weights over them."""
    base = np.floor(position).astype(np.int64)
    t = position - base
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3], axis=1) / 6
    first = int(base.min()) - 1
    nodes = np.arange(first, int(base.max()) + 3)
    indices = (base - 1 - first)[:, None] + np.arange(4)
    pointers = np.arange(0, 4 * len(position) + 1, 4)
    matrix = csr_matrix((weights.astype(np.float32).ravel(), indices.ravel(), pointers), shape=(len(position), len(nodes)))
    return nodes, matrix


def smoothstep(field: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Return 0 below `low`, 1 above `high` and a smooth rise between, in the shape of `field`."""
    t = np.clip((field - np.float32(low)) / np.float32(high - low), 0, 1)
    risen: NDArray[np.float32] = (t * t * (3 - 2 * t)).astype(np.float32)
    return risen


@dataclass(frozen=True)
class Spot:
    """One place of a scattering of places: a town, a lake, a pit."""

    x: float
    """World x in metres."""
    y: float
    """World y in metres."""
    chance: NDArray[np.float32]
    """Eight numbers in [0, 1) that are this spot's own."""
    number: int
    """A number of its own, below 2**24."""


def scatter(patch: Patch, seed: int, stream: int, spacing: float, reach: float) -> list[Spot]:
    """Return the spots (one per square of side `spacing` metres, moved at random inside it) that lie within `reach` metres of `patch`, row by row."""
    west, east = patch.left * patch.step - reach, (patch.left + patch.width) * patch.step + reach
    south, north = -(patch.top + patch.height) * patch.step - reach, -patch.top * patch.step + reach
    spots = []
    for j in range(int(south // spacing), int(north // spacing) + 1):
        for i in range(int(west // spacing), int(east // spacing) + 1):
            chance = uniform(seed, stream, np.full(11, i), j * 16 + np.arange(11))
            x, y = (i + 0.15 + 0.7 * float(chance[0])) * spacing, (j + 0.15 + 0.7 * float(chance[1])) * spacing
            if west <= x <= east and south <= y <= north:
                spots.append(Spot(x, y, chance[3:], int(chance[2] * 2**24)))
    return spots
