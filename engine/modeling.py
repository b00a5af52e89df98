"""SPEX: one model that answers an instruction about a spectral image with a text and a mask.

Reads top to bottom: prompts, condensation of the answer, mask decoder, the model, the planner that maps run. n images, K classes
asked, L tokens of text per class, N visual tokens, d the width of the mask decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedModel

from engine.configuration import InvalidConfiguration, SpexConfig
from engine.modeling_internimage import GroupAggregator, InternImage, SkipBranch
from engine.modeling_sam import MASKED, Attention, SamMaskDecoder, keys_of, mask_neck
from engine.modeling_vision import MEAN, Backbone, FineBranch, MultiscaleAggregator, PixelNorm, enlarge, visual_tokens

LANGUAGE_DEFAULTS: dict[str, Any] = {"model_type": "qwen2", "tie_word_embeddings": True, "use_cache": False, "attn_implementation": "eager"}
"""What `config.language` need not say."""


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


@dataclass
class Seen:
    """What the model sees in n images before anything is asked."""

    aggregated: Tensor
    """(n, aggregate_dim, h / s, w / s) at the feature stride s."""
    fine: Tensor | None
    """(n, fine_dim, h, w); None where masks are not refined."""
    valid: Tensor
    """(n, 1, h, w): 1 where there is data, else 0."""
    coarse_valid: Tensor
    """(n, 1, h / s, w / s): share of valid pixels."""
    tokens: Tensor
    """(n, N, hidden): visual tokens in the width of the language model."""
    share: Tensor
    """(n, N): share of valid pixels of each token."""


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
        inner = tuple(config.condenser_dims) or (2 * config.decoder_dim,)
        widths = (config.language["hidden_size"], *inner, config.decoder_dim)
        self.bins = config.condensed_tokens
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.project = nn.Sequential(*layers[:-1])

    def forward(self, states: Tensor, answer: Tensor) -> Tensor:
        """Return sparse prompts (n, K, bins, d) of hidden states (n, K, L, hidden)."""
        return self.project(condensation_weights(answer, self.bins).to(states.dtype) @ states)  # type: ignore[no-any-return]


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


class PixelProducts(nn.Module):
    """Scaled products of every pixel's features with one vector for each class."""

    def forward(self, fine: Tensor, vectors: Tensor) -> Tensor:
        """Return (n, K, H, W) of features (n, fine_dim, H, W) and vectors (n, K, fine_dim)."""
        products = fine.permute(0, 2, 3, 1).flatten(1, 2) @ vectors.transpose(1, 2) / math.sqrt(fine.shape[1])
        return products.transpose(1, 2).reshape(*vectors.shape[:2], *fine.shape[-2:])


class MaskDecoder(nn.Module):
    """Two-way mask decoder without positions: what a pixel is must not depend on where in the window it lies."""

    def __init__(self, config: SpexConfig) -> None:
        super().__init__()
        dim, self.scale = config.decoder_dim, config.feature_stride
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(TwoWayBlock(config) for _ in range(config.decoder_layers))
        self.coarse = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.fine = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, config.fine_dim)) if config.fine_dim else None
        self.products, self.bias = PixelProducts(), nn.Linear(dim, 1)

    def forward(self, image: Tensor, valid: Tensor, sparse: Tensor, fine: Tensor | None = None) -> Tensor:
        """Return mask logits (n, K, H, W) at full resolution.

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
        height, width = image.shape[-2:]
        keys, bias = keys_of(image, valid, classes)
        tokens = torch.cat([self.mask_token.to(sparse.dtype).expand(n * classes, -1, -1), sparse.flatten(0, 1)], 1)
        for block in self.blocks:
            tokens, keys = block(tokens, keys, bias)
        token = tokens[:, 0]
        coarse = (keys @ self.coarse(token).unsqueeze(-1)).reshape(n, classes, height, width) / math.sqrt(keys.shape[-1])
        bias_of_class = self.bias(token).reshape(n, classes, 1, 1)
        if fine is None or self.fine is None:
            plain: Tensor = enlarge(coarse, self.scale) + bias_of_class
            return plain
        refined: Tensor = enlarge(coarse, self.scale) + self.products(fine, self.fine(token).unflatten(0, (n, classes))) + bias_of_class
        return refined


class SpexForLandCover(PreTrainedModel):  # type: ignore[no-untyped-call]
    """SPEX: spectral image and instructions in, masks, presence and text out."""

    config_class = SpexConfig
    main_input_name = "reflectance"
    _supports_sdpa = False

    def __init__(self, config: SpexConfig) -> None:
        super().__init__(config)
        deformable, sam = config.backbone == "internimage", config.decoder == "sam"
        hidden, dim = config.language["hidden_size"], config.decoder_dim
        self.backbone = InternImage(config) if deformable else Backbone(config)
        self.aggregator = GroupAggregator(config) if deformable else MultiscaleAggregator(config)
        self.fine_branch = (SkipBranch(config) if deformable else FineBranch(config)) if config.fine_dim else None
        self.projector = nn.Sequential(nn.Linear(config.aggregate_dim, hidden), nn.GELU(), nn.Linear(hidden, hidden))
        self.neck = mask_neck(config) if sam else nn.Sequential(nn.Conv2d(config.aggregate_dim, dim, 1, bias=False), PixelNorm(dim))
        self.language = language_model(config)
        self.text_head = None if self.language.config.tie_word_embeddings else nn.Linear(hidden, config.language["vocab_size"], bias=False)
        self.presence_head = nn.Linear(hidden, 1) if config.presence_head else None
        self.condenser = ContextCondenser(config)
        self.decoder = SamMaskDecoder(config) if sam else MaskDecoder(config)
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
        seen = self.see(reflectance, bands)
        states = self.read(seen.tokens, seen.share > 0, prompts)
        sparse = self.condenser(states, prompts.answer)
        logits = self.decoder(self.neck(seen.aggregated), seen.coarse_valid, sparse, seen.fine)
        presence = self._presence(states, logits, seen.valid, prompts)
        return SpexOutput(logits, presence, self._words(states) if with_text else None)

    def see(self, reflectance: Tensor, bands: Sequence[str]) -> Seen:
        """Return what the model sees in reflectance (n, C, h, w), NaN = no data; it does not depend on what is asked."""
        known = reflectance.abs() < math.inf  # one comparison, where isnan and nan_to_num become five slow operations of a compiled graph
        valid = known.any(1, keepdim=True).to(self.dtype)
        filled = torch.where(known, reflectance, MEAN)
        maps = self.backbone(filled.contiguous(memory_format=torch.channels_last), valid, bands)
        aggregated = self.aggregator(maps)
        coarse_valid = F.avg_pool2d(valid, self.config.feature_stride)
        tokens, share = visual_tokens(aggregated, coarse_valid, self.config.image_tokens)
        fine = None if self.fine_branch is None else self.fine_branch(aggregated, maps)
        return Seen(aggregated, fine, valid, coarse_valid, self.projector(tokens), share)

    def _presence(self, states: Tensor, logits: Tensor, valid: Tensor, prompts: Prompts) -> Tensor:
        if self.presence_head is None:
            return torch.where(valid > 0, logits, MASKED).flatten(2).amax(-1)
        before_answer = prompts.presence[..., None, None].expand(-1, -1, 1, states.shape[-1])
        presence: Tensor = self.presence_head(states.gather(2, before_answer)).flatten(2).squeeze(2)
        return presence

    def _words(self, states: Tensor) -> Tensor:
        if self.text_head is not None:
            return self.text_head(states)  # type: ignore[no-any-return]
        return F.linear(states, self.language.get_input_embeddings().weight)  # type: ignore[arg-type]

    def read(self, visual: Tensor, seen: Tensor, prompts: Prompts) -> Tensor:
        """Return the language model's hidden states (n, K, L, hidden) of all prompts in one pass.

        The preamble and the visual tokens (n, N, hidden) are a prefix that all classes share; each class sees the prefix and itself only, and
        its positions restart after the prefix, so that the pass equals K separate ones. `seen` (n, N) is False for cells without data.
        """
        n, classes, length = prompts.tokens.shape
        embed = self.language.get_input_embeddings()
        words = embed(prompts.tokens.flatten(1)).to(visual.dtype)
        if self.config.preamble:
            before = embed(torch.tensor(list(self.config.preamble), device=visual.device)).to(visual.dtype).expand(n, -1, -1)
            visual, seen = torch.cat([before, visual], 1), torch.cat([torch.ones_like(before[..., 0], dtype=torch.bool), seen], 1)
        prefix = visual.shape[1]
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
        start, seen = prompts.tokens.shape[2], self.see(reflectance, bands)
        for _ in range(longest):
            states = self.read(seen.tokens, seen.share > 0, prompts)
            chosen = self._words(states[:, :, -1]).argmax(-1, keepdim=True)
            prompts = _append(prompts, chosen)
            if (prompts.tokens[:, :, start:] == end).any(-1).all():
                break
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


def language_model(config: SpexConfig) -> PreTrainedModel:
    """Return the causal language model that `config.language` describes, without its head; raises `InvalidConfiguration` for an unknown type."""
    described = {**LANGUAGE_DEFAULTS, **config.language}
    kind, attention = described.pop("model_type"), described.pop("attn_implementation")
    try:
        language = AutoConfig.for_model(kind, **described)
    except ValueError as error:
        raise InvalidConfiguration(f"language: transformers has no model_type {kind!r}") from error
    return AutoModel.from_config(language, attn_implementation=attention)  # type: ignore[no-untyped-call,no-any-return]


def fuse_attention(model: SpexForLandCover) -> None:
    """Let the language model attend in fused kernels where its architecture has them: a training step takes two thirds of the time.

    Results differ from those of the plain formula by rounding; maps and exports keep the plain one.
    """
    if model.language._supports_sdpa:
        model.language.set_attn_implementation("sdpa")


def packed_mask(prefix: int, classes: int, length: int, device: torch.device | str = "cpu") -> Tensor:
    """Return which token sees which, (S, S) bool with S = prefix + classes * length: causal, and classes do not see one another."""
    block = torch.cat([torch.full((prefix,), -1, device=device), torch.arange(classes, device=device).repeat_interleave(length)])
    order = torch.arange(len(block), device=device)
    same = (block[None, :] == -1) | (block[None, :] == block[:, None])
    return same & (order[None, :] <= order[:, None])
