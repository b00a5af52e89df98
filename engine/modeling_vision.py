"""The seeing half of SPEX: N-band stem, backbone, multiscale aggregation, and the branch that brings masks back to full resolution.

Everything here is local: normalisation is per pixel over channels, never over space, so that a pixel's features depend on its
surroundings and not on where a window was cut. Shapes are (n, channels, height, width), memory format channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.bands import band, channel_of
from engine.configuration import SpexConfig

INDEX_BANDS = {
    "NDVI": ("nir", "red"),
    "NDWI": ("green", "nir"),
    "MNDWI": ("green", "swir16"),
    "NDBI": ("swir16", "nir"),
    "NGRDI": ("green", "red"),
    "NDMIR": ("swir16", "swir22"),
}
"""Normalised differences (a - b) / (a + b) that may enter the stem as pseudo-bands."""

MEAN, SCALE = 0.15, 0.15
"""The one global normalisation of reflectance."""
_ROOT_MEAN, _ROOT_SCALE = 0.35, 0.2


class SpectralStem(nn.Module):
    """Wavelength-conditioned stem: any band set in, `width` features (`dims[0]` unless given) at full resolution out.

    The kernel of band c is ``W[:, c] = sum_j phi_j(c) B_j`` with one kernel ``B_j`` per anchor wavelength and ``phi`` a Gaussian in log
    wavelength averaged over the band's width and shared out among the bands that lie near the anchor. That equals resampling the
    spectrum to the anchors first, which is how it is computed. Anchors and indices that the band set does not reach are replaced by a
    learned bias in proportion to what is missing.
    """

    def __init__(self, config: SpexConfig, width: int | None = None) -> None:
        super().__init__()
        width = width or config.dims[0]
        self.anchors, self.reach, self.indices = tuple(config.anchors), config.anchor_reach, tuple(config.indices)
        inputs = 2 * len(self.anchors) + len(self.indices) + 2
        self.kernel = nn.Conv2d(inputs, width, 3, padding=1)
        self.missing = nn.Linear(len(self.anchors) + len(self.indices), width, bias=False)
        self.norm = PixelNorm(width)

    def band_weights(self, bands: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return how a band set reaches the anchors: weights (anchors, bands) and the missing part of each anchor and index, 0..1."""
        weights, missing = anchor_weights(bands, self.anchors, self.reach)
        absent = [0.0 if all(channel_of(b, bands) is not None for b in INDEX_BANDS[name]) else 1.0 for name in self.indices]
        return weights, torch.cat([missing, torch.tensor(absent)])

    def forward(self, reflectance: Tensor, valid: Tensor, bands: Sequence[str]) -> Tensor:
        """Return features (n, width, h, w) of reflectance (n, C, h, w) without NaN, `valid` (n, 1, h, w) 0 or 1.

        Ratios and roots of reflectance are computed in its own type, float32 in a half-precision model too.
        """
        weights, missing = self.band_weights(bands)
        dtype, valid = self.kernel.weight.dtype, valid.to(reflectance)
        weights = weights.to(reflectance)[:, :, None, None]
        clipped = reflectance.clamp(-0.1, 1.5)
        linear = F.conv2d(normalised(reflectance) * valid, weights)
        root = F.conv2d((clipped.clamp(min=0).sqrt() - _ROOT_MEAN) / _ROOT_SCALE * valid, weights)
        brightness = (self._visible(clipped, bands).clamp(min=0) + 0.01).log() + 2.0
        maps = [linear, root, brightness * valid, *(self._index(name, clipped, bands) * valid for name in self.indices), valid]
        features = self.kernel(torch.cat(maps, 1).to(dtype).contiguous(memory_format=torch.channels_last))
        features = features + self.missing(missing.to(features.device, dtype))[None, :, None, None]
        return F.gelu(self.norm(features))

    @staticmethod
    def _visible(reflectance: Tensor, bands: Sequence[str]) -> Tensor:
        channels = [list(bands).index(name) for name in ("blue", "green", "red") if name in bands]
        return reflectance[:, channels or slice(None)].mean(1, keepdim=True)

    @staticmethod
    def _index(name: str, reflectance: Tensor, bands: Sequence[str]) -> Tensor:
        first, second = (channel_of(b, bands) for b in INDEX_BANDS[name])
        if first is None or second is None:
            return torch.zeros_like(reflectance[:, :1])
        a, b = reflectance[:, first : first + 1].clamp(min=0.003), reflectance[:, second : second + 1].clamp(min=0.003)
        return 2.0 * (a - b) / (a + b)


def normalised(reflectance: Tensor) -> Tensor:
    """Return reflectance clipped to -0.1..1.5 and brought to the one global mean and scale of all bands."""
    return (reflectance.clamp(-0.1, 1.5) - MEAN) / SCALE


def anchor_weights(bands: Sequence[str], anchors: Sequence[float], reach: float) -> tuple[Tensor, Tensor]:
    """Return how a band set reaches the anchors: weights (anchors, bands) and the missing part of each anchor, 0..1."""
    phi = torch.tensor([[anchor_response(name, j, anchors) for name in bands] for j in range(len(anchors))])
    total = phi.sum(1, keepdim=True) + reach
    return phi / total, 1.0 - phi.sum(1) / total.squeeze(1)


def anchor_response(name: str, anchor: int, anchors: Sequence[float], samples: int = 9) -> float:
    """Return how strongly a band excites an anchor, 0..1: a Gaussian in log wavelength as wide as the anchors' spacing, averaged over the band."""
    logs = [math.log(each) for each in anchors]
    gaps = [logs[j + 1] - logs[j] for j in range(len(logs) - 1)]
    sigma = 0.5 * min(gaps[max(anchor - 1, 0)], gaps[min(anchor, len(gaps) - 1)])
    sought = band(name)
    steps = [sought.centre + sought.width * ((k + 0.5) / samples - 0.5) for k in range(samples)]
    return sum(math.exp(-0.5 * ((math.log(w) - logs[anchor]) / sigma) ** 2) for w in steps) / samples


class PixelNorm(nn.LayerNorm):
    """LayerNorm over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, c, h, w) over c."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Residual block: depthwise convolution, normalisation, two pointwise layers, learned scale."""

    def __init__(self, dim: int, config: SpexConfig) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(dim, dim, config.kernel_size, padding=config.kernel_size // 2, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, dim * config.expansion)
        self.project = nn.Linear(dim * config.expansion, dim)
        self.layer_scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, dim, h, w) to the same shape."""
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.project(F.gelu(self.expand(y))) * self.layer_scale
        mapped: Tensor = x + y.permute(0, 3, 1, 2)
        return mapped


class Backbone(nn.Module):
    """Stem and four stages; returns the features at strides 1, 2, 4, 8 and 16."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        dims = tuple(config.dims)
        self.stem = SpectralStem(config)
        self.stem_blocks = nn.Sequential(*(Block(dims[0], config) for _ in range(config.depths[0])))
        self.reduce = nn.ModuleList(nn.Sequential(PixelNorm(a), nn.Conv2d(a, b, 2, stride=2)) for a, b in pairwise(dims))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(dim, config) for _ in range(depth))) for dim, depth in zip(dims[1:], config.depths[1:], strict=True)
        )

    def forward(self, reflectance: Tensor, valid: Tensor, bands: Sequence[str]) -> list[Tensor]:
        """Return five maps (n, dims[i], h / 2**i, w / 2**i)."""
        maps = [self.stem_blocks(self.stem(reflectance, valid, bands))]
        for reduce, stage in zip(self.reduce, self.stages, strict=True):
            maps.append(stage(reduce(maps[-1])))
        return maps


class MultiscaleAggregator(nn.Module):
    """Multiscale feature aggregation: every stage resized to stride 8, concatenated, mixed by a 1x1 convolution."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        self.mix = nn.Conv2d(sum(config.dims[1:]), config.aggregate_dim, 1)
        self.norm = PixelNorm(config.aggregate_dim)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return (n, aggregate_dim, h / 8, w / 8)."""
        _, second, fourth, eighth, sixteenth = maps
        resized = [eighth, F.avg_pool2d(second, 4), F.avg_pool2d(fourth, 2), enlarge(sixteenth)]
        return F.gelu(self.norm(self.mix(torch.cat(resized, 1))))


class FineBranch(nn.Module):
    """Brings the aggregated features back to full resolution over skips at strides 8, 4, 2 and 1; shared by all classes."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        dims = tuple(config.dims)
        self.lift4, self.skip4, self.block4 = nn.Conv2d(config.aggregate_dim, dims[2], 1), nn.Conv2d(dims[2], dims[2], 1), Block(dims[2], config)
        self.lift2, self.skip2, self.block2 = nn.Conv2d(dims[2], dims[1], 1), nn.Conv2d(dims[1], dims[1], 1), Block(dims[1], config)
        self.lift1, self.skip1 = nn.Conv2d(dims[1], config.fine_dim, 1), nn.Conv2d(dims[0], config.fine_dim, 1)
        self.norm1 = PixelNorm(config.fine_dim)
        self.smooth = nn.Conv2d(config.fine_dim, config.fine_dim, 3, padding=1)
        self.norm = PixelNorm(config.fine_dim)
        self.last = nn.Conv2d(config.fine_dim, config.fine_dim, 3, padding=1)

    def forward(self, aggregated: Tensor, maps: list[Tensor]) -> Tensor:
        """Return (n, fine_dim, h, w)."""
        x = self.block4(enlarge(self.lift4(aggregated)) + self.skip4(maps[2]))
        x = self.block2(enlarge(self.lift2(x)) + self.skip2(maps[1]))
        x = F.gelu(self.norm1(enlarge(self.lift1(x)) + self.skip1(maps[0])))
        finest: Tensor = x + self.last(F.gelu(self.norm(self.smooth(x))))
        return finest


def enlarge(x: Tensor, factor: int = 2) -> Tensor:
    """Return the map resized bilinearly to `factor` times its height and width."""
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def visual_tokens(x: Tensor, valid: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return the tokens that the language model sees, row by row: every position of a map if `side` is 0, else `masked_pool`."""
    return masked_pool(x, valid, side) if side else (x.flatten(2).transpose(1, 2), valid.flatten(1))


def masked_pool(x: Tensor, valid: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pool a map to a fixed grid, leaving pixels without data out.

    Parameters
    ----------
    x, valid
        (n, c, h, w) and (n, 1, h, w), valid 0..1.
    side
        Height and width of the grid.

    Returns
    -------
    tuple
        Tokens (n, side * side, c), 0 where a cell has no data, and the share of valid pixels (n, side * side).
    """
    share = F.adaptive_avg_pool2d(valid, side)
    pooled = F.adaptive_avg_pool2d(x * valid, side) / share.clamp(min=1e-6)
    return pooled.flatten(2).transpose(1, 2), share.flatten(1)
