"""The walk over the tiles: what one bad unit costs, and what it must not cost the others.

The fleet here is in this process and ends units as each test says; `test_run.py` does the same walk with Ray's actors.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from shapely.geometry import box as rectangle

from pipeline.actors import UNITS_PER_ACTOR, Event, Lost, Sizing
from pipeline.commit import Commit, CommitContext, CommitFailed, Committed
from pipeline.errors import LeaseLost, StorageUnavailable
from pipeline.failures import Failure
from pipeline.grid import Grid, PixelBox
from pipeline.period import Period
from pipeline.plan import WHOLE, Plan, TilePlan
from pipeline.region import Region
from pipeline.runs import TileRecord
from pipeline.schedule import Scheduler
from pipeline.series import MapClass, Series
from pipeline.staging import PLANES, StagedBlock, stage
from pipeline.storage import Storage
from pipeline.units import Unit, UnitOutcome
from stac.records import ModelReference
from stac.scenes import BandSource, Scene

SIDE = 256
SERIES = Series("s", Grid("EPSG:32633", 10, (0, 0), 2 * SIDE), (MapClass(1, "water", "Water", "water", 0.5, "#0000ff"),), "f" * 64, "latest", 60)
TYPES = {name: np.uint16 if name == "source" else np.uint8 for name in PLANES}


def scene(name: str) -> Scene:
    return Scene(name, "c", "naip", datetime(2023, 8, 1, tzinfo=UTC), rectangle(0, 0, 1, 1), {"red": BandSource(f"/{name}.tif")}, None)


def plan_of(tiles: int, scenes: tuple[str, ...] = ("a", "b")) -> Plan:
    cells = [PixelBox(0, 2 * SIDE * n, 2 * SIDE, 2 * SIDE * (n + 1)) for n in range(tiles)]
    planned = tuple(TilePlan(f"t{n}", cell, scenes, f"{n:064d}", WHOLE) for n, cell in enumerate(cells))
    return Plan(
        series=SERIES,
        period=Period(date(2023, 8, 1), date(2023, 8, 31)),
        region=Region(rectangle(0, 0, 1, 1)),
        bands=("red",),
        scenes=tuple(map(scene, scenes)),
        tiles=planned,
        created=datetime(2023, 8, 1, tzinfo=UTC),
        dilate=(6, 6),
        explain=False,
        window=320,
        stride=SIDE,
        key="k",
        block=SIDE,
    )


Ending = Callable[[Unit], Event]


class LocalFleet:
    """Two places for units; `ending` says how each one ends, `order` which of the running ones ends next."""

    def __init__(self, storage: Storage, ending: Ending, seed: int = 0) -> None:
        self.sizing = Sizing(1, 0, 1, 2, "here")
        self.ended: Counter[str] = Counter()
        self.commit_failures = 0
        self.most_in_flight = 0
        self._storage, self._ending, self._random = storage, ending, random.Random(seed)
        self._units: list[Unit] = []
        self._commits: list[Commit] = []

    @property
    def in_flight(self) -> int:
        return len(self._units) + len(self._commits)

    def free_slots(self) -> int:
        return 0 if any(unit.alone for unit in self._units) else UNITS_PER_ACTOR - len(self._units)

    def submit(self, unit: Unit) -> bool:
        if self.free_slots() <= 0 or (unit.alone and self._units):
            return False
        self._units.append(unit)
        self.most_in_flight = max(self.most_in_flight, len(self._units))
        return True

    def commit(self, commit: Commit) -> None:
        self._commits.append(commit)

    def wait(self, seconds: float) -> list[Event]:
        if self._commits and (not self._units or self._random.random() < 0.5):
            return [self._end_commit(self._commits.pop(self._random.randrange(len(self._commits))))]
        unit = self._units.pop(self._random.randrange(len(self._units)))
        event = self._ending(unit)
        self.ended[type(event).__name__] += 1
        if isinstance(event, Lost):
            others, self._units = self._units, []
            return [event, *(replace(event, unit=other) for other in others)]
        if isinstance(event, UnitOutcome) and not event.error and not event.failures:
            self._stage(unit)
        return [event]

    def _stage(self, unit: Unit) -> None:
        for box in unit.boxes:
            planes = {name: np.zeros(box.shape, kind) for name, kind in TYPES.items()}
            stage(self._storage, unit.fingerprint, StagedBlock(box, planes, {}))

    def _end_commit(self, commit: Commit) -> Event:
        if self.commit_failures:
            self.commit_failures -= 1
            return CommitFailed(commit, "the disk was full")
        return Committed(commit.tile.id, commit.version, {"water": 1.0})


def walk(folder: Path, tiles: int, ending: Ending, seed: int = 0, commit_failures: int = 0) -> tuple[Mapping[str, TileRecord], LocalFleet]:
    storage, plan = Storage(str(folder)), plan_of(tiles)
    fleet = LocalFleet(storage, ending, seed)
    fleet.commit_failures = commit_failures
    context = CommitContext(str(folder), SERIES, plan.period, plan.created, ModelReference("m", "m", "f"), {}, {}, "CC0-1.0", (), False)
    records = list(Scheduler(plan, storage, fleet, context, {}).run(plan.tiles))  # type: ignore[arg-type]
    assert len({record.tile for record in records}) == len(records) == tiles
    return {record.tile: record for record in records}, fleet


@pytest.mark.parametrize("seed", range(5))
def test_every_tile_ends_once_in_whatever_order_units_end(tmp_path: Path, seed: int) -> None:
    records, fleet = walk(tmp_path, 7, UnitOutcome, seed)
    assert {record.state for record in records.values()} == {"done"}
    assert fleet.ended["UnitOutcome"] == 7 * 4
    assert fleet.most_in_flight <= UNITS_PER_ACTOR


def test_unit_that_fails_now_and_then_is_made(tmp_path: Path) -> None:
    records, _ = walk(tmp_path, 3, lambda unit: UnitOutcome(unit, error="" if unit.attempts == 2 else "a glitch"))
    assert {record.state for record in records.values()} == {"done"}


def test_unit_that_always_fails_costs_its_tile_only(tmp_path: Path) -> None:
    records, _ = walk(tmp_path, 4, lambda unit: UnitOutcome(unit, error="bad luck" if unit.tile == "t1" else ""))
    assert {name: record.state for name, record in records.items()} == {"t0": "done", "t1": "failed", "t2": "done", "t3": "done"}
    assert "bad luck" in records["t1"].reason


@pytest.mark.parametrize("seed", range(10))
def test_unit_that_kills_its_actor_costs_its_tile_only(tmp_path: Path, seed: int) -> None:
    poison = PixelBox(SIDE, 3 * SIDE, 2 * SIDE, 4 * SIDE)
    records, fleet = walk(tmp_path, 5, lambda unit: Lost(unit, "killed") if poison in unit.boxes else UnitOutcome(unit), seed)
    assert {name for name, record in records.items() if record.state == "failed"} == {"t1"}
    assert fleet.ended["Lost"] == 3


def test_unit_whose_node_went_is_not_charged(tmp_path: Path) -> None:
    """A cluster of machines that are taken back every few minutes loses none of its tiles by that."""
    losses: Counter[str] = Counter()

    def ending(unit: Unit) -> Event:
        losses[str(unit)] += 1
        return Lost(unit, "the node went", charged=False) if losses[str(unit)] <= 5 else UnitOutcome(unit)

    records, _ = walk(tmp_path, 2, ending)
    assert {record.state for record in records.values()} == {"done"}


@pytest.mark.parametrize(("failure", "error"), [(Failure.LEASE, LeaseLost), (Failure.STORAGE, StorageUnavailable)])
def test_what_concerns_every_tile_ends_the_run(tmp_path: Path, failure: Failure, error: type[Exception]) -> None:
    with pytest.raises(error, match="why"):
        walk(tmp_path, 2, lambda unit: UnitOutcome(unit, error="Error: why", failure=failure))


def test_scene_that_cannot_be_read_is_left_out_of_its_whole_tile(tmp_path: Path) -> None:
    def ending(unit: Unit) -> Event:
        broken = unit.tile == "t0" and unit.boxes[0].top == SIDE and "b" in {scene.id for scene in unit.scenes}
        return UnitOutcome(unit, failures=(("b", "truncated"),) if broken else ())

    records, _ = walk(tmp_path, 2, ending)
    assert records["t0"].reason == "without b: truncated"
    assert records["t1"].reason == ""
    assert {record.state for record in records.values()} == {"done"}


def test_tile_of_which_no_scene_can_be_read_is_named(tmp_path: Path) -> None:
    records, _ = walk(
        tmp_path, 2, lambda unit: UnitOutcome(unit, failures=tuple((s.id, "gone") for s in unit.scenes[:1]) if unit.tile == "t1" else ())
    )
    assert records["t1"].state == "failed"
    assert "a: gone" in records["t1"].reason
    assert "b: gone" in records["t1"].reason
    assert records["t0"].state == "done"


@pytest.mark.parametrize(("failures", "state"), [(1, "done"), (2, "done"), (3, "failed")])
def test_commit_is_tried_three_times(tmp_path: Path, failures: int, state: str) -> None:
    records, _ = walk(tmp_path, 1, UnitOutcome, commit_failures=failures)
    assert records["t0"].state == state


def test_staged_blocks_are_not_made_again(tmp_path: Path) -> None:
    plan = plan_of(1)
    first, *_ = plan.blocks_of(plan.tiles[0])
    planes = {name: np.zeros(first.shape, kind) for name, kind in TYPES.items()}
    stage(Storage(str(tmp_path)), plan.tiles[0].fingerprint, StagedBlock(first, planes, {}))
    _, fleet = walk(tmp_path, 1, UnitOutcome)
    assert fleet.ended["UnitOutcome"] == 3
