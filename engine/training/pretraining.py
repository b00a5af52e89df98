"""Stage A, visual pre-training: reconstruct what was hidden of unlabelled imagery, in any band set.

Patches are hidden by marking them as no data, as real gaps are; at times whole bands are hidden as well, as a lesser sensor lacks them. A light
decoder turns the features into a spectrum at the anchor wavelengths, from which every band is read off by its wavelength; it is thrown away after.
Masked reconstruction follows He et al., Masked Autoencoders Are Scalable Vision Learners (2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from engine.configuration import DEFAULT_ANCHORS
from engine.modeling import SpexForLandCover
from engine.modeling_vision import anchor_response
from engine.training.augment import SENSORS, Sample, turn
from engine.training.config import PretrainingSpec
from engine.training.errors import TrainingDataError
from engine.training.imagery import Imagery

VISION = ("backbone", "aggregator", "fine_branch")
"""Parts of the model that pre-training trains."""

TAIL = 0.05
"""Targets are compared by Huber's loss with this many standard deviations where it turns linear."""


@dataclass(frozen=True)
class HiddenBatch:
    """Windows of which a part is hidden."""

    reflectance: Tensor
    """(n, C, h, w) float32: what the model sees, NaN = no data or hidden."""
    target: Tensor
    """(n, B, h, w) float32: root of reflectance in units of each band's deviation, 0 where it is not known."""
    hidden: Tensor
    """(n, B, h, w) bool: values that are known and were hidden; the loss counts these only."""
    bands: tuple[str, ...]
    """Names of the C channels."""
    target_bands: tuple[str, ...]


@dataclass(frozen=True)
class Levels:
    """Mean and standard deviation of the root of reflectance in each band, over all imagery."""

    mean: dict[str, float]
    deviation: dict[str, float]

    def normalised(self, reflectance: NDArray[np.float32], bands: Sequence[str]) -> NDArray[np.float32]:
        """Return the targets of reflectance (C, h, w)."""
        mean, deviation = (np.array([values[name] for name in bands], np.float32)[:, None, None] for values in (self.mean, self.deviation))
        return np.asarray((np.sqrt(np.clip(reflectance, 0, 1.5)) - mean) / deviation, np.float32)


def measure_levels(imagery: Sequence[Imagery], size: int, windows: int = 24) -> Levels:
    """Return the levels of some windows of each imagery, the same every time."""
    roots: dict[str, list[NDArray[np.float32]]] = {}
    for source in imagery:
        generator = np.random.default_rng(0)
        for _ in range(windows):
            window = np.sqrt(np.clip(source.window(size, generator), 0, 1.5))
            for name, plane in zip(source.bands, window, strict=True):
                roots.setdefault(name, []).append(plane[np.isfinite(plane)])
    joined = {name: np.concatenate(planes) for name, planes in roots.items()}
    empty = [name for name, values in joined.items() if not values.size]
    if empty:
        raise TrainingDataError(f"unlabelled imagery has no data in {', '.join(empty)}")
    return Levels(
        {name: float(values.mean(dtype=np.float64)) for name, values in joined.items()},
        {name: float(values.std(dtype=np.float64)) + 0.01 for name, values in joined.items()},
    )


class HiddenBatches:
    """Makes the batch of a step: windows of one imagery, turned, with patches and bands hidden."""

    def __init__(self, imagery: Sequence[Imagery], spec: PretrainingSpec, known: Sequence[str], seed: int) -> None:
        self.imagery, self.spec, self.seed, self.known = tuple(imagery), spec, seed, tuple(known)
        self.levels = measure_levels(imagery, spec.size)
        weights = np.array([each.spec.weight for each in imagery], np.float64)
        self.weights = weights / weights.sum()

    def __call__(self, step: int) -> HiddenBatch:
        """Return the batch of a step."""
        generator = np.random.default_rng((self.seed, step, 1))
        source = self.imagery[int(generator.choice(len(self.imagery), p=self.weights))]
        seen = self._seen(source.bands, generator)
        rows = [self._window(source, seen, generator) for _ in range(self.spec.batch)]
        reflectance, target, hidden = (torch.from_numpy(np.stack(planes)) for planes in zip(*rows, strict=True))
        return HiddenBatch(reflectance, target, hidden, seen, source.bands)

    def _seen(self, bands: tuple[str, ...], generator: np.random.Generator) -> tuple[str, ...]:
        """Return the bands that the model is given: all that it uses, or those of a lesser sensor."""
        used = tuple(name for name in bands if name in self.known) or bands
        lesser = [subset for _, subset in SENSORS if set(subset) < set(used)]
        if lesser and generator.random() < self.spec.hide_bands:
            return lesser[int(generator.integers(len(lesser)))]
        return used

    def _window(
        self, source: Imagery, seen: tuple[str, ...], generator: np.random.Generator
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
        window = source.window(self.spec.size, generator)
        whole = turn(Sample(window, np.zeros(window.shape[1:], np.uint8)), generator).reflectance
        patches = hidden_patches(self.spec.size, self.spec.mask_patch, self.spec.mask_ratio, generator)
        channels = [source.bands.index(name) for name in seen]
        given = np.where(patches, np.float32(np.nan), whole[channels])
        unseen = np.array([name not in seen for name in source.bands])[:, None, None]
        hidden = np.isfinite(whole) & (patches | unseen)
        return given, np.nan_to_num(self.levels.normalised(whole, source.bands)), hidden


def hidden_patches(size: int, patch: int, ratio: float, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return which pixels of a window (size, size) are hidden: a share `ratio` of its square patches."""
    side = -(-size // patch)
    order = generator.permutation(side * side).reshape(side, side)
    chosen = order < max(1, round(ratio * side * side))
    return np.asarray(chosen.repeat(patch, 0).repeat(patch, 1)[:size, :size])


class SpectralDecoder(nn.Module):
    """Light decoder: from features to the root of reflectance in any band."""

    def __init__(self, aggregate_dim: int, fine_dim: int, width: int) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(aggregate_dim, width, 1)
        self.fine = nn.Conv2d(fine_dim, width, 3, padding=1) if fine_dim else None
        self.spectrum = nn.Conv2d(width, len(DEFAULT_ANCHORS), 1)

    def forward(self, aggregated: Tensor, fine: Tensor | None, shape: tuple[int, int], bands: Sequence[str]) -> Tensor:
        """Return (n, B, *shape) of features at a coarser stride and, where the model has them, at full resolution."""
        features = F.interpolate(self.coarse(aggregated), size=shape, mode="bilinear", align_corners=False)
        if self.fine is not None and fine is not None:
            features = features + self.fine(fine)
        spectrum = self.spectrum(F.gelu(features))
        return F.conv2d(spectrum, wavelength_weights(bands).to(spectrum)[:, :, None, None])


def wavelength_weights(bands: Sequence[str]) -> Tensor:
    """Return how each band is read off a spectrum at the anchors, (B, anchors); rows sum to one."""
    phi = torch.tensor([[anchor_response(name, j, DEFAULT_ANCHORS) for j in range(len(DEFAULT_ANCHORS))] for name in bands])
    return phi / phi.sum(1, keepdim=True)


class Reconstruction(nn.Module):
    """What stage A minimises: Huber's distance between what was hidden and what the decoder makes of the features."""

    def __init__(self, model: SpexForLandCover, spec: PretrainingSpec) -> None:
        super().__init__()
        self.model = model
        self.decoder = SpectralDecoder(model.config.aggregate_dim, model.config.fine_dim, spec.decoder_width)

    def forward(self, batch: HiddenBatch) -> dict[str, Tensor]:
        """Return the loss, and the mean absolute error of reflectance's root in units of the bands' deviations."""
        aggregated, fine = see(self.model, batch.reflectance, batch.bands)
        made = self.decoder(aggregated, fine, batch.target.shape[-2:], batch.target_bands).float()
        count = batch.hidden.sum().clamp(min=1)
        each = F.huber_loss(made, batch.target, reduction="none", delta=TAIL) / TAIL
        absolute = ((made.detach() - batch.target).abs() * batch.hidden).sum() / count
        return {"loss": (each * batch.hidden).sum() / count, "error": absolute}


def see(model: SpexForLandCover, reflectance: Tensor, bands: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Return the features of reflectance (n, C, h, w), NaN = no data: aggregated, and at full resolution if the model has that."""
    valid = (~torch.isnan(reflectance)).any(1, keepdim=True).to(reflectance.dtype)
    filled = torch.nan_to_num(reflectance, nan=0.15).contiguous(memory_format=torch.channels_last)
    maps = model.backbone(filled, valid, bands)
    aggregated = model.aggregator(maps)
    branch = getattr(model, "fine_branch", None)
    return aggregated, None if branch is None else branch(aggregated, maps)
