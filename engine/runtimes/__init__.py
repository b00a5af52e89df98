"""Runtimes: one planner, compiled for what the machine has. PyTorch in float32 is the reference; all others are held against it in the tests."""

from __future__ import annotations

import functools
import gc
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from engine.description import ClassQuery
from engine.errors import EngineBuildFailed, RuntimeUnavailable
from engine.runtimes import openvino, tensorrt
from engine.runtimes.cache import EngineCache, key_of
from engine.runtimes.graph import OPSET, Graph, Precision, Windows, best_precision, export_files, export_graph, fits_one_file
from engine.stored import PlannerSource, StoredModel

if TYPE_CHECKING:
    from engine.planner import Planner

__all__ = ["RUNTIMES", "Choice", "EngineBuildFailed", "OpenedPlanner", "Precision", "RuntimeUnavailable", "Windows", "choose", "open_planner"]

log = logging.getLogger(__name__)

RUNTIMES = ("auto", "torch", "torch-compile", "openvino", "tensorrt", "tensorrt-rtx")


@dataclass(frozen=True)
class Choice:
    """Which runtime computes, in what numbers, and why."""

    name: str
    precision: Precision
    reason: str


@dataclass(frozen=True)
class OpenedPlanner:
    """A planner ready to run."""

    planner: Callable[[Tensor], Tensor]
    """(n, C, h, w) float32 reflectance, NaN = no data, to probabilities (n, K, h, w) float32, both on `device`."""
    device: torch.device
    choice: Choice
    identity: dict[str, Any]
    """What, beside weights and shape, decides its numbers: part of a run's numerical identity."""


def choose(asked: str, device: torch.device) -> Choice:
    """Return the runtime for a device.

    Parameters
    ----------
    asked
        One of `RUNTIMES`. ``auto``: on a GPU TensorRT where it is installed, else PyTorch's compiler, on a CPU OpenVINO where it is installed, else
        PyTorch; what is slower comes with a warning.

    Raises
    ------
    RuntimeUnavailable
        There is no such runtime, it is not installed, or it does not run on this device.
    """
    if asked not in RUNTIMES:
        raise RuntimeUnavailable(f"there is no runtime {asked!r}; give one of {', '.join(RUNTIMES)}")
    if asked == "auto":
        return _on_gpu() if device.type == "cuda" else _on_cpu()
    if asked == "torch":
        return Choice("torch", Precision.FLOAT32, "asked for; the reference")
    if asked == "torch-compile":
        return Choice(asked, best_precision(device), "asked for")
    if asked == "openvino":
        if device.type != "cpu":
            raise RuntimeUnavailable(f"OpenVINO runs on the CPU, not on {device}; ask for tensorrt or torch")
        return Choice("openvino", openvino.best_precision(), f"asked for; {openvino.best_precision()} is the processor's fastest")
    if device.type != "cuda":
        raise RuntimeUnavailable(f"{asked} needs an NVIDIA GPU, and there is none here; ask for openvino or torch")
    tensorrt.load_library(asked)
    return Choice(asked, Precision.FLOAT16, "asked for")


def _on_cpu() -> Choice:
    if openvino.is_installed():
        return Choice("openvino", openvino.best_precision(), f"no GPU, OpenVINO is installed, {openvino.best_precision()} is the processor's fastest")
    log.warning("OpenVINO is not installed: PyTorch takes about twice as long on a CPU; pip install 'spexmap[openvino]'")
    return Choice("torch", Precision.FLOAT32, "no GPU, and OpenVINO is not installed")


def _on_gpu() -> Choice:
    for name in ("tensorrt", "tensorrt-rtx"):
        if tensorrt.is_installed(name) and (name == "tensorrt" or _rtx_knows_this_gpu()):
            return Choice(name, Precision.FLOAT16, f"a GPU, and {name} is installed")
    log.warning("TensorRT is not installed, or does not know this GPU: PyTorch's compiler takes longer; pip install 'spexmap[tensorrt]'")
    return Choice("torch-compile", best_precision(torch.device("cuda")), "a GPU, and no TensorRT for it")


def _rtx_knows_this_gpu() -> bool:
    return torch.cuda.get_device_capability() in tensorrt.capabilities().values()


def open_planner(
    model: PlannerSource, bands: Sequence[str], classes: Sequence[str | ClassQuery], windows: Windows, asked: str = "auto", threads: int | None = None
) -> OpenedPlanner:
    """Return the planner of a band set and a list of classes in the runtime of choice.

    Parameters
    ----------
    model
        For the device that is to compute.
    bands, classes
        As for `Spex.planner`.
    windows
        The shape of every call.
    asked
        See `choose`.
    threads
        Of one call on a CPU; None leaves it to PyTorch's setting.

    Raises
    ------
    RuntimeUnavailable, EngineBuildFailed
        A runtime that was asked for by name cannot run. With ``auto`` PyTorch takes over, with a warning: on a GPU its compiler, then without.
    """
    device = torch.device(model.device)
    started = time.monotonic()
    choice: Choice | None = choose(asked, device)
    while choice is not None:
        try:
            opened = _open(model, bands, classes, windows, choice, threads or torch.get_num_threads())
            with torch.inference_mode():
                opened.planner(torch.full(windows.shape, 0.1, device=device))
        except (RuntimeUnavailable, EngineBuildFailed) as error:
            following = _instead_of(choice, error, device) if asked == "auto" else None
            if following is None:
                raise
            log.warning("%s: %s in %s computes instead, more slowly", error, following.name, following.precision)
            choice = following
        else:
            log.info("runtime %s in %s (%s), ready after %.1f s", choice.name, choice.precision, choice.reason, time.monotonic() - started)
            return opened
    raise AssertionError("the last choice returns or raises")


def _instead_of(choice: Choice, error: Exception, device: torch.device) -> Choice | None:
    """Return what `auto` tries after `choice` has failed; None after the reference."""
    why = f"{choice.name} failed: {error}"
    if choice.name == "torch":
        return None
    if device.type == "cuda" and choice.name != "torch-compile":
        return Choice("torch-compile", best_precision(device), why)
    return Choice("torch", Precision.FLOAT32, why)


def _open(
    model: PlannerSource, bands: Sequence[str], classes: Sequence[str | ClassQuery], windows: Windows, choice: Choice, threads: int
) -> OpenedPlanner:
    device = torch.device(model.device)
    facts = {"runtime": choice.name, "precision": str(choice.precision), "torch": str(torch.__version__)}
    if choice.name == "torch":
        return OpenedPlanner(model.planner(bands, classes), device, choice, facts)
    if choice.name == "torch-compile":
        from engine.runtimes import compiled

        return OpenedPlanner(compiled.CompiledPlanner(model.planner(bands, classes), windows, choice.precision, device), device, choice, facts)
    if choice.name == "openvino":
        graph = cached_graph(model, bands, classes, windows, channels_last=windows.batch == 1)
        planner = openvino.OpenVinoPlanner(graph, choice.precision, threads)
        return OpenedPlanner(planner, device, choice, facts | {"openvino": openvino.version()})
    return _open_engine(model, bands, classes, windows, choice, facts)


def _open_engine(
    model: PlannerSource, bands: Sequence[str], classes: Sequence[str | ClassQuery], windows: Windows, choice: Choice, facts: dict[str, Any]
) -> OpenedPlanner:
    """Return the planner of a TensorRT engine; one that was kept and does not run here is built anew, once."""
    device = torch.device(model.device)
    for last in (False, True):
        engine, identity = cached_engine(model, bands, classes, windows, choice, anew=last)
        try:
            planner = tensorrt.TensorRTPlanner(engine, choice.name, windows.shape, device, EngineCache())
        except RuntimeUnavailable as error:
            if last:
                raise
            log.warning("%s: it is built anew", error)
        else:
            return OpenedPlanner(planner, device, choice, facts | identity)
    raise AssertionError("the second try returns or raises")


def cached_engine(
    model: PlannerSource,
    bands: Sequence[str],
    classes: Sequence[str | ClassQuery],
    windows: Windows,
    choice: Choice,
    capability: str | None = None,
    anew: bool = False,
) -> tuple[bytes, dict[str, Any]]:
    """Return a TensorRT engine, from the node's cache if it is there, and what identifies it.

    `capability` (``sm89``) builds for another GPU than this machine's, with TensorRT-RTX only; `anew` forgets what the cache has.
    """
    library = tensorrt.load_library(choice.name)
    target = capability or "sm{}{}".format(*torch.cuda.get_device_capability())
    facts = _facts(model, bands, classes, windows, choice.precision) | {"library": choice.name, "version": library.__version__, "for": target}
    meant = target if choice.name == "tensorrt-rtx" else capability

    def build() -> bytes:
        with opened_graph(model, bands, classes, windows, choice.precision) as graph:
            return tensorrt.build_engine(graph, choice.name, meant, EngineCache())

    cache = EngineCache()
    if anew:
        cache.forget(key_of(facts))
    engine = cache.get(key_of(facts), build)
    return engine, {choice.name: library.__version__, "for": target, "engine": hashlib.sha256(engine).hexdigest()}


def cached_graph(
    model: PlannerSource,
    bands: Sequence[str],
    classes: Sequence[str | ClassQuery],
    windows: Windows,
    precision: Precision = Precision.FLOAT32,
    channels_last: bool = False,
) -> bytes:
    """Return the ONNX graph of a planner, from the node's cache if it is there; `channels_last` gives the form of `convolved`, for a batch of one.

    Raises `EngineBuildFailed` where one file cannot hold it.
    """

    def export() -> bytes:
        from engine.runtimes.convolved import convolved

        planner = _planner_on_host(model, bands, classes)
        return export_graph(convolved(planner) if channels_last else planner, windows, precision)

    return EngineCache().get(key_of(_facts(model, bands, classes, windows, precision) | {"channels_last": channels_last}), export)


@contextmanager
def opened_graph(
    model: PlannerSource, bands: Sequence[str], classes: Sequence[str | ClassQuery], windows: Windows, precision: Precision
) -> Iterator[Graph]:
    """Yield the ONNX graph of a planner of any size: from the node's cache, or where one file cannot hold it as files that are gone afterwards."""
    key, cache = key_of(_facts(model, bands, classes, windows, precision) | {"channels_last": False}), EngineCache()

    def exported(folder: Path) -> Graph:
        planner = _planner_on_host(model, bands, classes)
        if fits_one_file(planner, precision):
            return cache.get(key, lambda: export_graph(planner, windows, precision))
        return export_files(planner, windows, precision, folder)

    with cache.scratch() as folder:
        graph = cache.read(key) or exported(folder)
        gc.collect()  # an export leaves cycles that hold a second copy of the weights
        yield graph


def _planner_on_host(model: PlannerSource, bands: Sequence[str], classes: Sequence[str | ClassQuery]) -> Planner:
    host = model if model.device == "cpu" or model.folder is None else StoredModel(model.folder, "cpu")
    return host.planner(bands, classes)


def _facts(model: PlannerSource, bands: Sequence[str], classes: Sequence[str | ClassQuery], windows: Windows, precision: Precision) -> dict[str, Any]:
    """Return what decides a graph."""
    return {
        "weights": model.fingerprint,
        "bands": list(bands),
        "classes": [[query.target, query.instruction] for query in model.resolve(classes)],
        "shape": windows.shape,
        "precision": str(precision),
        "opset": OPSET,
        # Without what a build of it is for, so that a graph made on a machine without a GPU is found on one that has it.
        "torch": torch.__version__.partition("+")[0],
        "transformers": version("transformers"),
        "code": _code(),
    }


@functools.cache
def _code() -> str:
    """Return a hash of the source that decides what a graph computes."""
    root = Path(__file__).parents[1]
    names = ["bands.py", "class_sets.py", "configuration.py", "description.py", "lexicon.py", "planner.py", "processing.py", "spex.py"]
    names += ["spie/grammar.py", "runtimes/graph.py", "runtimes/convolved.py"]
    sources = sorted([*root.glob("modeling*.py"), *(root / name for name in names)])
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()
