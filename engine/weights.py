"""The weights of a model folder: the model's own, and beside them those of each set of classes that fine-tuning has taught.

All lie in model.safetensors. A tensor of class set k is called ``class_sets.k.NAME``; one that is as in the set before, of the first set as in the
model itself, is not written again.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.configuration import SpexConfig
from engine.modeling import SpexForLandCover

PREFIX = "class_sets"


def load_models(folder: Path) -> tuple[SpexForLandCover, ...]:
    """Return the model of a folder, then one for each of its `class_sets`, oldest first; all have the same configuration."""
    config = SpexConfig.from_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    tensors = {name: value for name, value in stored.items() if not name.startswith(f"{PREFIX}.")}
    models = [_model(config, tensors)]
    for k in range(len(config.class_sets)):
        prefix = f"{PREFIX}.{k}."
        tensors |= {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        models.append(_model(config, tensors))
    return tuple(models)


def _model(config: SpexConfig, tensors: dict[str, Tensor]) -> SpexForLandCover:
    model = SpexForLandCover(config)
    model.load_state_dict(tensors)
    return model


def distinct_tensors(models: Sequence[SpexForLandCover]) -> dict[str, Tensor]:
    """Return what model.safetensors holds; `models` are the model and one for each class set of its configuration."""
    states = [model.state_dict() for model in models]
    tensors = dict(states[0])
    for k, (before, after) in enumerate(pairwise(states)):
        tensors |= {f"{PREFIX}.{k}.{name}": value for name, value in after.items() if not torch.equal(value, before[name])}
    return tensors


def save_models(folder: Path, models: Sequence[SpexForLandCover]) -> None:
    """Write config.json and model.safetensors; `models` are the model and one for each class set of its configuration."""
    tensors = {name: value.detach().cpu() for name, value in distinct_tensors(models).items()}
    written = copy.deepcopy(models[0].config)
    written.architectures = [SpexForLandCover.__name__]
    written.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
