"""A planner for runtimes that keep maps channels last: what works on the channels of a pixel is written as a 1x1 convolution.

PyTorch normalises and mixes channels on permuted views, which cost nothing there. In a compiled graph each permutation is a copy of the map, and they
were a third of OpenVINO's time; between convolutions no layout changes. The numbers are the same but for rounding.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.modeling import PixelProducts
from engine.modeling_vision import Block, PixelNorm
from engine.planner import Planner


class ConvolvedNorm(nn.Module):
    """LayerNorm over the channels of each pixel: mean and variance are 1x1 convolutions with constant weights."""

    centring: Tensor
    averaging: Tensor

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        channels = norm.normalized_shape[0]
        mean = torch.full((channels, channels), 1.0 / channels)
        self.register_buffer("centring", (torch.eye(channels) - mean)[:, :, None, None], persistent=False)
        self.register_buffer("averaging", mean[:1, :, None, None], persistent=False)
        self.weight, self.bias = _kernel(norm.weight[None]), _kernel(norm.bias[None])
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (n, c, h, w) over c."""
        centred = F.conv2d(x, self.centring)
        variance = F.conv2d(centred * centred, self.averaging)
        return centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class ConvolvedBlock(nn.Module):
    """A `Block` whose pointwise layers are 1x1 convolutions; the learned scale is part of the second one's weights."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.depthwise, self.norm = block.depthwise, ConvolvedNorm(block.norm)
        self.expand, self.expand_bias = _kernel(block.expand.weight), block.expand.bias
        self.project = _kernel(block.project.weight * block.layer_scale[:, None])
        self.project_bias = nn.Parameter((block.project.bias * block.layer_scale).detach())

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, dim, h, w) to the same shape."""
        y = F.gelu(F.conv2d(self.norm(self.depthwise(x)), self.expand, self.expand_bias))
        return x + F.conv2d(y, self.project, self.project_bias)


class ConvolvedProducts(nn.Module):
    """`PixelProducts` of one image as a convolution whose weights are the vectors of the classes."""

    def forward(self, fine: Tensor, vectors: Tensor) -> Tensor:
        """Return (1, K, H, W) of features (1, fine_dim, H, W) and vectors (1, K, fine_dim)."""
        return F.conv2d(fine, (vectors[0] / math.sqrt(fine.shape[1]))[:, :, None, None])


class ConvolvedEnlargement(nn.Module):
    """A transposed convolution whose kernel is as wide as its stride: each pixel becomes a square, by a 1x1 convolution and a shuffle.

    TensorRT-RTX has no transposed convolution in bfloat16.
    """

    def __init__(self, enlarge: nn.ConvTranspose2d) -> None:
        super().__init__()
        self.stride = enlarge.stride[0]
        each = self.stride**2
        self.weight = _kernel(enlarge.weight.permute(1, 2, 3, 0).reshape(enlarge.out_channels * each, enlarge.in_channels))
        self.bias = None if enlarge.bias is None else nn.Parameter(enlarge.bias.detach().repeat_interleave(each))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, h, w) to (n, d, stride h, stride w)."""
        return F.pixel_shuffle(F.conv2d(x, self.weight, self.bias), self.stride)


_FORMS: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    Block: ConvolvedBlock,
    PixelNorm: ConvolvedNorm,
    PixelProducts: lambda _: ConvolvedProducts(),
}


def convolved(planner: Planner) -> Planner:
    """Return a copy of a planner, for one window a call, that works on channels by convolutions only."""
    copied = copy.deepcopy(planner)
    _reform(copied, _FORMS)
    return copied


def without_transposed(planner: Planner) -> None:
    """Give every transposed convolution that is a `ConvolvedEnlargement` this form."""
    _reform(planner, {nn.ConvTranspose2d: lambda each: ConvolvedEnlargement(each) if each.kernel_size == each.stride else each})


def _reform(planner: Planner, forms: dict[type[nn.Module], Callable[[Any], nn.Module]]) -> None:
    for module in list(planner.modules()):
        for name, child in module.named_children():
            if type(child) in forms:
                setattr(module, name, forms[type(child)](child))


def _kernel(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach()[:, :, None, None].clone())
