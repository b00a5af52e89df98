"""Import of the published SPEX checkpoint: every key is mapped by name and shape, nothing may be missing and nothing left over.

The names and shapes are facts of the published code. The published weights could not be had when this was written: the import is tested on
checkpoints of the same names and shapes, not on the weights themselves.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.bands import check_bands
from engine.configuration import RGB, SpexConfig
from engine.modeling import Prompts, SpexForLandCover
from engine.modeling_internimage import DisplayConvolution, SpectralConvolution
from spexmap import SpexmapError

Shape = tuple[int, ...]

TOWER = "model.vision_tower"
VISION = f"{TOWER}.vision_tower.vision_model"
PROMPTER = f"{TOWER}.sampromptencoder"
DECODER = f"{TOWER}.mask_decoder"

BLOCK = {
    "deform.depthwise": "dcn.dw_conv.0",
    "deform.norm": "dcn.dw_conv.1.1",
    "deform.offset": "dcn.offset",
    "deform.mask": "dcn.mask",
    "deform.project_in": "dcn.input_proj",
    "deform.project_out": "dcn.output_proj",
    "norm1": "norm1.0",
    "norm2": "norm2.0",
    "expand": "mlp.fc1",
    "project": "mlp.fc2",
    "layer_scale1": "weight1",
    "layer_scale2": "weight2",
}
"""Parts of a block of the backbone."""

TWO_WAY = {
    "self_attention": "self_attn",
    "to_image": "cross_attn_token_to_image",
    "to_tokens": "cross_attn_image_to_token",
}
PERCEPTRON = {"0": "proj_in", "2": "layers.0", "4": "proj_out"}

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
LANGUAGE_SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
)

BEFORE_IMAGE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
BEFORE_ANSWER = "<|im_end|>\n<|im_start|>assistant\n"


class CheckpointRefused(SpexmapError, ValueError):
    """A checkpoint that cannot be read, or whose keys or shapes are not those of the published SPEX; `refusals` names each."""

    def __init__(self, message: str, refusals: tuple[str, ...] = ()) -> None:
        super().__init__(": ".join((message, "; ".join(refusals))) if refusals else message)
        self.refusals = refusals


@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint, not read yet."""

    shape: Shape
    read: Callable[[], Tensor]


def official_names(config: SpexConfig) -> dict[str, str]:
    """Return the published name of each module (or parameter that stands alone) of a model of this configuration."""
    names = {
        "aggregator.mix": f"{VISION}.feat_aggregator.fuse_all.0",
        "aggregator.norm": f"{VISION}.feat_aggregator.fuse_all.1",
        "text_head": "lm_head",
    }
    for k in (1, 2):
        names[f"backbone.stem.convolution{k}"] = f"{VISION}.patch_embed.conv{k}"
        names[f"backbone.stem.norm{k}"] = f"{VISION}.patch_embed.norm{k}.1"
        names[f"neck.{2 * k - 2}"] = f"{VISION}.visionneck.conv{k}"
        names[f"neck.{2 * k - 1}"] = f"{VISION}.visionneck.layer_norm{k}"
    for stage, depth in enumerate(config.depths):
        names[f"backbone.reduce.{stage}.0"] = f"{VISION}.levels.{stage}.downsample.conv"
        names[f"backbone.reduce.{stage}.1"] = f"{VISION}.levels.{stage}.downsample.norm.1"
        for block in range(depth):
            names |= {f"backbone.stages.{stage}.{block}.{ours}": f"{VISION}.levels.{stage}.blocks.{block}.{theirs}" for ours, theirs in BLOCK.items()}
    names |= {f"projector.{k}": f"model.mm_projector.{k}" for k in (0, 2)}
    names |= {f"condenser.project.{2 * k}": f"{TOWER}.lan_neck.text_mlp.{2 * k}" for k in range(len(config.condenser_dims) + 1)}
    return names | _decoder_names(config)


def _decoder_names(config: SpexConfig) -> dict[str, str]:
    names = {
        "decoder.iou_token": f"{DECODER}.iou_token.weight",
        "decoder.mask_tokens": f"{DECODER}.mask_tokens.weight",
        "decoder.no_mask": f"{PROMPTER}.no_mask_embed.weight",
        "decoder.frequencies": f"{PROMPTER}.shared_embedding.positional_embedding",
        "decoder.last_norm": f"{DECODER}.transformer.layer_norm_final_attn",
        "decoder.enlarge1": f"{DECODER}.upscale_conv1",
        "decoder.enlarge2": f"{DECODER}.upscale_conv2",
        "decoder.enlarge_norm": f"{DECODER}.upscale_layer_norm",
    }
    attentions = {"decoder.last_attention": f"{DECODER}.transformer.final_attn_token_to_image"}
    for k in range(config.decoder_layers):
        ours, theirs = f"decoder.blocks.{k}", f"{DECODER}.transformer.layers.{k}"
        attentions |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in TWO_WAY.items()}
        names |= {f"{ours}.mlp.0": f"{theirs}.mlp.lin1", f"{ours}.mlp.2": f"{theirs}.mlp.lin2"}
        names |= {f"{ours}.norms.{i}": f"{theirs}.layer_norm{i + 1}" for i in range(4)}
    for ours, theirs in attentions.items():
        names |= {f"{ours}.{part}": f"{theirs}.{short}_proj" for part, short in (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))}
    heads = {f"decoder.hypernetworks.{k}": f"{DECODER}.output_hypernetworks_mlps.{k}" for k in range(4)}
    for ours, theirs in {**heads, "decoder.quality": f"{DECODER}.iou_prediction_head"}.items():
        names |= {f"{ours}.{a}": f"{theirs}.{b}" for a, b in PERCEPTRON.items()}
    return names


def official_keys(config: SpexConfig) -> dict[str, tuple[str, Shape]]:
    """Return what the published checkpoint must hold: each of its keys with the key of ours and the shape."""
    with torch.device("meta"):
        state = SpexForLandCover(config).state_dict()
    names = official_names(config)
    return {_official_key(key, names): (key, tuple(tensor.shape)) for key, tensor in state.items()}


def _official_key(key: str, names: Mapping[str, str]) -> str:
    if key.startswith("language."):
        return key.replace("language.", "model.", 1)
    module, _, leaf = key.rpartition(".")
    if key not in names and module not in names:
        raise CheckpointRefused(f"the published SPEX has nothing like {key}: give a configuration of its kind (preset spex-1.8b)")
    return names[key] if key in names else f"{names[module]}.{leaf}"


def unused_keys(config: SpexConfig) -> dict[str, Shape]:
    """Return the keys that the published checkpoint may hold although its inference reads none of them.

    They are the encoders of points and masks of the SAM prompt encoder, and a learned embedding that training appends to the visual tokens.
    """
    dim, hidden = config.decoder_dim, int(config.language["hidden_size"])
    masks: dict[str, Shape] = {
        "conv1.weight": (4, 1, 2, 2),
        "conv1.bias": (4,),
        "layer_norm1.weight": (4,),
        "layer_norm1.bias": (4,),
        "conv2.weight": (16, 4, 2, 2),
        "conv2.bias": (16,),
        "layer_norm2.weight": (16,),
        "layer_norm2.bias": (16,),
        "conv3.weight": (dim, 16, 1, 1),
        "conv3.bias": (dim,),
    }
    points: dict[str, Shape] = {f"{PROMPTER}.point_embed.{k}.weight": (1, dim) for k in range(4)}
    return {
        **{f"{PROMPTER}.mask_embed.{key}": shape for key, shape in masks.items()},
        **points,
        f"{PROMPTER}.not_a_point_embed.weight": (1, dim),
        "model.image_newline": (hidden,),
    }


def map_checkpoint(stored: Mapping[str, Stored], config: SpexConfig) -> dict[str, Tensor]:
    """Return the state dict of ours that a published checkpoint holds, in the dtypes that it is stored in.

    Raises
    ------
    CheckpointRefused
        A key is missing, unknown or of another shape, a tensor is not finite, or the language model's head is not its embedding.
    """
    expected, unused = official_keys(config), unused_keys(config)
    shapes = {**unused, **{key: shape for key, (_, shape) in expected.items()}}
    tied = "lm_head.weight" not in expected
    if tied:
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    refusals = [f"{key} is missing, expected {shape}" for key, (_, shape) in expected.items() if key not in stored]
    for key, each in stored.items():
        if key not in shapes:
            refusals.append(f"{key} {each.shape} is unknown, expected no such key")
        elif each.shape != shapes[key]:
            refusals.append(f"{key} has shape {each.shape}, expected {shapes[key]}")
    if refusals:
        raise CheckpointRefused(f"{len(refusals)} keys are not those of the published SPEX", tuple(refusals))
    state = {ours: stored[key].read() for key, (ours, _) in expected.items()}
    _check_values(state, stored["lm_head.weight"].read() if tied and "lm_head.weight" in stored else None)
    return state


def _check_values(state: Mapping[str, Tensor], head: Tensor | None) -> None:
    # The extremes carry NaN along, and take no memory beside the tensor.
    damaged = [(key, tensor) for key, tensor in state.items() if not torch.isfinite(torch.stack(torch.aminmax(tensor))).all()]
    wrong = [f"{key} {tuple(tensor.shape)} holds values that are not finite" for key, tensor in damaged]
    if head is not None and not torch.equal(head, state["language.embed_tokens.weight"]):
        wrong.append(f"lm_head.weight {tuple(head.shape)} differs from model.embed_tokens.weight, expected the same (tie_word_embeddings)")
    if wrong:
        raise CheckpointRefused("the checkpoint is damaged", tuple(wrong))


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Return the tensors of a checkpoint: one file, or a folder with safetensors or PyTorch files, sharded or not.

    Raises
    ------
    CheckpointRefused
        There is no checkpoint, a shard is missing, two shards hold the same key, or a file is damaged or holds more than tensors.
    """
    tensors: dict[str, Stored] = {}
    for file in _files(path):
        if not file.is_file():
            raise CheckpointRefused(f"{file} is missing, although the index of {path} names it")
        found = _read(file)
        twice = sorted(set(found) & set(tensors))
        if twice:
            raise CheckpointRefused(f"{file} holds keys that another shard of {path} holds too", tuple(twice))
        tensors |= found
    return tensors


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = path / f"{name}.index.json"
        if index.is_file():
            return [path / Path(each).name for each in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
        if (path / name).is_file():
            return [path / name]
    raise CheckpointRefused(
        f"no checkpoint at {path}: expected a file, or a folder with model.safetensors or pytorch_model.bin or an index of shards"
    )


def _read(file: Path) -> dict[str, Stored]:
    try:
        if file.suffix == ".safetensors":
            opened: Any = safe_open(file, framework="pt")
            return {key: Stored(tuple(opened.get_slice(key).get_shape()), partial(opened.get_tensor, key)) for key in list(opened.keys())}
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise CheckpointRefused(f"{file} cannot be read as tensors only ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    if not isinstance(content, dict) or not all(isinstance(each, Tensor) for each in content.values()):
        raise CheckpointRefused(f"{file} is no state dict: expected names of tensors at its top level")
    return {key: Stored(tuple(tensor.shape), tensor.clone) for key, tensor in content.items()}


def official_config(folder: Path) -> SpexConfig:
    """Return the preset spex-1.8b with the sizes of the language model that a published config.json states, where there is one."""
    config = SpexConfig.preset("spex-1.8b")
    file = folder / "config.json"
    if file.is_file():
        stated: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        config.language |= {key: stated[key] for key in LANGUAGE_SIZES if key in stated}
        if "rope_theta" in stated:
            config.language["rope_parameters"] = {"rope_type": "default", "rope_theta": stated["rope_theta"]}
    return config


def open_to_bands(state: Mapping[str, Tensor], config: SpexConfig, bands: Sequence[str]) -> tuple[dict[str, Tensor], SpexConfig]:
    """Return state and configuration with a wavelength stem that starts from the fixed one, to be trained on `bands`.

    Raises
    ------
    UnknownBand
        A band is unknown or given twice, or red, green or blue is missing.
    """
    check_bands(bands, RGB)
    prefix = "backbone.stem.convolution1."
    changed = SpexConfig.from_dict({**config.to_dict(), "stem": "wavelength", "bands": list(bands)})
    fixed, stem = DisplayConvolution(config, config.dims[0] // 2), SpectralConvolution(changed, config.dims[0] // 2)
    fixed.load_state_dict({leaf: state[f"{prefix}{leaf}"] for leaf in ("weight", "bias")})
    stem.adopt(fixed)
    dtype = state[f"{prefix}weight"].dtype
    kept = {key: tensor for key, tensor in state.items() if not key.startswith(prefix)}
    return {**kept, **{f"{prefix}{key}": tensor.to(dtype) for key, tensor in stem.state_dict().items()}}, changed


def import_official(path: Path | str, out: Path | str, config: SpexConfig | None = None, bands: Sequence[str] = ()) -> Path:
    """Write a published checkpoint as a model folder: config.json, model.safetensors (in shards above 5 GB), and the tokenizer's files beside it.

    Parameters
    ----------
    path
        The checkpoint: one file, or a folder.
    out
        Folder to write; must not exist or be empty.
    config
        Sizes; by default the preset spex-1.8b with the language model that the checkpoint's config.json states.
    bands
        Bands that the model is to be trained on next: its stem becomes one for any bands (`open_to_bands`). None given: the published stem.

    Raises
    ------
    CheckpointRefused
        See `map_checkpoint` and `stored_tensors`; nothing is written then.
    UnknownBand
        See `open_to_bands`.
    """
    path, out = Path(path), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointRefused(f"{out} is there already; give a folder that is not")
    folder = path.parent if path.is_file() else path
    config = config or official_config(folder)
    state = map_checkpoint(stored_tensors(path), config)
    if bands:
        state, config = open_to_bands(state, config, bands)
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    config.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    config.architectures = [SpexForLandCover.__name__]
    out.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    if (out / "tokenizer_config.json").is_file():
        config.preamble = _ids(chat_tokenizer(out), BEFORE_IMAGE)
    save_torch_state_dict(state, out, max_shard_size="5GB")
    config.save_pretrained(out)
    return out


def chat_tokenizer(folder: Path | str) -> Any:
    """Return the tokenizer of transformers whose files lie in a folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def chat_prompts(tokenizer: Any, questions: Mapping[str, str]) -> Prompts:
    """Return the prompts that the published weights know: what follows the image in the user's turn, then the assistant's answer.

    Parameters
    ----------
    tokenizer
        Of `chat_tokenizer`.
    questions
        Instruction to answer, K of them; the answer is what is condensed for the mask. With an empty answer the prompts are ready for
        `SpexForLandCover.generate_text`.
    """
    asked = [_ids(tokenizer, f"\n{instruction}{BEFORE_ANSWER}") for instruction in questions]
    rows = [before + _ids(tokenizer, answer) for before, answer in zip(asked, questions.values(), strict=True)]
    tokens = pad_sequence([torch.tensor(row) for row in rows], batch_first=True)[None]
    start, stop = (torch.tensor([[len(each)] for each in lists])[None] for lists in (asked, rows))
    position = torch.arange(tokens.shape[2])
    seen = position < stop
    return Prompts(tokens, seen, seen & (position >= start), start.squeeze(2) - 1, torch.full_like(tokens, -100))


def _ids(tokenizer: Any, text: str) -> list[int]:
    return [int(each) for each in tokenizer.encode(text, add_special_tokens=False)]
