"""Configuration of SPEX: every size and every constant that the weights depend on."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from transformers import PreTrainedConfig

DEFAULT_ANCHORS = (0.443, 0.490, 0.560, 0.660, 0.704, 0.740, 0.783, 0.850, 0.945, 1.250, 1.610, 2.200)
DEFAULT_INDICES = ("NDVI", "NDWI", "MNDWI", "NDBI", "NGRDI", "NDMIR")
DEFAULT_CLASSES: tuple[dict[str, Any], ...] = (
    {"name": "vegetation", "title": "Vegetation", "color": "#1a9641", "threshold": 0.35},
    {"name": "building", "title": "Building", "color": "#d7191c", "threshold": 0.35},
    {"name": "water", "title": "Water", "color": "#2b83ba", "threshold": 0.35},
    {"name": "bare", "title": "Bare ground", "color": "#c8ad7f", "threshold": 0.35},
)


class SpexConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Sizes of a SPEX model; the defaults are spex-small.

    The stem interpolates its kernels between `anchors` (wavelengths in micrometres); `indices` enter it as pseudo-bands. `dims` are the
    widths of the backbone at strides 1, 2, 4, 8 and 16, `depths` its blocks there. The mask decoder works at stride 8.
    """

    model_type = "spex"

    name: str = "spex-small"
    bands: list[str] | tuple[str, ...] = ("blue", "green", "red", "nir", "swir16", "swir22")
    required_bands: list[str] | tuple[str, ...] = ("blue", "green", "red")
    classes: list[dict[str, Any]] | tuple[dict[str, Any], ...] = field(default_factory=lambda: [dict(each) for each in DEFAULT_CLASSES])
    anchors: list[float] | tuple[float, ...] = DEFAULT_ANCHORS
    anchor_reach: float = 0.25
    indices: list[str] | tuple[str, ...] = DEFAULT_INDICES
    dims: list[int] | tuple[int, ...] = (32, 48, 96, 160, 224)
    depths: list[int] | tuple[int, ...] = (0, 1, 2, 4, 2)
    expansion: int = 3
    kernel_size: int = 7
    aggregate_dim: int = 160
    image_tokens: int = 8
    """Side of the grid of visual tokens that the language model sees; the window is pooled to it, whatever its size."""
    language: dict[str, Any] = field(
        default_factory=lambda: {
            "vocab_size": 1024,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
        }
    )
    condensed_tokens: int = 4
    decoder_dim: int = 128
    decoder_heads: int = 4
    decoder_layers: int = 2
    decoder_mlp: int = 256
    fine_dim: int = 32
    stride: int = 16
    """Height and width are padded to a multiple of this."""
