"""One training loop for what is trained in an evaluation: the same optimizer, schedule and precision for every model, and resumable."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from engine.processors import computes_in_bfloat16
from engine.training.schedule import learning_rate, new_optimizer

B = TypeVar("B")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fit:
    """How long and how fast to train, and where the state lies meanwhile."""

    steps: int
    rate: float
    """Peak learning rate of AdamW; linear warm-up, then cosine to zero."""
    seed: int
    device: str
    state: Path | None = None
    """File of weights, optimizer and step, written every few minutes; the same fit goes on from there. None: nothing is written."""
    save_seconds: float = 240.0
    key: str = ""
    """What else the result depends on: a state of another key is not gone on with."""

    @property
    def identity(self) -> str:
        """What a state must have been made with to be gone on with."""
        return json.dumps([self.steps, self.rate, self.seed, self.key])


def fit(model: nn.Module, batches: Callable[[int], B], loss_of: Callable[[nn.Module, B], Tensor], how: Fit) -> nn.Module:
    """Return the model trained, in evaluation mode; batch k is a function of k, so that an interrupted fit sees the same batches."""
    model.to(how.device).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = new_optimizer(model, how.rate)
    step, saved, began = _resume(model, optimizer, how), time.monotonic(), time.monotonic()
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(batches, step)
        while step < how.steps:
            batch, coming = coming.result(), ahead.submit(batches, step + 1)
            value = _update(model, optimizer, batch, loss_of, step, how)
            step += 1
            if step % 100 == 0 or step == how.steps:
                log.info("%s: step %d of %d, loss %.4f, %.0f s", how.key or "fit", step, how.steps, value, time.monotonic() - began)
            if time.monotonic() - saved > how.save_seconds or step == how.steps:
                saved = time.monotonic()
                _save(model, optimizer, step, how)
    return model.train(False)


def _update(model: nn.Module, optimizer: torch.optim.Optimizer, batch: B, loss_of: Callable[[nn.Module, B], Tensor], step: int, how: Fit) -> float:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, how.steps, how.rate)
    torch.manual_seed(how.seed * 1_000_003 + step)
    device = torch.device(how.device)
    with torch.autocast(device.type, torch.bfloat16, enabled=computes_in_bfloat16(device)):
        loss = loss_of(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, how: Fit) -> int:
    if how.state is None or not how.state.is_file():
        return 0
    state: dict[str, Any] = torch.load(how.state, weights_only=True, map_location=how.device)
    if state["identity"] != how.identity:
        log.info("%s was made with other settings; training begins anew", how.state)
        return 0
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, how: Fit) -> None:
    if how.state is None:
        return
    how.state.parent.mkdir(parents=True, exist_ok=True)
    unfinished = how.state.with_suffix(".tmp")
    torch.save({"identity": how.identity, "step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, unfinished)
    unfinished.replace(how.state)


def best_device(wanted: str = "auto") -> str:
    """Return a PyTorch device: ``auto`` is CUDA where there is one, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"
