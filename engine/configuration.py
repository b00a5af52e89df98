"""Configuration of SPEX: every size and every constant that the weights depend on."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

from transformers import PreTrainedConfig

from engine.bands import BANDS
from spexmap import SpexmapError

RGB = ("red", "green", "blue")

DEFAULT_ANCHORS = (0.443, 0.490, 0.560, 0.660, 0.704, 0.740, 0.783, 0.850, 0.945, 1.250, 1.610, 2.200)
DEFAULT_INDICES = ("NDVI", "NDWI", "MNDWI", "NDBI", "NGRDI", "NDMIR")
DEFAULT_CLASSES: tuple[dict[str, Any], ...] = (
    {"name": "vegetation", "title": "Vegetation", "color": "#1a9641", "threshold": 0.35},
    {"name": "building", "title": "Building", "color": "#d7191c", "threshold": 0.35},
    {"name": "water", "title": "Water", "color": "#2b83ba", "threshold": 0.35},
    {"name": "bare", "title": "Bare ground", "color": "#c8ad7f", "threshold": 0.35},
    {"name": "tree_cover", "title": "Tree cover", "color": "#006400", "threshold": 0.35, "parent": "vegetation"},
    {"name": "cropland", "title": "Cropland", "color": "#f096ff", "threshold": 0.35, "parent": "vegetation"},
    {"name": "grass_or_shrub", "title": "Grass or shrub", "color": "#d9ef8b", "threshold": 0.35, "parent": "vegetation"},
    {"name": "wetland", "title": "Wetland", "color": "#0096a0", "threshold": 0.35, "parent": "vegetation"},
)


PRESETS: dict[str, dict[str, Any]] = {
    "spex-small": {},
    "spex-1.8b": {
        "name": "spex-1.8b",
        "bands": "fixed",
        "backbone": "internimage",
        "dims": [160, 320, 640, 1280],
        "depths": [5, 5, 22, 5],
        "groups": [10, 20, 40, 80],
        "expansion": 4,
        "drop_path": 0.4,
        "aggregate_dim": 1024,
        "aggregate_groups": 16,
        "dropout": 0.5,
        "image_tokens": 0,
        "language": {
            "model_type": "qwen2",
            "vocab_size": 151936,
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
        "presence_head": False,
        "condenser_dims": [2048, 512],
        "decoder": "sam",
        "decoder_dim": 256,
        "decoder_heads": 8,
        "decoder_mlp": 2048,
        "fine_dim": 0,
        "stride": 32,
    },
}
"""What each preset changes against the defaults."""

CHOICES = {"stem": ("wavelength", "fixed"), "backbone": ("convolutional", "internimage"), "decoder": ("positionless", "sam")}


class InvalidConfiguration(SpexmapError, ValueError):
    """Sizes or choices of a model that do not fit each other, or a preset that does not exist."""


class SpexConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """Sizes of a SPEX model; the defaults are spex-small, `SpexConfig.preset("spex-1.8b")` is the published size.

    The wavelength stem interpolates its kernels between `anchors` (wavelengths in micrometres); in the convolutional backbone `indices` enter it as
    pseudo-bands. `dims` are the widths of the backbone's stages and `depths` its blocks there: at strides 1, 2, 4, 8 and 16 for `convolutional`, at
    4, 8, 16 and 32 for `internimage`. The mask decoder works at stride 8 behind the first and at stride 16 behind the second.

    Raises
    ------
    InvalidConfiguration
        A choice that does not exist, or sizes that do not fit each other.
    """

    model_type = "spex"

    name: str = "spex-small"
    bands: str | list[str] | tuple[str, ...] = ("blue", "green", "red", "nir", "swir16", "swir22")
    """Bands that the weights were trained on; ``"fixed"`` is short for red, green and blue with `stem` ``"fixed"``."""
    required_bands: list[str] | tuple[str, ...] = ("blue", "green", "red")
    classes: list[dict[str, Any]] | tuple[dict[str, Any], ...] = field(default_factory=lambda: [dict(each) for each in DEFAULT_CLASSES])
    class_sets: list[dict[str, Any]] | tuple[dict[str, Any], ...] = ()
    """Sets of classes that fine-tuning has taught, oldest first, each with weights of its own: names under ``added`` (classes that the model did not
    know) and ``labelled`` (all of the user's labels)."""
    stem: str = "wavelength"
    """``wavelength``: any band set; ``fixed``: red, green and blue, in front of `internimage` only."""
    anchors: list[float] | tuple[float, ...] = DEFAULT_ANCHORS
    anchor_reach: float = 0.25
    indices: list[str] | tuple[str, ...] = DEFAULT_INDICES
    display_white: float = 1.0
    """Reflectance that the fixed stem takes as full white; 1 where images come as numbers 0..1 already."""
    display_mean: list[float] | tuple[float, ...] = (0.485, 0.456, 0.406)
    display_scale: list[float] | tuple[float, ...] = (0.229, 0.224, 0.225)
    """Mean and standard deviation of red, green and blue (ImageNet's) by which the fixed stem normalises."""
    backbone: str = "convolutional"
    dims: list[int] | tuple[int, ...] = (32, 48, 96, 160, 224)
    depths: list[int] | tuple[int, ...] = (0, 1, 2, 4, 2)
    groups: list[int] | tuple[int, ...] = ()
    """Groups of the deformable convolutions of each stage; of `internimage` only, as are the next two."""
    offset_scale: float = 2.0
    drop_path: float = 0.0
    """Share of samples that skip the last block in training; grows linearly over the blocks."""
    expansion: int = 3
    kernel_size: int = 7
    aggregate_dim: int = 160
    aggregate_groups: int = 16
    """Groups of the aggregator's GroupNorm behind `internimage`."""
    dropout: float = 0.0
    """Of the aggregator, in training."""
    image_tokens: int = 8
    """Side of the grid of visual tokens that the language model sees; the window is pooled to it, whatever its size. 0: every position of the
    aggregated map is a token."""
    preamble: list[int] | tuple[int, ...] = ()
    """Ids of the tokens that come before the visual tokens, the same for every class."""
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
    """Configuration of the causal language model in the words of transformers; `model_type` names any of its architectures, by default qwen2."""
    presence_head: bool = True
    """False: a class counts as present as far as its largest mask logit says so."""
    condensed_tokens: int = 4
    condenser_dims: list[int] | tuple[int, ...] = ()
    """Hidden widths of the condenser; none given: one of twice `decoder_dim`."""
    decoder: str = "positionless"
    decoder_dim: int = 128
    decoder_heads: int = 4
    decoder_layers: int = 2
    decoder_mlp: int = 256
    fine_dim: int = 32
    """Width of the features at full resolution that refine the masks over skips; 0 leaves them at the decoder's own resolution."""
    stride: int = 16
    """Height and width are padded to a multiple of this."""

    def __post_init__(self, **kwargs: Any) -> None:
        """Spell out ``bands: fixed`` and refuse what does not fit."""
        self._check_choices()
        if self.bands == "fixed":
            self.bands, self.required_bands, self.stem = list(RGB), list(RGB), "fixed"
        self._check()
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    def _check_choices(self) -> None:
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise InvalidConfiguration(f"{key} {getattr(self, key)!r} does not exist; give {' or '.join(known)}")

    def _check(self) -> None:
        stages = 4 if self.backbone == "internimage" else 5
        if not len(self.dims) == len(self.depths) == stages:
            raise InvalidConfiguration(f"a backbone {self.backbone} has {stages} stages, but dims are {self.dims} and depths {self.depths}")
        if self.backbone == "internimage" and (len(self.groups) != stages or any(d % g for d, g in zip(self.dims, self.groups, strict=False))):
            raise InvalidConfiguration(f"groups {self.groups} do not divide dims {self.dims}: give one number a stage that divides its width")
        if self.backbone == "convolutional" and self.stem == "fixed":
            raise InvalidConfiguration("the fixed three-band stem goes in front of the backbone internimage; the convolutional one takes any bands")
        if self.stride % (32 if self.backbone == "internimage" else 16):
            raise InvalidConfiguration(f"stride {self.stride} is not a multiple of what the backbone {self.backbone} halves its input to")

    @property
    def feature_stride(self) -> int:
        """Stride of the aggregated map, on which the mask decoder works."""
        return 16 if self.backbone == "internimage" else 8

    @classmethod
    def preset(cls, name: str, **changes: Any) -> SpexConfig:
        """Return the configuration of a preset with some fields changed.

        Parameters
        ----------
        name
            ``spex-small`` (small enough for a CPU) or ``spex-1.8b`` (the published sizes; InternImage-L and Qwen2.5-1.5B).
        **changes
            Fields of this class. ``stem="wavelength"`` without `bands` takes the default bands where the preset's are ``"fixed"``.

        Raises
        ------
        InvalidConfiguration
            There is no such preset, field or band, or sizes or choices do not fit each other.
        """
        if name not in PRESETS:
            raise InvalidConfiguration(f"no preset {name!r}; there are {', '.join(PRESETS)}")
        for field_name in changes:
            check_field(field_name)
        given = copy.deepcopy(PRESETS[name])
        if given.get("bands") == "fixed" and changes.get("stem") == "wavelength" and "bands" not in changes:
            del given["bands"]
        given |= changes
        _check_bands(given, changes)
        return cls(**given)


def check_field(name: str) -> None:
    """Raise `InvalidConfiguration`, with the nearest that there is, where `name` is no field of a model's configuration.

    For what people write; a config.json holds fields of transformers as well.
    """
    fields = [each for each in SpexConfig.__annotations__ if not each.startswith("_")]
    if name not in fields:
        raise InvalidConfiguration(f"a model has no field {name!r}; {_nearest(name, fields)}")


def _check_bands(given: Mapping[str, Any], changes: Mapping[str, Any]) -> None:
    """Raise `InvalidConfiguration` where bands do not exist, or do not go with the stem that was asked for."""
    for key in ("bands", "required_bands"):
        if not (key == "bands" and given.get(key) == "fixed"):
            _check_band_names(key, given.get(key, ()))
    stem, bands = changes.get("stem"), given.get("bands")
    if stem == "wavelength" and bands == "fixed":
        raise InvalidConfiguration("bands 'fixed' is the fixed stem's word for red, green and blue; give stem wavelength a list of bands")
    if stem == "fixed" and bands != "fixed" and set(bands or ()) != set(RGB):
        raise InvalidConfiguration("stem fixed sees red, green and blue only; give bands: fixed, or stem: wavelength for other bands")


def _check_band_names(key: str, names: Any) -> None:
    known = [band.name for band in BANDS]
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise InvalidConfiguration(f"{key} is {names!r}; give a list of band names{', or fixed' if key == 'bands' else ''}")
    for name in names:
        if name not in known:
            raise InvalidConfiguration(f"{key}: there is no band {name!r}; {_nearest(str(name), known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    """Return a question about the nearest known name, or all of them where none is near."""
    near = difflib.get_close_matches(name.lower(), list(known), 1, 0.55)
    return f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
