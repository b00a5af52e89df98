"""SPEX: one model that answers an instruction about a spectral image with a text and a mask.

Reads top to bottom: prompts, condensation of the answer, mask decoder, the model, the planner that maps run. n images, K classes
asked, L tokens of text per class, N visual tokens, d the width of the mask decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Qwen2Config, Qwen2Model

from engine.configuration import SpexConfig
from engine.modeling_vision import Backbone, FineBranch, MultiscaleAggregator, PixelNorm, enlarge, masked_pool

LANGUAGE_FIXED: dict[str, Any] = {"tie_word_embeddings": True, "use_cache": False, "attn_implementation": "eager"}

MASKED = -1e4
"""Added to attention scores that must not count; finite, so that a row without any key stays a number, also in half precision."""


@dataclass
class Prompts:
    """Text of K classes for n images, packed: what the processor makes and the model reads."""

    tokens: Tensor
    """(n, K, L) int64: instruction, canonical answer, description, padding."""
    attention: Tensor
    """(n, K, L) bool: False where padded."""
    answer: Tensor
    """(n, K, L) bool: the tokens of the canonical answer, the only ones that reach the mask."""
    presence: Tensor
    """(n, K) int64: position of the last token before the answer, from which presence is read."""
    labels: Tensor
    """(n, K, L) int64: next-token targets at their own position, -100 where none."""

    def to(self, device: torch.device | str) -> Prompts:
        """Return the prompts on a device."""
        return Prompts(**{each.name: getattr(self, each.name).to(device) for each in fields(self)})

    def expand(self, n: int) -> Prompts:
        """Return prompts of one image repeated for n images."""
        return Prompts(**{each.name: getattr(self, each.name).expand(n, *getattr(self, each.name).shape[1:]) for each in fields(self)})


@dataclass
class SpexOutput:
    """What one pass gives."""

    logits: Tensor
    """(n, K, h, w): mask logits at full resolution; 0 is the logit of `other`."""
    presence: Tensor
    """(n, K): logit that the class is there at all."""
    text: Tensor | None
    """(n, K, L, vocabulary): next-token logits; None unless asked for."""


def condensation_weights(answer: Tensor, bins: int) -> Tensor:
    """Return the adaptive average of the answer's tokens as weights.

    Parameters
    ----------
    answer
        (..., L) bool, at least one True in each row.
    bins
        Number of condensed tokens; bin i averages answer tokens floor(i T / bins) to ceil((i + 1) T / bins), in text order.

    Returns
    -------
    Tensor
        (..., bins, L) float32, rows sum to one.
    """
    count = answer.sum(-1, keepdim=True)
    rank = (answer.cumsum(-1) - 1).unsqueeze(-2)
    index = torch.arange(bins, device=answer.device).unsqueeze(-1)
    start = index * count.unsqueeze(-2) // bins
    stop = -((-(index + 1) * count.unsqueeze(-2)) // bins)
    member = (answer.unsqueeze(-2) & (rank >= start) & (rank < stop)).float()
    return member / member.sum(-1, keepdim=True).clamp(min=1.0)


class ContextCondenser(nn.Module):
    """Token context condensation: hidden states of the answer averaged into few bins and projected to sparse prompts."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        hidden, dim = config.language["hidden_size"], config.decoder_dim
        self.bins = config.condensed_tokens
        self.project = nn.Sequential(nn.Linear(hidden, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))

    def forward(self, states: Tensor, answer: Tensor) -> Tensor:
        """Return sparse prompts (n, K, bins, d) of hidden states (n, K, L, hidden)."""
        return self.project(condensation_weights(answer, self.bins).to(states.dtype) @ states)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Multi-head attention of the mask decoder, keys and values at half width."""

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


class TwoWayBlock(nn.Module):
    """Tokens attend to themselves and to the image, then the image to the tokens."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        dim, heads = config.decoder_dim, config.decoder_heads
        self.self_attention = Attention(dim, heads, reduction=1)
        self.to_image, self.to_tokens = Attention(dim, heads), Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, config.decoder_mlp), nn.ReLU(), nn.Linear(config.decoder_mlp, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))

    def forward(self, tokens: Tensor, image: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Map tokens (b, t, d) and image (b, positions, d) to the same shapes."""
        tokens = self.norms[0](tokens + self.self_attention(tokens, tokens, tokens))
        tokens = self.norms[1](tokens + self.to_image(tokens, image, image, bias))
        tokens = self.norms[2](tokens + self.mlp(tokens))
        return tokens, self.norms[3](image + self.to_tokens(image, tokens, tokens))


class MaskDecoder(nn.Module):
    """Two-way mask decoder at stride 8 without positions: what a pixel is must not depend on where in the window it lies."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        dim = config.decoder_dim
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(TwoWayBlock(config) for _ in range(config.decoder_layers))
        self.coarse = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.fine = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, config.fine_dim))
        self.bias = nn.Linear(dim, 1)

    def forward(self, image: Tensor, valid: Tensor, sparse: Tensor, fine: Tensor) -> Tensor:
        """Return mask logits (n, K, h, w).

        Parameters
        ----------
        image, valid
            (n, d, h / 8, w / 8) and (n, 1, h / 8, w / 8), the latter the share of valid pixels.
        sparse
            (n, K, t, d) sparse prompts.
        fine
            (n, fine_dim, h, w) features at full resolution.
        """
        n, classes = sparse.shape[:2]
        height, width = image.shape[-2:]
        keys = image.flatten(2).transpose(1, 2).repeat_interleave(classes, 0)
        bias = ((valid.flatten(2) <= 0).to(image.dtype) * MASKED).unsqueeze(1).repeat_interleave(classes, 0)
        tokens = torch.cat([self.mask_token.to(sparse.dtype).expand(n * classes, -1, -1), sparse.flatten(0, 1)], 1)
        for block in self.blocks:
            tokens, keys = block(tokens, keys, bias)
        token = tokens[:, 0]
        coarse = (keys @ self.coarse(token).unsqueeze(-1)).reshape(n, classes, height, width) / math.sqrt(keys.shape[-1])
        vectors = self.fine(token).unflatten(0, (n, classes)).transpose(1, 2)
        details = (fine.permute(0, 2, 3, 1).flatten(1, 2) @ vectors / math.sqrt(fine.shape[1])).transpose(1, 2)
        logits: Tensor = enlarge(coarse, 8) + details.unflatten(2, tuple(fine.shape[-2:])) + self.bias(token).reshape(n, classes, 1, 1)
        return logits


class SpexForLandCover(PreTrainedModel):  # type: ignore[no-untyped-call]
    """SPEX: spectral image and instructions in, masks, presence and text out."""

    config_class = SpexConfig
    main_input_name = "reflectance"
    _supports_sdpa = False

    def __init__(self, config: SpexConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config)
        self.aggregator = MultiscaleAggregator(config)
        self.fine_branch = FineBranch(config)
        hidden, dim = config.language["hidden_size"], config.decoder_dim
        self.projector = nn.Sequential(nn.Linear(config.aggregate_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.neck = nn.Sequential(nn.Conv2d(config.aggregate_dim, dim, 1, bias=False), PixelNorm(dim))
        self.language = Qwen2Model(Qwen2Config(**config.language, **LANGUAGE_FIXED))
        self.presence_head = nn.Linear(hidden, 1)
        self.condenser = ContextCondenser(config)
        self.decoder = MaskDecoder(config)
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Leave PyTorch's own initialisation; the language model initialises itself."""

    def forward(self, reflectance: Tensor, prompts: Prompts, bands: Sequence[str], with_text: bool = False) -> SpexOutput:
        """Answer every prompt about every image in one packed pass.

        Parameters
        ----------
        reflectance
            (n, C, h, w) float32 surface reflectance, NaN = no data, h and w multiples of `config.stride`.
        prompts
            Text of K classes for each of the n images.
        bands
            Canonical names of the C channels.
        with_text
            Also return next-token logits.
        """
        valid = (~torch.isnan(reflectance)).any(1, keepdim=True).to(reflectance.dtype)
        filled = torch.nan_to_num(reflectance, nan=0.15)
        maps = self.backbone(filled.contiguous(memory_format=torch.channels_last), valid, bands)
        aggregated = self.aggregator(maps)
        coarse_valid = F.avg_pool2d(valid, 8)
        tokens, share = masked_pool(aggregated, coarse_valid, self.config.image_tokens)
        states = self.read(self.projector(tokens), share > 0, prompts)
        sparse = self.condenser(states, prompts.answer)
        logits = self.decoder(self.neck(aggregated), coarse_valid, sparse, self.fine_branch(aggregated, maps))
        before_answer = prompts.presence[..., None, None].expand(-1, -1, 1, states.shape[-1])
        presence = self.presence_head(states.gather(2, before_answer)).flatten(2).squeeze(2)
        text = F.linear(states, self.language.embed_tokens.weight) if with_text else None
        return SpexOutput(logits, presence, text)

    def read(self, visual: Tensor, seen: Tensor, prompts: Prompts) -> Tensor:
        """Return the language model's hidden states (n, K, L, hidden) of all prompts in one pass.

        The visual tokens (n, N, hidden) are a prefix that all classes share; each class sees the prefix and itself only, and its
        positions restart after the prefix, so that the pass equals K separate ones. `seen` (n, N) is False for cells without data.
        """
        n, classes, length = prompts.tokens.shape
        prefix = visual.shape[1]
        words = self.language.embed_tokens(prompts.tokens.flatten(1)).to(visual.dtype)
        steps = torch.arange(prefix + length, device=visual.device)
        positions = torch.cat([steps[:prefix], steps[prefix:].repeat(classes)]).expand(n, -1)
        allowed = packed_mask(prefix, classes, length, visual.device)
        keys = torch.cat([seen, prompts.attention.flatten(1)], 1)[:, None, None, :]
        itself = torch.eye(allowed.shape[0], dtype=torch.bool, device=visual.device)
        scores = (~(allowed & keys | itself)).to(visual.dtype) * MASKED
        states = self.language(inputs_embeds=torch.cat([visual, words], 1), attention_mask=scores, position_ids=positions).last_hidden_state
        return states[:, prefix:].unflatten(1, (classes, length))  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate_text(self, reflectance: Tensor, prompts: Prompts, bands: Sequence[str], end: int, longest: int = 40) -> list[list[list[int]]]:
        """Return the description that follows each canonical answer, by greedy decoding: token ids per image and class, without `end`.

        The prompts must be without padding or description. Masks need none of this; it is for reading.
        """
        start = prompts.tokens.shape[2]
        for _ in range(longest):
            text = self(reflectance, prompts, bands, with_text=True).text
            chosen = text[:, :, -1].argmax(-1, keepdim=True)
            prompts = _append(prompts, chosen)
        written = prompts.tokens[:, :, start:].tolist()
        return [[line[: line.index(end)] if end in line else line for line in image] for image in written]


def _append(prompts: Prompts, tokens: Tensor) -> Prompts:
    yes, no = torch.ones_like(tokens, dtype=torch.bool), torch.zeros_like(tokens, dtype=torch.bool)
    return Prompts(
        tokens=torch.cat([prompts.tokens, tokens], -1),
        attention=torch.cat([prompts.attention, yes], -1),
        answer=torch.cat([prompts.answer, no], -1),
        presence=prompts.presence,
        labels=torch.cat([prompts.labels, torch.full_like(tokens, -100)], -1),
    )


def packed_mask(prefix: int, classes: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """Return which token sees which, (S, S) bool with S = prefix + classes * length: causal, and classes do not see one another."""
    block = torch.cat([torch.full((prefix,), -1, device=device), torch.arange(classes, device=device).repeat_interleave(length)])
    order = torch.arange(len(block), device=device)
    same = (block[None, :] == -1) | (block[None, :] == block[:, None])
    return same & (order[None, :] <= order[:, None])


def probabilities(logits: Tensor) -> Tensor:
    """Return the softmax over K asked classes (n, K, h, w) and `other`, whose logit is 0; for K = 1 that is a sigmoid."""
    return torch.cat([logits, torch.zeros_like(logits[:, :1])], 1).softmax(1)[:, :-1]


class Planner(nn.Module):
    """The fixed graph of one band set and one list of classes: what maps run and exports compile.

    `offsets` are added to the K classes' logits: the calibration of the weights, 0 where there is none.
    """

    def __init__(self, model: SpexForLandCover, prompts: Prompts, bands: Sequence[str], offsets: Sequence[float] = ()) -> None:
        super().__init__()
        shift = torch.tensor(list(offsets) or [0.0] * prompts.tokens.shape[1], dtype=torch.float32)
        self.register_buffer("offsets", shift[:, None, None], persistent=False)
        self.model, self.bands, self.classes = model, tuple(bands), prompts.tokens.shape[1]
        for each in fields(prompts):
            self.register_buffer(each.name, getattr(prompts, each.name), persistent=False)

    def forward(self, reflectance: Tensor) -> Tensor:
        """Return probabilities (n, K, h, w) float32 of reflectance (n, C, h, w) float32, NaN = no data, h and w multiples of the stride.

        Pixels without data get some finite probability; the caller masks them.
        """
        return self.predict(reflectance)[0]

    def predict(self, reflectance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities of `forward` and the probability that each class is there at all (n, K)."""
        prompts = Prompts(**{each.name: getattr(self, each.name) for each in fields(Prompts)}).expand(reflectance.shape[0])
        output = self.model(reflectance, prompts, self.bands)
        return probabilities(output.logits.float() + self.offsets), output.presence.float().sigmoid()
