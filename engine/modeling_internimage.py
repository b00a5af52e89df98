"""InternImage with deformable convolutions of the third version, in plain PyTorch, and what stands around it in the published SPEX.

Wang et al., InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions, CVPR 2023 (arXiv 2211.05778). The arrangement
is that of the size L: post-normalisation, two layer scales a block, no normalisation behind a stage. Maps are (n, channels, height, width).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.bands import channel_of, check_bands
from engine.configuration import RGB, SpexConfig
from engine.modeling_vision import MEAN, SCALE, Block, PixelNorm, SpectralStem, anchor_weights, enlarge, normalised

EPS = 1e-6
POINTS = 9


def sample_deformed(values: Tensor, offset: Tensor, share: Tensor, groups: int, scale: float) -> Tensor:
    """Return the deformable 3x3 sampling of DCNv3: stride 1, zeros beyond the edge.

    A pixel p of group g becomes the sum over points k of ``share[p, g, k] * values[p + scale * (r_k + offset[p, g, k])]``, read bilinearly, where
    r_k runs over the 3x3 neighbourhood column by column, each from top to bottom.

    Parameters
    ----------
    values
        (n, h, w, c)
    offset
        (n, h, w, groups * 9 * 2), in pixels, x before y.
    share
        (n, h, w, groups, 9)

    Returns
    -------
    Tensor
        (n, h, w, c), in the dtype of `values`, which must be float32 or wider: coordinates in half precision are off by a tenth of a pixel.
    """
    n, height, width, channels = values.shape
    rows, columns, steps = (torch.arange(size, device=values.device, dtype=values.dtype) for size in (height, width, 3))
    reach = torch.stack([steps.repeat_interleave(3), steps.repeat(3)], -1) - 1.0
    centre = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], -1)
    places = centre[:, :, None, None] + scale * (offset.reshape(n, height, width, groups, POINTS, 2) + reach)
    size = torch.stack([torch.full_like(steps[0], width), torch.full_like(steps[0], height)])
    grid = ((2.0 * places + 1.0) / size - 1.0).permute(0, 3, 1, 2, 4, 5).reshape(n * groups, height * width, POINTS, 2)
    maps = values.permute(0, 3, 1, 2).reshape(n * groups, channels // groups, height, width)
    sampled = F.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    shares = share.reshape(n, height * width, groups, POINTS).permute(0, 2, 1, 3).reshape(n * groups, 1, height * width, POINTS)
    return (sampled * shares).sum(-1).reshape(n, channels, height, width).permute(0, 2, 3, 1)


class DeformableConvolution(nn.Module):
    """DCNv3: every pixel and group chooses where it looks and how much each of the nine places counts."""

    def __init__(self, dim: int, groups: int, offset_scale: float) -> None:
        super().__init__()
        self.groups, self.offset_scale = groups, offset_scale
        self.project_in, self.project_out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=EPS)
        self.offset, self.mask = nn.Linear(dim, groups * POINTS * 2), nn.Linear(dim, groups * POINTS)
        for layer in (self.project_in, self.project_out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.offset, self.mask):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, h, w, c) to the same shape and dtype; offsets, coordinates and sampling are float32 at least, whatever the dtype."""
        values = self.project_in(x)
        seen = F.gelu(self.norm(self.depthwise(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))
        exact = torch.promote_types(values.dtype, torch.float32)
        with _without_autocast(x):
            offset, score = (F.linear(seen.to(exact), each.weight.to(exact), each.bias.to(exact)) for each in (self.offset, self.mask))
            share = score.reshape(*score.shape[:3], self.groups, POINTS).softmax(-1)
            mixed = sample_deformed(values.to(exact), offset, share, self.groups, self.offset_scale)
        return self.project_out(mixed.to(values.dtype))  # type: ignore[no-any-return]


def _without_autocast(x: Tensor) -> AbstractContextManager[object]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if kind != "meta" and torch.is_autocast_enabled(kind) else nullcontext()


class DeformableBlock(nn.Module):
    """Residual block: deformable convolution, then two pointwise layers, each normalised behind and scaled."""

    def __init__(self, dim: int, groups: int, config: SpexConfig, drop: float = 0.0) -> None:
        super().__init__()
        self.drop = drop
        self.deform = DeformableConvolution(dim, groups, config.offset_scale)
        self.expand, self.project = nn.Linear(dim, dim * config.expansion), nn.Linear(dim * config.expansion, dim)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPS), nn.LayerNorm(dim, eps=EPS)
        self.layer_scale1, self.layer_scale2 = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.ones(dim))
        for layer in (self.expand, self.project):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, h, w, dim) to the same shape."""
        x = x + self._dropped(self.layer_scale1 * self.norm1(self.deform(x)))
        return x + self._dropped(self.layer_scale2 * self.norm2(self.project(F.gelu(self.expand(x)))))

    def _dropped(self, change: Tensor) -> Tensor:
        """Return the change, in training left out of a share of the samples (stochastic depth, Huang et al. 2016)."""
        if not self.training or self.drop == 0.0:
            return change
        keep = torch.rand(change.shape[0], 1, 1, 1, device=change.device) >= self.drop
        return change * keep.to(change.dtype) / (1.0 - self.drop)


class DisplayConvolution(nn.Conv2d):
    """First convolution of the published stem: red, green and blue only, normalised as display values."""

    def __init__(self, config: SpexConfig, width: int) -> None:
        super().__init__(3, width, 3, stride=2, padding=1)
        self.white, self.mean, self.scale = config.display_white, tuple(config.display_mean), tuple(config.display_scale)

    def forward(self, reflectance: Tensor, valid: Tensor, bands: Sequence[str]) -> Tensor:  # type: ignore[override]
        """Return (n, width, h / 2, w / 2) of reflectance (n, C, h, w); raises `UnknownBand` where one of the three is missing."""
        check_bands(bands, RGB)
        channels = [channel for name in RGB if (channel := channel_of(name, bands)) is not None]
        mean, scale = (torch.tensor(each, device=reflectance.device, dtype=reflectance.dtype)[:, None, None] for each in (self.mean, self.scale))
        shown = (reflectance[:, channels] / self.white).clamp(0.0, 1.0)
        return super().forward(((shown - mean) / scale * valid).to(self.weight))


class SpectralConvolution(nn.Module):
    """First convolution for any band set: the kernel of a band is interpolated between kernels at anchor wavelengths.

    ``W[:, c] = sum_j phi_j(c) B_j`` as in `engine.modeling_vision.SpectralStem`, linear in reflectance, so that it is one ordinary convolution for
    a band set.
    """

    def __init__(self, config: SpexConfig, width: int) -> None:
        super().__init__()
        self.anchors, self.reach = tuple(config.anchors), config.anchor_reach
        self.kernels = nn.Parameter(torch.empty(width, len(self.anchors), 3, 3))
        self.missing = nn.Linear(len(self.anchors), width)
        nn.init.kaiming_uniform_(self.kernels, a=5**0.5)

    def kernel(self, bands: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return weight (width, C, 3, 3) and bias (width,) for a band set."""
        weights, missing = anchor_weights(bands, self.anchors, self.reach)
        return torch.einsum("oaij,ac->ocij", self.kernels, weights.to(self.kernels)), self.missing(missing.to(self.kernels))

    def forward(self, reflectance: Tensor, valid: Tensor, bands: Sequence[str]) -> Tensor:
        """Return (n, width, h / 2, w / 2) of reflectance (n, C, h, w) without NaN."""
        return F.conv2d((normalised(reflectance) * valid).to(self.kernels), *self.kernel(bands), stride=2, padding=1)

    @torch.no_grad()
    def adopt(self, fixed: DisplayConvolution) -> None:
        """Start from a fixed stem: red, green and blue then give what they give there, but for the border of an image and values outside 0..1.

        Kernels at the anchors are the smallest that do so, hence near zero at wavelengths far from the visible.
        """
        phi, _ = anchor_weights(RGB, self.anchors, self.reach)
        weight, bias = (fixed.state_dict()[leaf].to(self.kernels) for leaf in ("weight", "bias"))
        mean, scale = (torch.tensor(each).to(self.kernels) for each in (fixed.mean, fixed.scale))
        visible = weight * (SCALE / (fixed.white * scale))[:, None, None]
        self.kernels.copy_(torch.einsum("ocij,ca->oaij", visible, torch.linalg.pinv(phi).to(self.kernels)))
        self.missing.weight.zero_()
        self.missing.bias.copy_(bias + torch.einsum("ocij,c->o", weight, (MEAN / fixed.white - mean) / scale))

    def baked(self, bands: Sequence[str]) -> nn.Conv2d:
        """Return the convolution that this is for one band set; its input is `normalised` reflectance, 0 where there is no data."""
        weight, bias = self.kernel(bands)
        convolution = nn.Conv2d(len(bands), weight.shape[0], 3, stride=2, padding=1, device=weight.device, dtype=weight.dtype)
        convolution.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
        return convolution


class PatchStem(nn.Module):
    """Stem of stride 4: two convolutions of stride 2, each normalised; the first is fixed to three bands or takes any."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        width = config.dims[0]
        first = DisplayConvolution if config.stem == "fixed" else SpectralConvolution
        self.convolution1 = first(config, width // 2)
        self.norm1 = PixelNorm(width // 2, eps=EPS)
        self.convolution2 = nn.Conv2d(width // 2, width, 3, stride=2, padding=1)
        self.norm2 = PixelNorm(width, eps=EPS)

    def forward(self, reflectance: Tensor, valid: Tensor, bands: Sequence[str]) -> Tensor:
        """Return (n, dims[0], h / 4, w / 4)."""
        x = F.gelu(self.norm1(self.convolution1(reflectance, valid, bands)))
        stem: Tensor = self.norm2(self.convolution2(x))
        return stem


class InternImage(nn.Module):
    """Stem and four stages; returns the features at strides 4, 8, 16 and 32, and before them those at full resolution where masks are refined."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        dims, depths = tuple(config.dims), tuple(config.depths)
        self.entry = SpectralStem(config, config.fine_dim) if config.fine_dim else None
        self.stem = PatchStem(config)
        steps = max(sum(depths) - 1, 1)
        self.stages = nn.ModuleList()
        for k, (dim, depth, groups) in enumerate(zip(dims, depths, config.groups, strict=True)):
            before = sum(depths[:k])
            drops = [config.drop_path * (before + i) / steps for i in range(depth)]
            self.stages.append(nn.Sequential(*(DeformableBlock(dim, groups, config, drop) for drop in drops)))
        self.reduce = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), PixelNorm(b, eps=EPS)) for a, b in pairwise(dims)
        )

    def forward(self, reflectance: Tensor, valid: Tensor, bands: Sequence[str]) -> list[Tensor]:
        """Return the maps, finest first; those of the stages are (n, dims[i], h / 2**(i + 2), w / 2**(i + 2))."""
        maps = [] if self.entry is None else [self.entry(reflectance, valid, bands)]
        x = self.stem(reflectance, valid, bands)
        for k, stage in enumerate(self.stages):
            x = stage((self.reduce[k - 1](x) if k else x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            maps.append(x)
        return maps


class GroupAggregator(nn.Module):
    """Multiscale feature aggregation as published: every stage resized to stride 16, concatenated, mixed by a 1x1 convolution, normalised."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        self.mix = nn.Conv2d(sum(config.dims), config.aggregate_dim, 1)
        self.norm = nn.GroupNorm(config.aggregate_groups, config.aggregate_dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Return (n, aggregate_dim, h / 16, w / 16)."""
        first, second, third, fourth = maps[-4:]
        resized = [F.interpolate(each, third.shape[-2:], mode="bilinear", align_corners=True) for each in (first, second, fourth)]
        aggregated: Tensor = self.dropout(F.gelu(self.norm(self.mix(torch.cat([third, *resized], 1)))))
        return aggregated


class SkipBranch(nn.Module):
    """Brings the aggregated features back to full resolution over skips at strides 8, 4 and 1; shared by all classes."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        width = config.fine_dim
        self.lift8, self.skip8, self.block8 = nn.Conv2d(config.aggregate_dim, width, 1), nn.Conv2d(config.dims[1], width, 1), Block(width, config)
        self.skip4, self.block4 = nn.Conv2d(config.dims[0], width, 1), Block(width, config)
        self.skip1, self.norm1 = nn.Conv2d(width, width, 1), PixelNorm(width)
        self.last = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, aggregated: Tensor, maps: list[Tensor]) -> Tensor:
        """Return (n, fine_dim, h, w)."""
        x = self.block8(enlarge(self.lift8(aggregated)) + self.skip8(maps[2]))
        x = self.block4(enlarge(x) + self.skip4(maps[1]))
        x = F.gelu(self.norm1(enlarge(x, 4) + self.skip1(maps[0])))
        finest: Tensor = x + self.last(x)
        return finest
