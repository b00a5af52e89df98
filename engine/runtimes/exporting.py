"""The command `spexmap export`: a model's graph or engine for one band set and one list of classes, as files to carry elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.runtimes import Choice, Precision, RuntimeUnavailable, Windows, cached_engine, cached_graph, tensorrt
from engine.spex import Spex

RUNTIMES = ("onnx", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Export:
    """What to export."""

    model: str
    out: Path
    """Folder; made if it is not there."""
    runtime: str = "onnx"
    """``onnx`` (what OpenVINO reads, too), ``tensorrt`` or ``tensorrt-rtx``."""
    capability: str | None = None
    """``sm75`` ... ``sm121``; None: the GPU of this machine."""
    bands: Sequence[str] = ()
    """Empty: all that the model uses."""
    classes: Sequence[str] = ()
    """Empty: all roots that the model knows."""
    window: int = 320
    batch: int = 1
    precision: str | None = None
    """``float32``, ``float16`` or ``bfloat16``; None: float32 as ONNX, float16 as an engine."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    path: Path
    size: int
    """Bytes."""
    seconds: float


def export(asked: Export) -> Exported:
    """Write a graph or an engine, and beside it a JSON file that says what it is; an engine is kept in the node's cache too, where runs look for it.

    Raises
    ------
    RuntimeUnavailable, EngineBuildFailed
        The library is missing, does not build for that GPU, or refused the graph.
    ModelNotFound, UnknownBand, UnknownClass
        As for `Spex.planner`.
    """
    _check(asked)
    started = time.monotonic()
    spex = Spex.load(asked.model, "cpu")
    bands = tuple(asked.bands) or spex.bands
    classes = tuple(asked.classes) or tuple(spex.processor.lexicon.roots)
    if asked.window % spex.config.stride:
        raise RuntimeUnavailable(f"window {asked.window} is no multiple of {spex.config.stride}, the model's stride")
    windows = Windows(asked.window, len(bands), asked.batch)
    precision = Precision(asked.precision or ("float32" if asked.runtime == "onnx" else "float16"))
    if asked.runtime == "onnx":
        content, identity = cached_graph(spex, bands, classes, windows, precision), {"runtime": "onnx"}
    else:
        content, identity = cached_engine(spex, bands, classes, windows, Choice(asked.runtime, precision, "asked for"), asked.capability)
    facts = identity | {
        "model": spex.config.name,
        "weights": spex.fingerprint,
        "bands": list(bands),
        "classes": [{"name": each.name, "target": each.target, "instruction": each.instruction} for each in spex.resolve(classes)],
        "input": {"name": "reflectance", "shape": list(windows.shape), "dtype": "float32", "no_data": "NaN"},
        "output": {"name": "probabilities", "shape": [asked.batch, len(classes), asked.window, asked.window], "dtype": "float32"},
        "precision": str(precision),
        "torch": torch.__version__,
    }
    return _written(
        asked, f"{spex.config.name}-{asked.runtime}{f'-{asked.capability}' if asked.capability else ''}-{precision}", content, facts, started
    )


def _check(asked: Export) -> None:
    if asked.runtime not in RUNTIMES:
        raise RuntimeUnavailable(f"there is no export for {asked.runtime!r}; give one of {', '.join(RUNTIMES)} (OpenVINO reads onnx)")
    if asked.precision is not None and asked.precision not in [str(each) for each in Precision]:
        raise RuntimeUnavailable(f"there is no precision {asked.precision!r}; give one of {', '.join(Precision)}")
    if asked.runtime == "onnx" and asked.capability is not None:
        raise RuntimeUnavailable("ONNX is for any device; leave out the compute capability")
    if asked.runtime == "onnx":
        return
    tensorrt.load_library(asked.runtime)
    if asked.runtime == "tensorrt" and asked.capability is not None:
        raise RuntimeUnavailable("tensorrt builds for the GPU of this machine only: leave out the compute capability, or ask for tensorrt-rtx")
    if asked.runtime == "tensorrt" and not torch.cuda.is_available():
        raise RuntimeUnavailable("tensorrt builds for the GPU of this machine, and there is none; tensorrt-rtx builds for others")
    if asked.capability is None and not torch.cuda.is_available():
        raise RuntimeUnavailable(f"there is no GPU here to build for; name one, such as {' or '.join(sorted(tensorrt.capabilities())[:2])}")


def _written(asked: Export, stem: str, content: bytes, facts: dict[str, Any], started: float) -> Exported:
    path = asked.out / f"{stem}.{'onnx' if asked.runtime == 'onnx' else 'engine'}"
    asked.out.mkdir(parents=True, exist_ok=True)
    for target, data in ((path, content), (path.with_suffix(".json"), (json.dumps(facts, indent=2, sort_keys=True) + "\n").encode())):
        unfinished = target.with_name(f".{target.name}.unfinished")
        unfinished.write_bytes(data)
        unfinished.replace(target)
    return Exported(path, len(content), time.monotonic() - started)
