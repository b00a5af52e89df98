"""Data-parallel training on Ray Train: every worker computes its part of the same batches that one worker alone would see."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from pathlib import Path
from threading import Event, Thread
from typing import Any

import ray
import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from engine.training.checkpoint import is_finished
from engine.training.config import TrainingSpec
from engine.training.errors import MissingResources
from engine.training.train import stopped_by_signal, train_here
from engine.training.workers import Worker, check_shares
from spexmap import SpexmapError

log = logging.getLogger(__name__)

STOP = ".stop"
"""File in the output folder that asks the workers to save and stop."""

BEGUN = ".begun"
"""File in the output folder that says that a worker is there to be asked."""

STOP_SECONDS = 300.0
"""How long after SIGTERM the workers have to finish their step and save; after that, or at once where no worker began, the wait ends."""


def train_on_ray(spec: TrainingSpec, out: Path, workers: int, address: str | None) -> bool:
    """Train on `workers` processes of a Ray cluster, or of this machine where `address` is None; return whether the end was reached.

    A worker that dies is replaced up to three times, going on from the last state. `out` must be seen by all workers.

    Raises
    ------
    TrainingDataError
        A batch cannot be shared evenly among the workers.
    MissingResources
        The cluster has fewer CPUs, or GPUs where the training is on them, than workers.
    """
    check_shares(spec, workers)
    out.mkdir(parents=True, exist_ok=True)
    (out / STOP).unlink(missing_ok=True)
    (out / BEGUN).unlink(missing_ok=True)
    began = not ray.is_initialized()
    if began:
        ray.init(address=address or "local")
    try:
        _check_resources(spec, workers)
        with stopped_by_signal() as stopping:
            _wait(_trainer(spec, out, workers), stopping, out)
        return is_finished(out, spec)
    finally:
        (out / STOP).unlink(missing_ok=True)
        (out / BEGUN).unlink(missing_ok=True)
        if began:
            ray.shutdown()


def _trainer(spec: TrainingSpec, out: Path, workers: int) -> Any:
    return TorchTrainer(
        _train_one,
        train_loop_config={"spec": spec.model_dump(mode="json"), "out": str(out.absolute())},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=_on_gpus(spec)),
        run_config=RunConfig(name=f"train-{time.time_ns()}", storage_path=str(out.absolute() / "ray"), failure_config=FailureConfig(max_failures=3)),
    )


def _check_resources(spec: TrainingSpec, workers: int) -> None:
    """Refuse what Ray Train would wait for without end: it asks for its workers again and again."""
    kind = "GPU" if _on_gpus(spec) else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))  # type: ignore[no-untyped-call]
    if workers > there:
        raise MissingResources(
            f"--workers {workers}: each worker needs one {kind}, and there {'is' if there == 1 else 'are'} {there} here; "
            f"give at most {there} workers, or a cluster by --address"
            if there
            else f"device {spec.device}: there is no {kind} in this cluster"
        )


def _on_gpus(spec: TrainingSpec) -> bool:
    return spec.device == "cuda" or (spec.device == "auto" and ray.cluster_resources().get("GPU", 0) > 0)  # type: ignore[no-untyped-call]


def _wait(trainer: Any, stopping: Event, out: Path) -> None:
    """Train in another thread, so that a signal is seen at once and handed on to the workers; an error of spexmap's in a worker is raised here.

    Workers that do not come, or do not end in time, are left behind: they end with the connection to the cluster.
    """
    result: Future[Any] = Future()
    # A daemon: nothing waits for it when the process ends.
    Thread(target=_fit, args=(trainer, result), daemon=True).start()
    asked = math.inf
    while not wait([result], timeout=0.5).done:
        if stopping.is_set():
            (out / STOP).touch()
            asked = min(asked, time.monotonic())
            if not (out / BEGUN).exists() or time.monotonic() - asked > STOP_SECONDS:
                log.warning("no worker saved a state after SIGTERM; the last one is what %s holds", out)
                return
    error = result.exception()
    if error is not None:
        raise _told(error)


def _fit(trainer: Any, result: Future[Any]) -> None:
    try:
        result.set_result(trainer.fit())
    except BaseException as error:
        result.set_exception(error)


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
    if worker.writes:
        (out / BEGUN).touch()
    train_here(spec, out, worker, lambda: worker.writes and (out / STOP).exists(), lambda figures: ray.train.report(dict(figures)))
