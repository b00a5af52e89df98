"""The state of a training on disk: written whole or not at all, and refused where it belongs to another training."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from engine.modeling import SpexForLandCover
from engine.processing import SpexProcessor
from engine.training.config import TrainingSpec
from engine.training.errors import OtherTraining
from engine.training.fingerprint import data_identity
from engine.weights import save_models

STATE = "state.pt"

FREE_KEYS = ("steps", "rate", "warm_up", "micro_batch", "clip", "weight_decay", "check_steps", "patience")
"""Settings of a stage that may differ when a training goes on: they change neither the model's shape nor the batches."""


def identity(spec: TrainingSpec) -> dict[str, Any]:
    """Return what must be the same for a state to be gone on from: model, seed, data, and how batches are made from them."""
    stages = {name: stage.model_dump(mode="json", exclude=set(FREE_KEYS)) for name, stage in spec.stages.chosen.items()}
    return {"model": spec.model.model_dump(mode="json"), "seed": spec.seed, "stages": stages, "data": data_identity(spec)}


def write_state(out: Path, identity: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the state of the training of an `identity` to OUT/state.pt; a reader sees the old one or the new one."""
    out.mkdir(parents=True, exist_ok=True)
    temporary = out / f".{STATE}.{os.getpid()}"
    with temporary.open("wb") as file:
        torch.save({"identity": json.dumps(identity, sort_keys=True), **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(out / STATE)


def read_state(out: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of OUT/state.pt on the CPU, None where there is none.

    A state from before data were part of an identity is taken as one of these data.

    Raises
    ------
    OtherTraining
        The state was written by a training with another model, seed, data or batches, or is no state.
    """
    path = out / STATE
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        was = {"data": identity["data"], **json.loads(state.pop("identity"))}
    except Exception as error:
        raise OtherTraining(
            f"{path} cannot be read as the state of a training ({type(error).__name__}: {error}); delete it or use another --out"
        ) from error
    differing = _differing(was, identity)
    if differing:
        raise OtherTraining(f"{path} is of another training: {differing}; use another --out, or put that back")
    return state


def is_finished(out: Path, spec: TrainingSpec) -> bool:
    """Return whether the state of a training is the one after its last stage."""
    path = out / STATE
    return path.is_file() and torch.load(path, weights_only=True, mmap=True)["stage"] == len(spec.stages.chosen)


def _differing(was: Any, now: Any, path: str = "") -> str:
    """Return the first setting in which two identities differ, as ``stages.instruction.size was 96, is 64``; empty where none does."""
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        for key in sorted({*was, *now}):
            found = _differing(was.get(key), now.get(key), f"{path}.{key}".lstrip("."))
            if found:
                return found
        return ""
    return "" if was == now else f"{path} was {json.dumps(was)}, is {json.dumps(now)}"


def write_model(folder: Path, model: SpexForLandCover, processor: SpexProcessor, taught: Sequence[SpexForLandCover] = ()) -> None:
    """Write the files of a model, each of them whole, with the models of its class sets; the folder must be on the disk that it is made on."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".model-", dir=folder))
    try:
        save_models(temporary, (model, *taught))
        processor.save_pretrained(temporary)
        for file in sorted(temporary.iterdir()):
            file.replace(folder / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
