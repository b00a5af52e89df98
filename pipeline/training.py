"""Data-parallel training on Ray Train: every worker computes its part of the same batches that one worker alone would see."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from engine.training.checkpoint import is_finished
from engine.training.config import TrainingSpec
from engine.training.train import stopped_by_signal, train_here
from engine.training.workers import Worker
from spexmap import SpexmapError

STOP = ".stop"
"""File in the output folder that asks the workers to save and stop."""


def train_on_ray(spec: TrainingSpec, out: Path, workers: int, address: str | None) -> bool:
    """Train on `workers` processes of a Ray cluster, or of this machine where `address` is None; return whether the end was reached.

    A worker that dies is replaced up to three times, going on from the last state. `out` must be seen by all workers.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / STOP).unlink(missing_ok=True)
    began = not ray.is_initialized()
    if began:
        ray.init(address=address or "local")
    trainer = TorchTrainer(
        _train_one,
        train_loop_config={"spec": spec.model_dump(mode="json"), "out": str(out.absolute())},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=_on_gpus(spec)),
        run_config=RunConfig(name=f"train-{time.time_ns()}", storage_path=str(out.absolute() / "ray"), failure_config=FailureConfig(max_failures=3)),
    )
    try:
        with stopped_by_signal() as stopping:
            _wait(trainer, stopping, out)
        return is_finished(out, spec)
    finally:
        (out / STOP).unlink(missing_ok=True)
        if began:
            ray.shutdown()


def _on_gpus(spec: TrainingSpec) -> bool:
    return spec.device == "cuda" or (spec.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)  # type: ignore[no-untyped-call]


def _wait(trainer: Any, stopping: Event, out: Path) -> None:
    """Train in another thread, so that a signal is seen at once and handed on to the workers; an error of spexmap's in a worker is raised here."""
    with ThreadPoolExecutor(1) as aside:
        waiting = aside.submit(trainer.fit)
        while not wait([waiting], timeout=0.5).done:
            if stopping.is_set():
                (out / STOP).touch()
    error = waiting.exception()
    if error is not None:
        raise _told(error)


def _told(error: BaseException) -> BaseException:
    """Return the first error of spexmap's among those that workers died of, else the error itself."""
    inner = getattr(error, "worker_failures", {})
    for each in inner.values():
        cause = getattr(each, "cause", each)
        if isinstance(cause, SpexmapError):
            return cause
    return error


def _train_one(config: Mapping[str, Any]) -> None:
    """Train as one worker of Ray Train."""
    context = ray.train.get_context()
    out = Path(config["out"])
    device = get_device()
    worker = Worker(context.get_world_rank(), context.get_world_size(), device if isinstance(device, torch.device) else device[0])
    spec = TrainingSpec.model_validate(config["spec"], strict=False)
    train_here(spec, out, worker, lambda: worker.writes and (out / STOP).exists(), lambda figures: ray.train.report(dict(figures)))
