"""One worker among those that train together: its part of a batch, and what all of them agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from engine.training.config import TrainingSpec
from engine.training.errors import TrainingDataError

T = TypeVar("T")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Worker:
    """A process that trains: number `rank` of `count`."""

    rank: int = 0
    count: int = 1
    device: torch.device = CPU

    @property
    def writes(self) -> bool:
        """Whether this is the worker that writes states, models and logs."""
        return self.rank == 0

    def wrap(self, module: nn.Module, unused: bool = True) -> nn.Module:
        """Return the module with gradients averaged over the workers; `unused` says whether some steps do without some parameters."""
        return module if self.count == 1 else DistributedDataParallel(module, find_unused_parameters=unused)

    def mean(self, figures: Mapping[str, float]) -> dict[str, float]:
        """Return the mean of each figure over the workers, all of which have the same ones."""
        if self.count == 1:
            return dict(figures)
        shared = torch.tensor([figures[name] for name in sorted(figures)], dtype=torch.float64, device=self.device)
        dist.all_reduce(shared)
        return dict(zip(sorted(figures), (shared / self.count).tolist(), strict=True))

    def largest(self, *values: float) -> list[float]:
        """Return the largest of each value over the workers: what one of them finds holds for all."""
        if self.count == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float32, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return shared.tolist()

    def share(self, windows: int) -> range:
        """Return which windows of a batch this worker computes; the parts differ by one at most."""
        return range(windows * self.rank // self.count, windows * (self.rank + 1) // self.count)


def check_shares(spec: TrainingSpec, workers: int) -> None:
    """Raise `TrainingDataError` where a batch cannot be shared evenly: gradients are averaged over workers, so equal parts alone count equally."""
    for name, stage in spec.stages.chosen.items():
        if stage.batch % workers:
            near = max(workers, round(stage.batch / workers) * workers)
            raise TrainingDataError(
                f"stages.{name}.batch is {stage.batch}, which {workers} workers cannot share evenly; give batch {near}, or another --workers"
            )


def windows_of(batch: Any) -> int:
    """Return the number of windows of a batch."""
    return int(batch.reflectance.shape[0])


def part_of(batch: T, start: int, stop: int) -> T:
    """Return windows `start` to `stop` of a batch: a dataclass whose tensors have the windows first."""
    return _changed(batch, lambda tensor: tensor[start:stop])


def on_device(batch: T, device: torch.device) -> T:
    """Return a batch with its tensors on a device."""
    return _changed(batch, lambda tensor: tensor.to(device, non_blocking=True))


def _changed(batch: T, change: Any) -> T:
    assert is_dataclass(batch) and not isinstance(batch, type)
    values = {each.name: getattr(batch, each.name) for each in fields(batch)}
    tensors = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
    nested = {name: _changed(value, change) for name, value in values.items() if is_dataclass(value)}
    return replace(batch, **tensors, **nested)
