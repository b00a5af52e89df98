"""A run without the model: load, search, plan, schedule and read as `spexmap run` does, in this process; what it would say and leave with."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tenacity import wait_none

from pipeline.actors import UNITS_PER_ACTOR, Event, Sizing
from pipeline.assets import AssetReader
from pipeline.cli import _command
from pipeline.commit import Commit, CommitContext, Committed
from pipeline.grid import PixelBox
from pipeline.job import JobSpec, load_job
from pipeline.model import JobModel, inspect_model
from pipeline.plan import Plan
from pipeline.read import Block, BlockReader, Recipe
from pipeline.run import prepare
from pipeline.schedule import Scheduler
from pipeline.staging import PLANES, StagedBlock, stage
from pipeline.storage import Storage
from pipeline.units import Unit, UnitOutcome
from stac.records import ModelReference

TYPES = {name: np.uint16 if name == "source" else np.uint8 for name in PLANES}


@dataclass
class Rehearsal:
    """What a run would do."""

    status: int = -1
    said: str = ""
    """Last line on standard error."""
    stderr: str = ""
    plan: Plan | None = None
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    """Scene and reason, by tile."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reason, by tile."""
    blocks: dict[tuple[str, PixelBox], Block] = field(default_factory=dict)
    """What the segmenter would see of the tiles that would be published."""


class ReadingFleet:
    """Reads each unit for real; what the model would make of it is left out."""

    def __init__(self, plan: Plan, storage: Storage) -> None:
        self.sizing = Sizing(1, 0, 1, 2, "here")
        self.blocks: dict[tuple[str, PixelBox], Block] = {}
        self.left_out: dict[str, dict[str, str]] = {}
        self._recipe = Recipe(plan.bands, plan.series.composite, plan.dilate)
        self._plan, self._storage = plan, storage
        self._readers: dict[tuple[str, ...], BlockReader] = {}
        self._work: deque[Unit | Commit] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._work)

    def free_slots(self) -> int:
        return UNITS_PER_ACTOR - sum(isinstance(entry, Unit) for entry in self._work)

    def submit(self, unit: Unit) -> bool:
        self._work.append(unit)
        return True

    def commit(self, commit: Commit) -> None:
        self._work.append(commit)

    def wait(self, seconds: float) -> list[Event]:
        work = self._work.popleft()
        if isinstance(work, Commit):
            self.left_out[work.tile.id] = dict(work.left_out)
            return [Committed(work.tile.id, work.version, {})]
        return [self._read(work)]

    def _read(self, unit: Unit) -> UnitOutcome:
        names = tuple(scene.id for scene in unit.scenes)
        if names not in self._readers:
            self._readers[names] = BlockReader(self._plan.grid, unit.scenes, self._recipe, assets=AssetReader(self._plan.grid, wait_none()))
        for box in unit.boxes:
            block = self._readers[names].read(box)
            if block.failures:
                return UnitOutcome(unit, failures=block.failures)
            self.blocks[unit.tile, box] = block
            stage(self._storage, unit.fingerprint, StagedBlock(box, {name: np.zeros(box.shape, kind) for name, kind in TYPES.items()}, {}))
        return UnitOutcome(unit)


def rehearse(job: Path, work: Path, overrides: Sequence[str] = ()) -> Rehearsal:
    """Return what `spexmap run` would say of a job and its data; `work` takes the staged blocks."""
    found, stderr = Rehearsal(), io.StringIO()

    def run() -> int:
        spec = load_job(job, overrides)
        with spec.naming_lines(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.run.inspect_model", _inspected)
            found.plan = prepare(spec)
        _walk(found.plan, Storage(str(work)), found)
        return 1 if found.failed else 0

    with redirect_stderr(stderr), pytest.raises(SystemExit) as leaving:
        _command(run)()
    found.status, found.stderr = int(leaving.value.code or 0), stderr.getvalue()
    found.said = (found.stderr.strip().splitlines() or [""])[-1]
    return found


def _inspected(job: JobSpec) -> JobModel:
    """Return what a job's model says of itself, read once for all jobs that ask the same: reading it takes as long as all the rest of a case."""
    key = job.model + repr(job.classes)
    if key not in _MODELS:
        _MODELS[key] = inspect_model(job)
    return _MODELS[key]


_MODELS: dict[str, JobModel] = {}


def _walk(plan: Plan, storage: Storage, found: Rehearsal) -> None:
    fleet = ReadingFleet(plan, storage)
    scheduler = Scheduler(plan, storage, fleet, _context(plan, storage), {})
    records = list(scheduler.run(plan.tiles))
    assert sorted(record.tile for record in records) == [tile.id for tile in plan.tiles], "a tile was lost or came twice"
    found.refused = dict(plan.refused)
    found.failed = {record.tile: record.reason for record in records if record.state == "failed"}
    found.left_out = fleet.left_out
    found.blocks = {key: block for key, block in fleet.blocks.items() if key[0] not in found.failed}


def _context(plan: Plan, storage: Storage) -> CommitContext:
    options: dict[str, Any] = {"output": storage.root, "series": plan.series, "period": plan.period, "created": plan.created}
    return CommitContext(**options, model=ModelReference("m", "m", "f"), identity={}, software={}, license="CC0-1.0", attribution=(), explain=False)
