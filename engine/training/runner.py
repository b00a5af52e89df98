"""Runs the stages of a training one after the other, from wherever the state on disk left off.

A batch is a function of seed and step, and PyTorch's generator is seeded anew for every step, so a training that was interrupted gives the same
weights as one that was not.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.modeling import SpexForLandCover
from engine.processing import SpexProcessor
from engine.processors import computes_in_bfloat16
from engine.training.checkpoint import identity, read_state, write_model, write_state
from engine.training.config import StageSpec, TrainingSpec
from engine.training.errors import TrainingDiverged
from engine.training.logbook import Book, Logbook, NoBook
from engine.training.schedule import learning_rate, new_optimizer
from engine.training.workers import Worker, check_shares, on_device, part_of, windows_of


@dataclass
class Work:
    """What a stage trains: batches in, parts of a loss out."""

    name: str
    spec: StageSpec
    objective: nn.Module
    """Maps a batch to parts of the loss, by name, with their sum under ``loss``."""
    batches: Callable[[int], Any]
    """Batch of a step: a dataclass with `reflectance` (n, C, h, w)."""
    unused: bool = True
    """Whether some steps do without some parameters, such as those of the text."""
    look: Callable[[int], dict[str, float]] = lambda step: {}
    """Called after every step; what it returns is logged; the figure ``stop`` above 0 ends the stage."""
    extra: Callable[[], dict[str, Any]] = dict
    """State beside the weights."""
    set_extra: Callable[[dict[str, Any]], None] = lambda state: None
    finish: Callable[[], dict[str, float]] = dict
    """Called at the end of the stage, before the model is written."""
    write: Callable[[Path, SpexForLandCover, SpexProcessor], None] = write_model
    """Writes the model's folder."""


@dataclass
class Progress:
    """Where a training stands."""

    stage: int = 0
    step: int = 0
    """Steps done in the stage."""
    skipped: int = 0
    """Steps of the stage that were left out because their loss was not finite."""
    in_a_row: int = 0
    seen: dict[str, list[float]] = field(default_factory=dict)


class Runner:
    """Takes a model through the stages of a training.

    Parameters
    ----------
    spec
        What to train.
    out
        Folder for state.pt, log.jsonl, event files and the model; one folder for each stage holds the model at its end.
    make_work
        Makes the work of a stage from its name.
    model, processor
        What is trained, on the worker's device.
    worker
        Which part of every batch is computed here.
    stopping
        Says after each step whether to stop and save.
    report
        Told the figures whenever they are logged, on every worker.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        out: Path,
        make_work: Callable[[str], Work],
        model: SpexForLandCover,
        processor: SpexProcessor,
        worker: Worker,
        stopping: Callable[[], bool],
        report: Callable[[Mapping[str, float]], None] = lambda figures: None,
    ) -> None:
        self.spec, self.out, self.make_work, self.worker = spec, out, make_work, worker
        self.model, self.processor, self.stopping, self.report = model, processor, stopping, report
        self.stages = tuple(spec.stages.chosen)
        self.progress = Progress()
        self.identity: dict[str, Any] = {}
        self.book: Book = NoBook()

    def run(self) -> bool:
        """Train to the end of the last stage; return False where it was stopped before that. Either way the state is on disk."""
        check_shares(self.spec, self.worker.count)
        self.identity = identity(self.spec)
        state = read_state(self.out, self.identity)
        if state is not None:
            self.progress = Progress(state["stage"], state["step"], state["skipped"])
            self.model.load_state_dict(state["model"])
        if self.worker.writes:
            self.book = Logbook(self.out, self.stages, self.progress.stage, self.progress.step)
        with contextlib.closing(self.book):
            while self.progress.stage < len(self.stages):
                if not self._run_stage(self.make_work(self.stages[self.progress.stage]), state):
                    return False
                state = None
        return True

    def _run_stage(self, work: Work, state: dict[str, Any] | None) -> bool:
        """Train a stage to its end; return False where it was stopped before."""
        work.objective.to(self.worker.device)
        optimizer = new_optimizer(work.objective, work.spec.rate, work.spec.weight_decay)
        if state is not None and state["step"]:
            work.objective.load_state_dict(state["objective"], strict=False)
            optimizer.load_state_dict(state["optimizer"])
            work.set_extra(state["extra"])
        trained = self.worker.wrap(work.objective, work.unused)
        saved, stopped = time.monotonic(), False
        for batch in self._batches(work):
            figures = self._update(work, trained, optimizer, batch)
            self.progress.step += 1
            looked = work.look(self.progress.step)
            self._log(work, figures, looked)
            stopped, ended, due = self._agreed(looked, time.monotonic() - saved)
            if ended:
                break
            if due or stopped:
                saved = time.monotonic()
                self._save(work, optimizer)
            if stopped:
                break
        if stopped and not ended and self.progress.step < work.spec.steps:
            return False
        self._end(work)
        return True

    def _agreed(self, looked: Mapping[str, float], since_saved: float) -> tuple[bool, bool, bool]:
        """Return whether to stop, whether the stage is over early, and whether a state is due: the same on all workers."""
        values = self.worker.largest(float(self.stopping()), looked.get("stop", 0.0), float(since_saved >= self.spec.save_seconds))
        return values[0] > 0, values[1] > 0, values[2] > 0

    def _batches(self, work: Work) -> Iterator[Any]:
        """Yield this worker's part of the batches that are left, the next one being made while one is computed."""
        first, last = self.progress.step, work.spec.steps - 1
        if first > last:
            return
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._part, work, first)
            for step in range(first, last + 1):
                batch = coming.result()
                if step < last:
                    coming = ahead.submit(self._part, work, step + 1)
                yield batch

    def _part(self, work: Work, step: int) -> Any:
        batch = work.batches(step)
        part = self.worker.share(windows_of(batch))
        return part_of(batch, part.start, part.stop)

    def _update(self, work: Work, trained: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> dict[str, float]:
        """Take one step; a step without a finite loss and gradient is skipped and counted."""
        stage, step = self.progress.stage, self.progress.step
        torch.manual_seed((self.spec.seed * 1_000_003 + stage) * 10_000_019 + step * 64 + self.worker.rank)
        rate = learning_rate(step, work.spec.steps, work.spec.rate, work.spec.warm_up)
        for group in optimizer.param_groups:
            group["lr"] = rate
        parts = self._backward(work, trained, batch)
        norm = nn.utils.clip_grad_norm_([p for p in work.objective.parameters() if p.grad is not None], work.spec.clip)
        finite = all(torch.isfinite(value) for value in (*parts.values(), norm))
        if self._is_bad(work, finite):
            optimizer.zero_grad(set_to_none=True)
            return {}
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {**{name: value.item() for name, value in parts.items()}, "rate": rate, "gradient": norm.item()}

    def _backward(self, work: Work, trained: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Add up the gradients of a worker's part of a batch, in pieces of `micro_batch` windows, and return the mean parts of the loss."""
        windows = windows_of(batch)
        piece = work.spec.micro_batch or windows
        total: dict[str, Tensor] = {}
        for start in range(0, windows, piece):
            stop = min(start + piece, windows)
            last = stop == windows
            waiting = contextlib.nullcontext() if last or not isinstance(trained, DistributedDataParallel) else trained.no_sync()
            with waiting:
                parts = self._loss(trained, on_device(part_of(batch, start, stop), self.worker.device))
                share = (stop - start) / windows
                (parts["loss"] * share).backward()  # type: ignore[no-untyped-call]
            for name, value in parts.items():
                total[name] = total.get(name, torch.zeros_like(value)) + value.detach() * share
        return total

    def _loss(self, trained: nn.Module, batch: Any) -> dict[str, Tensor]:
        device, asked = self.worker.device, self.spec.precision
        lower = computes_in_bfloat16(device) if asked == "auto" else asked == "bf16"
        with torch.autocast(device.type, torch.bfloat16, enabled=lower):
            return dict(trained(batch))

    def _is_bad(self, work: Work, finite: bool) -> bool:
        """Count a step without a finite loss; raise where there were too many in a row."""
        if not self.worker.largest(float(not finite))[0]:
            self.progress.in_a_row = 0
            return False
        self.progress.skipped += 1
        self.progress.in_a_row += 1
        if self.progress.in_a_row > self.spec.bad_steps:
            raise TrainingDiverged(
                f"stage {work.name}: no finite loss in {self.progress.in_a_row} steps up to step {self.progress.step}; lower "
                f"stages.{work.name}.rate, or look for values in the data that are no reflectance; the last good state is {self.out / 'state.pt'}"
            )
        return True

    def _log(self, work: Work, figures: Mapping[str, float], looked: Mapping[str, float]) -> None:
        """Collect the figures of a step, and write their means every few steps."""
        for name, value in figures.items():
            self.progress.seen.setdefault(name, []).append(value)
        if self.progress.step % self.spec.log_steps == 0 or looked or self.progress.step == work.spec.steps:
            means = self.worker.mean({name: sum(values) / len(values) for name, values in self.progress.seen.items()})
            means |= {"skipped": float(self.progress.skipped), **{name: value for name, value in looked.items() if name != "stop"}}
            self.book.write(work.name, self.progress.step, means)
            self.report({"step": float(self.progress.step), **means})
            self.progress.seen = {}

    def _save(self, work: Work, optimizer: torch.optim.Optimizer) -> None:
        """Write the state in the middle of a stage."""
        if self.worker.writes:
            own = {name: value for name, value in work.objective.state_dict().items() if not name.startswith("model.")}
            inner = {"objective": own, "optimizer": optimizer.state_dict(), "extra": work.extra()}
            write_state(self.out, self.identity, self._state() | inner)

    def _state(self) -> dict[str, Any]:
        at = self.progress
        return {"stage": at.stage, "step": at.step, "skipped": at.skipped, "model": self.model.state_dict()}

    def _end(self, work: Work) -> None:
        """Write the model of a stage that is over, then the state that says so."""
        last = work.finish()
        self.model.requires_grad_(True)
        if self.worker.writes:
            if last:
                self.book.write(work.name, self.progress.step, last)
            work.write(self.out / work.name, self.model, self.processor)
            if self.progress.stage + 1 == len(self.stages):
                work.write(self.out, self.model, self.processor)
        self.progress = Progress(self.progress.stage + 1)
        if self.worker.writes:
            write_state(self.out, self.identity, self._state())
