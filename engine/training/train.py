"""Trains what a training file describes."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from transformers.utils.logging import disable_progress_bar

from engine.training.config import TrainingSpec
from engine.training.heldout import device_of
from engine.training.runner import Runner
from engine.training.stages import new_processor, open_workshop
from engine.training.workers import Worker

__all__ = ["new_processor", "train", "train_here"]

log = logging.getLogger(__name__)


def train(spec: TrainingSpec, out: Path) -> bool:
    """Train every stage in this process, going on from the state in `out` if there is one.

    Parameters
    ----------
    spec
        What to train.
    out
        Folder for state, logs and model.

    Returns
    -------
    bool
        False where SIGTERM stopped the training before its end; the same call goes on.

    Raises
    ------
    MissingResources
        The device is CUDA and there is none.
    """
    with stopped_by_signal() as stopping:
        return train_here(spec, out, Worker(device=device_of(spec.device)), stopping.is_set)


def train_here(
    spec: TrainingSpec,
    out: Path,
    worker: Worker,
    stopping: Callable[[], bool],
    report: Callable[[Mapping[str, float]], None] = lambda figures: None,
) -> bool:
    """Train in this process, as one worker; return whether the end was reached."""
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    workshop = open_workshop(spec)
    module: torch.nn.Module = workshop.model
    module.to(device=worker.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    runner = Runner(spec, out, workshop.work, workshop.model, workshop.processor, worker, stopping, report)
    return runner.run()


@contextmanager
def stopped_by_signal() -> Iterator[threading.Event]:
    """Give an event that SIGTERM sets; outside the main thread, where no handler can be, one that nothing sets."""
    event = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        log.info("SIGTERM: stopping after this step")
        event.set()

    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
