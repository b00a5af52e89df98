"""Made-up scenes on which fine-tuning rehearses what the starting model answers: typical spectra in patches, with texture and noise.

A user's chips show one kind of imagery. Held to its old answers there alone, a model loses them everywhere else, and the chips that it was trained on
are not at hand. Made-up scenes need no data, and what the starting model answers to them holds the weights where chips at metre scale would pull them
away (Robins, Catastrophic Forgetting, Rehearsal and Pseudorehearsal, 1995).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from engine.bands import band

KNOTS = (0.44, 0.49, 0.56, 0.66, 0.704, 0.74, 0.783, 0.85, 0.945, 1.25, 1.61, 2.20)
"""Wavelengths in micrometres of the spectra."""

SPECTRA = {
    "green plants": (0.02, 0.03, 0.06, 0.03, 0.09, 0.25, 0.32, 0.36, 0.37, 0.33, 0.17, 0.08),
    "needle trees": (0.02, 0.02, 0.03, 0.02, 0.05, 0.14, 0.18, 0.20, 0.21, 0.17, 0.08, 0.04),
    "dry grass": (0.05, 0.06, 0.09, 0.11, 0.14, 0.19, 0.22, 0.24, 0.26, 0.30, 0.29, 0.20),
    "soil": (0.07, 0.09, 0.13, 0.17, 0.19, 0.21, 0.22, 0.24, 0.26, 0.32, 0.35, 0.30),
    "sand": (0.16, 0.20, 0.28, 0.35, 0.37, 0.39, 0.40, 0.42, 0.44, 0.50, 0.54, 0.48),
    "roofs and roads": (0.10, 0.12, 0.14, 0.15, 0.16, 0.18, 0.19, 0.20, 0.21, 0.23, 0.23, 0.20),
    "clear water": (0.05, 0.05, 0.05, 0.03, 0.03, 0.02, 0.02, 0.02, 0.01, 0.01, 0.01, 0.00),
    "turbid water": (0.07, 0.09, 0.12, 0.12, 0.11, 0.08, 0.07, 0.06, 0.04, 0.02, 0.01, 0.01),
}
"""Typical surface reflectance at the knots; each scene varies it."""


def made_up_scene(bands: Sequence[str], size: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Return reflectance (C, size, size) of two to four covers in patches with soft borders."""
    centres = [band(name).centre for name in bands]
    covers = generator.choice(np.array(list(SPECTRA.values())), int(generator.integers(2, 5)), replace=False)
    spectra = np.array([np.interp(centres, KNOTS, each) for each in covers])
    spectra = spectra * generator.lognormal(0.0, 0.25, (len(covers), 1)) * generator.lognormal(0.0, 0.08, spectra.shape)
    scene = np.einsum("khw,kc->chw", _patches(len(covers), size, generator), spectra)
    texture = 1.0 + generator.uniform(0.02, 0.2) * _relief(size, generator.uniform(0.6, 4.0), generator)
    return np.asarray(scene * np.clip(texture, 0.4, 1.6) + generator.normal(0.0, 0.003, scene.shape), np.float32)


def _patches(count: int, size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return shares (count, size, size) that sum to one at every pixel."""
    levels = [_relief(size, generator.uniform(1.0, 12.0), generator) + generator.normal(0.0, 0.7) for _ in range(count)]
    weights = np.exp((np.stack(levels) - np.max(levels, 0)) * generator.uniform(2.0, 12.0))
    return np.asarray(weights / weights.sum(0))


def _relief(size: int, reach: float, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return a smooth random field (size, size) of deviation 1, which varies over `reach` pixels."""
    field = ndimage.gaussian_filter(generator.standard_normal((size, size)), reach, mode="wrap")
    return np.asarray(field / (field.std() + 1e-9))
