"""Mask decoder in the manner of Segment Anything: two-way attention with image positions, four masks, their quality, up-scaling, hypernetworks.

Kirillov et al., Segment Anything, ICCV 2023 (arXiv 2304.02643). Here n images, K classes asked, b = n K, d the width of the decoder.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.configuration import SpexConfig
from engine.modeling_vision import PixelNorm, enlarge

MASKED = -1e4
"""Added to attention scores that must not count; finite, so that a row without any key stays a number, also in half precision."""

EPS = 1e-6
MASKS = 4
"""Mask tokens: the one that is used, and the three of SAM's ambiguous prompts."""


class Attention(nn.Module):
    """Multi-head attention of the mask decoders, keys and values at half width."""

    def __init__(self, dim: int, heads: int, reduction: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim // reduction) for _ in range(3))
        self.out = nn.Linear(dim // reduction, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return (b, queries, dim); `bias` (b, 1, 1, keys) is added to the scores."""
        q, k, v = (self._split(layer(x)) for layer, x in ((self.query, query), (self.key, key), (self.value, value)))
        # Few tokens against many pixels: plain products are twice as fast here as the fused kernel, forward and backward.
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        mixed = (scores if bias is None else scores + bias.to(q.dtype)).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], self.heads, x.shape[2] // self.heads).transpose(1, 2)


def keys_of(image: Tensor, valid: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return an image's map (n, d, h, w) as keys (n K, h w, d) for K classes, and the bias (n K, 1, 1, h w) against positions without data."""
    keys = image.flatten(2).transpose(1, 2).repeat_interleave(classes, 0)
    bias = ((valid.flatten(2) <= 0).to(image.dtype) * MASKED).unsqueeze(1).repeat_interleave(classes, 0)
    return keys, bias


class PositionedBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens; both carry their positions into every product."""

    def __init__(self, config: SpexConfig, first: bool) -> None:
        super().__init__()
        dim, heads, self.first = config.decoder_dim, config.decoder_heads, first
        self.self_attention = Attention(dim, heads, reduction=1)
        self.to_image, self.to_tokens = Attention(dim, heads), Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, config.decoder_mlp), nn.ReLU(), nn.Linear(config.decoder_mlp, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim, eps=EPS) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, names: Tensor, positions: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (b, t, d) and image (b, h w, d) to the same shapes; `names` (b, t, d) and `positions` (h w, d) are their positions."""
        query = tokens if self.first else tokens + names
        mixed = self.self_attention(query, query, tokens)
        tokens = self.norms[0](mixed if self.first else tokens + mixed)
        tokens = self.norms[1](tokens + self.to_image(tokens + names, image + positions, image, bias))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        return tokens, self.norms[3](image + self.to_tokens(image + positions, tokens + names, tokens))


def perceptron(entry: int, inner: int, out: int) -> nn.Sequential:
    """Return three linear layers with ReLU between them."""
    return nn.Sequential(nn.Linear(entry, inner), nn.ReLU(), nn.Linear(inner, inner), nn.ReLU(), nn.Linear(inner, out))


class SamMaskDecoder(nn.Module):
    """Mask decoder of the published SPEX; the first of its masks is the answer."""

    frequencies: Tensor

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.scale = config.feature_stride // 4
        self.iou_token, self.mask_tokens = nn.Parameter(torch.randn(1, dim)), nn.Parameter(torch.randn(MASKS, dim))
        self.no_mask = nn.Parameter(torch.randn(1, dim) * 0.02)
        self.register_buffer("frequencies", torch.randn(2, dim // 2))
        self.blocks = nn.ModuleList(PositionedBlock(config, first=i == 0) for i in range(config.decoder_layers))
        self.last_attention, self.last_norm = Attention(dim, config.decoder_heads), nn.LayerNorm(dim)
        self.enlarge1, self.enlarge2 = nn.ConvTranspose2d(dim, dim // 4, 2, stride=2), nn.ConvTranspose2d(dim // 4, dim // 8, 2, stride=2)
        self.enlarge_norm = PixelNorm(dim // 4, eps=EPS)
        self.hypernetworks = nn.ModuleList(perceptron(dim, dim, dim // 8) for _ in range(MASKS))
        self.quality = perceptron(dim, dim, MASKS)
        self.fine = perceptron(dim, dim, config.fine_dim) if config.fine_dim else None

    def forward(self, image: Tensor, valid: Tensor, sparse: Tensor, fine: Tensor | None = None) -> Tensor:
        """Return mask logits (n, K, H, W) at full resolution: those of stride 4 resized, refined by `fine` where it is there.

        Parameters
        ----------
        image, valid
            (n, d, h, w) and (n, 1, h, w) at the feature stride, the latter the share of valid pixels.
        sparse
            (n, K, t, d) sparse prompts.
        fine
            (n, fine_dim, H, W) features at full resolution.
        """
        n, classes = sparse.shape[:2]
        tokens, upscaled = self._attend(image, valid, sparse)
        token = tokens[:, 1]
        masks = torch.einsum("bc,bchw->bhw", self.hypernetworks[0](token), upscaled)
        logits = enlarge(masks.reshape(n, classes, *upscaled.shape[-2:]), self.scale)
        if fine is None or self.fine is None:
            return logits
        vectors = self.fine(token).reshape(n, classes, -1) / math.sqrt(fine.shape[1])
        return logits + torch.einsum("nkc,nchw->nkhw", vectors, fine)

    def all_masks(self, image: Tensor, valid: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of all four masks (n, K, 4, 4 h, 4 w) and the intersection over union that the decoder expects of each (n, K, 4)."""
        shape = (*sparse.shape[:2], MASKS)
        tokens, upscaled = self._attend(image, valid, sparse)
        vectors = torch.stack([network(tokens[:, 1 + k]) for k, network in enumerate(self.hypernetworks)], 1)
        masks = torch.einsum("bmc,bchw->bmhw", vectors, upscaled)
        return masks.reshape(*shape, *masks.shape[-2:]), self.quality(tokens[:, 0]).reshape(shape)

    def _attend(self, image: Tensor, valid: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (b, 1 + 4 + t, d) after all blocks and the image up-scaled four times (b, d / 8, 4 h, 4 w)."""
        size = image.shape[-2:]
        keys, bias = keys_of(image + self.no_mask[..., None, None], valid, sparse.shape[1])
        positions = self.positions(*size).to(image.dtype)
        own = torch.cat([self.iou_token, self.mask_tokens]).to(sparse.dtype)
        names = tokens = torch.cat([own.expand(keys.shape[0], -1, -1), sparse.flatten(0, 1)], 1)
        for block in self.blocks:
            tokens, keys = block(tokens, keys, names, positions, bias)
        tokens = self.last_norm(tokens + self.last_attention(tokens + names, keys + positions, keys, bias))
        upscaled = F.gelu(self.enlarge_norm(self.enlarge1(keys.transpose(1, 2).reshape(keys.shape[0], -1, *size))))
        return tokens, F.gelu(self.enlarge2(upscaled))

    def positions(self, height: int, width: int) -> Tensor:
        """Return random Fourier features (h w, d) of the pixels' centres, which run from -1 to 1 in both directions."""
        exact = torch.promote_types(self.frequencies.dtype, torch.float32)
        y, x = (2.0 * (torch.arange(size, device=self.frequencies.device, dtype=exact) + 0.5) / size - 1.0 for size in (height, width))
        places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
        angles = 2.0 * math.pi * (places.flatten(0, 1) @ self.frequencies.to(exact))
        return torch.cat([angles.sin(), angles.cos()], -1)


def mask_neck(config: SpexConfig) -> nn.Sequential:
    """Return what brings the aggregated map to the mask decoder: a 1x1 and a 3x3 convolution, each normalised per pixel."""
    dim = config.decoder_dim
    first, second = nn.Conv2d(config.aggregate_dim, dim, 1, bias=False), nn.Conv2d(dim, dim, 3, padding=1, bias=False)
    return nn.Sequential(first, PixelNorm(dim, eps=EPS), second, PixelNorm(dim, eps=EPS))
