"""What other sensors, places, dates and scales would make of a chip. Every function is a pure function of the generator given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engine.bands import band
from engine.training.data import IGNORE, TRAINING_BANDS, Chips
from engine.training.rededge import RED_EDGE, RedEdge

TEN = ("blue", "green", "red", *RED_EDGE, "nir", "nir08", "swir16", "swir22")
SIX = TRAINING_BANDS

SENSORS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.33, ("blue", "green", "red", "nir")),
    (0.20, ("blue", "green", "red")),
    (0.18, SIX),
    (0.08, ("blue", "green", "red", "nir", "swir16")),
    (0.04, ("blue", "green", "red", "nir08", "swir16", "swir22")),
    (0.14, TEN),
    (0.03, tuple(name for name in TEN if name not in RED_EDGE)),
)
"""How often training sees the band set of each kind of sensor."""

SCALES = ((0.60, 1.0), (0.13, 0.5), (0.05, 0.25), (0.17, 2.0), (0.05, 4.0))
"""Chance and factor: 2 enlarges a quarter of a chip (finer pixels), 4 a sixteenth, 0.5 tiles four shrunken chips (coarser pixels)."""

_COARSE = (*RED_EDGE, "nir08", "swir16", "swir22")
"""Bands that Sentinel-2 sees at half the resolution."""


@dataclass(frozen=True)
class Sample:
    """One training chip: reflectance (C, H, W) with NaN = no data, detailed labels (H, W) with 255 = ignored."""

    reflectance: NDArray[np.float32]
    labels: NDArray[np.uint8]


def pick(generator: np.random.Generator, choices: tuple[tuple[float, object], ...]) -> object:
    """Return the value of one of (chance, value) pairs."""
    chances = np.array([chance for chance, _ in choices])
    return choices[int(generator.choice(len(choices), p=chances / chances.sum()))][1]


def draw_sample(chips: Chips, weights: NDArray[np.float64], labels: NDArray[np.uint8], size: int, generator: np.random.Generator) -> Sample:
    """Return a chip at a random scale, turned and mirrored, in the bands of the chips."""
    scale = float(pick(generator, SCALES))  # type: ignore[arg-type]
    pieces = max(1, round(1 / scale))
    side = size // pieces
    reflectance = np.empty((chips.reflectance.shape[1], size, size), np.float32)
    target = np.empty((size, size), np.uint8)
    for row in range(pieces):
        for column in range(pieces):
            index = int(generator.choice(len(chips), p=weights))
            piece = resample(chips.reflectance[index], labels[index], scale, side, generator)
            where = np.s_[row * side : (row + 1) * side, column * side : (column + 1) * side]
            reflectance[:, *where], target[where] = piece.reflectance, piece.labels
    return turn(Sample(reflectance, target), generator)


def resample(reflectance: NDArray[np.float32], labels: NDArray[np.uint8], scale: float, side: int, generator: np.random.Generator) -> Sample:
    """Return a random `side` x `side` window of a chip resampled by `scale`: means of pixels when coarser, smooth when finer."""
    height, width = labels.shape
    need = min(round(side / scale), height, width)
    top, left = int(generator.integers(height - need + 1)), int(generator.integers(width - need + 1))
    window, target = reflectance[:, top : top + need, left : left + need], labels[top : top + need, left : left + need]
    if scale < 1:
        step = need // side
        blocks = window[:, : side * step, : side * step].reshape(-1, side, step, side, step)
        return Sample(blocks.mean((2, 4)).astype(np.float32), target[step // 2 :: step, step // 2 :: step][:side, :side])
    if need != side:
        factor = side / need
        finer = ndimage.zoom(window, (1, factor, factor), order=1, mode="nearest", grid_mode=True)
        return Sample(finer.astype(np.float32), ndimage.zoom(target, factor, order=0, mode="nearest", grid_mode=True))
    return Sample(window, target)


def turn(sample: Sample, generator: np.random.Generator) -> Sample:
    """Return the sample in one of the eight positions of a square."""
    quarters, mirrored = int(generator.integers(4)), bool(generator.integers(2))
    reflectance, labels = np.rot90(sample.reflectance, quarters, (1, 2)), np.rot90(sample.labels, quarters)
    if mirrored:
        reflectance, labels = reflectance[:, :, ::-1], labels[:, ::-1]
    return Sample(np.ascontiguousarray(reflectance), np.ascontiguousarray(labels))


def as_sensor(sample: Sample, bands: tuple[str, ...], red_edge: RedEdge, generator: np.random.Generator) -> Sample:
    """Return the sample in the bands of a sensor; red-edge bands and a second near infrared are simulated."""
    planes = dict(zip(SIX, sample.reflectance, strict=True))
    if set(bands) & set(RED_EDGE):
        planes.update(zip(RED_EDGE, red_edge.simulate(sample.reflectance, generator), strict=True))
    if "nir08" in bands:
        planes["nir08"] = planes["nir"]
    if "nir08" in bands and "nir" in bands:
        planes["nir"] = planes["nir08"] * np.float32(generator.normal(0.99, 0.02)) + np.float32(generator.normal(0, 0.003))
        if generator.random() < 0.5:
            planes.update({name: _halved(planes[name]) for name in bands if name in _COARSE})
    return Sample(np.stack([planes[name] for name in bands]), sample.labels)


def _halved(plane: NDArray[np.float32]) -> NDArray[np.float32]:
    height, width = plane.shape
    coarse = plane.reshape(height // 2, 2, width // 2, 2).mean((1, 3))
    return np.asarray(coarse.repeat(2, 0).repeat(2, 1), np.float32)


def other_light(sample: Sample, bands: tuple[str, ...], generator: np.random.Generator) -> Sample:
    """Return the sample under other light: gain, offset, Rayleigh-like haze, terrain shading, noise."""
    x = sample.reflectance.astype(np.float64)
    count, shape = len(bands), x.shape[1:]
    centres = np.array([band(name).centre for name in bands])[:, None, None]
    x = x * generator.normal(1.0, 0.08) * generator.normal(1.0, 0.03, (count, 1, 1)) + generator.normal(0.0, 0.003, (count, 1, 1))
    if generator.random() < 0.35:
        amount = generator.choice([0.02, 0.04, 0.08], p=[0.5, 0.35, 0.15]) * generator.random()
        x = x + amount * (centres / 0.49) ** -generator.uniform(2.0, 4.0)
    if generator.random() < 0.35:
        relief = ndimage.gaussian_filter(generator.standard_normal(shape), generator.uniform(3, 20), mode="wrap")
        x = x * np.clip(1.0 + generator.uniform(0.05, 0.25) * relief / (relief.std() + 1e-9), 0.4, 1.5)
    if generator.random() < 0.6:
        x = x + generator.normal(0.0, generator.uniform(0.001, 0.006), x.shape)
    return Sample(x.astype(np.float32), sample.labels)


def with_gaps(sample: Sample, generator: np.random.Generator, chance: float = 0.12) -> Sample:
    """Return the sample with, at times, a corner or strip without data (NaN, label ignored)."""
    if generator.random() >= chance:
        return sample
    height, width = sample.labels.shape
    rows, columns = np.mgrid[:height, :width]
    angle, share = generator.uniform(0, 2 * np.pi), generator.uniform(-0.3, 0.4)
    gap = np.cos(angle) * (columns / width - 0.5) + np.sin(angle) * (rows / height - 0.5) > share
    return Sample(np.where(gap, np.float32(np.nan), sample.reflectance), np.where(gap, np.uint8(IGNORE), sample.labels))
