"""Red-edge bands for chips that have none, from regressions on real Sentinel-2 spectra, so that a model can learn to use ten bands."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

RED_EDGE = ("rededge071", "rededge075", "rededge078")

_L2A_GIVEN, _L2A_SOUGHT = [1, 2, 3, 7, 10, 11], [4, 5, 6]
_TOA_GIVEN, _TOA_SOUGHT = [0, 1, 2, 6, 7, 8], [3, 4, 5]


@dataclass(frozen=True)
class RedEdge:
    """A fitted regression of the red-edge bands on blue, green, red, nir, swir16 and swir22."""

    coefficients: NDArray[np.float64]
    """(features, 3)"""
    residual: NDArray[np.float64]
    """(3, 3) lower Cholesky factor of the residuals' covariance."""

    def simulate(self, reflectance: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
        """Return red-edge bands (3, H, W) of a chip (6, H, W), with residuals that vary from place to place as the real ones do."""
        shape = reflectance.shape[1:]
        fitted = _features(reflectance.reshape(6, -1).T) @ self.coefficients
        patches = np.stack([ndimage.gaussian_filter(generator.standard_normal(shape), 3.0, mode="wrap") for _ in range(3)])
        patches /= patches.std() + 1e-9
        level = reflectance.mean(0) / 0.2
        noise = np.einsum("ij,jhw->ihw", self.residual, 0.7 * patches + 0.5 * generator.standard_normal((3, *shape)))
        return np.asarray(fitted.T.reshape(3, *shape) + noise * np.clip(level, 0.1, 1.5), np.float32)


def fit_red_edge(chips: Path, spectra: Path, seed: int = 0) -> RedEdge:
    """Return the regression fitted on equal numbers of surface spectra (unlabelled chips, 12 bands) and top-of-atmosphere spectra."""
    with np.load(chips) as data:
        surface = data["digital_numbers"].transpose(0, 2, 3, 1).reshape(-1, 12) * 1e-4
    with np.load(spectra) as data:
        toa = data["reflectance"] * 1e-4
    surface = surface[np.random.default_rng(seed).permutation(len(surface))[: len(toa)]]
    given = np.concatenate([surface[:, _L2A_GIVEN], toa[:, _TOA_GIVEN]])
    sought = np.concatenate([surface[:, _L2A_SOUGHT], toa[:, _TOA_SOUGHT]])
    features = _features(given)
    ridge = 1e-7 * len(features) * np.eye(features.shape[1])
    coefficients = np.linalg.solve(features.T @ features + ridge, features.T @ sought)
    covariance = np.cov((sought - features @ coefficients).T)
    return RedEdge(np.asarray(coefficients, np.float64), np.asarray(np.linalg.cholesky(covariance), np.float64))


def _features(given: NDArray[np.floating]) -> NDArray[np.float64]:
    x = given.astype(np.float64)
    _, green, red, nir, swir, _ = x.T
    differences = np.column_stack([(a - b) / np.maximum(a + b + 0.02, 0.02) for a, b in ((nir, red), (green, nir), (swir, nir), (green, red))])
    return np.column_stack([x, np.sqrt(np.clip(x, 0, None)), differences, differences[:, :1] * x, np.ones(len(x))])
