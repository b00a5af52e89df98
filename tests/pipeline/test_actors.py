"""What an actor does when it fails, on a real cluster with real actors: which units are lost, who is blamed, and how a run says it.

The segmenters here are the real ones, but for a planner that raises, gives NaN, or ends its process on the blocks that a test chooses.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import cloudpickle
from ray.exceptions import WorkerCrashedError

from engine.runtimes.cache import EngineCache
from pipeline.actors import Sizing
from pipeline.cluster import cluster
from pipeline.commit import CommitContext
from pipeline.demo import write_demo
from pipeline.engines import SharedEngine
from pipeline.errors import LeaseLost, RunInterrupted
from pipeline.failures import Failure, failure_of
from pipeline.fleet import Fleet, Patience, _reason
from pipeline.grid import PixelBox
from pipeline.job import JobSpec, load_job
from pipeline.nodes import NodeFacts, _answer, living_nodes
from pipeline.plan import Plan
from pipeline.run import prepare
from pipeline.runs import TileRecord
from pipeline.schedule import Scheduler
from pipeline.segment import Segmenter
from pipeline.storage import Storage
from pipeline.units import SegmenterSettings, Unit
from stac.records import ModelReference

cloudpickle.register_pickle_by_value(sys.modules[__name__])

SIDE = 160
"""Of tiles and blocks, pixels."""
SIZING = Sizing(1, 0, 0.5, 2, "one actor")


@dataclass(frozen=True)
class Fault:
    """What goes wrong on which tile (empty: on every one), once or always."""

    kind: str
    tile: str
    marks: Path
    """Folder in which a fault that happens once leaves a mark."""
    once: bool

    def strikes(self, tile: str) -> bool:
        if self.tile not in ("", tile):
            return False
        try:
            (self.marks / "once").touch(exist_ok=not self.once)
        except FileExistsError:
            return False
        with (self.marks / "strikes").open("a") as log:
            log.write(f"{tile}\n")
        return True

    def strike(self, probabilities: torch.Tensor) -> torch.Tensor:
        if self.kind == "nan":
            return torch.full_like(probabilities, torch.nan)
        if self.kind == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        raise {
            "memory": MemoryError("unable to allocate 9 GiB"),
            "cuda": RuntimeError("CUDA error: an illegal memory access was encountered"),
            "glitch": ValueError("a glitch"),
        }[self.kind]


def faulty(fault: Fault) -> type[Segmenter]:
    """Return a segmenter whose planner fails as `fault` says."""

    class FaultySegmenter(Segmenter):
        def __init__(self, settings: SegmenterSettings) -> None:
            super().__init__(settings)
            self._here = threading.local()
            planner = self._executor.planner
            self._executor.planner = lambda reflectance: self._failing(planner, reflectance)

        def _segment(self, unit: Unit, box: PixelBox, block: Any) -> Any:
            self._here.strikes = fault.strikes(unit.tile)
            return super()._segment(unit, box, block)

        def _failing(self, planner: Callable[[torch.Tensor], torch.Tensor], reflectance: torch.Tensor) -> torch.Tensor:
            probabilities = planner(reflectance)
            return fault.strike(probabilities) if self._here.strikes else probabilities

    return FaultySegmenter


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> JobSpec:
    folder = tmp_path_factory.mktemp("demo")
    write_demo(folder, seed=7, size=128)
    return load_job(folder / "job.yaml", [f"grid.tile={SIDE}", "explain=false"])


@pytest.fixture(scope="module")
def plan(job: JobSpec) -> Plan:
    made = prepare(job, block=SIDE)
    assert len(made.tiles) == 4
    return made


@pytest.fixture(scope="module")
def running() -> Iterator[None]:
    with cluster("local"):
        yield


@dataclass(frozen=True)
class Ended:
    """How the tiles ended, and what the fleet says of actors and nodes."""

    records: Mapping[str, TileRecord]
    actors: int
    left_out: Mapping[str, str]
    strikes: list[str]

    @property
    def failed(self) -> dict[str, str]:
        return {name: record.reason for name, record in self.records.items() if record.state == "failed"}


def settings_of(job: JobSpec, plan: Plan, output: str, **changes: Any) -> SegmenterSettings:
    return SegmenterSettings(output, plan.series, plan.region, plan.bands, plan.dilate, job.model, plan.window, plan.stride, 2, block=SIDE, **changes)


def walk(job: JobSpec, plan: Plan, folder: Path, kind: str, tile: str = "", *, once: bool, fleets: list[Fleet] | None = None) -> Ended:
    """Map the plan with an actor that fails as told."""
    output, marks = str(folder / "output"), folder / "marks"
    marks.mkdir()
    fault = Fault(kind, tile, marks, once)
    fleet = Fleet(settings_of(job, plan, output), SIZING, Patience(place=5, ping=1, answer=4), faulty(fault))
    if fleets is not None:
        fleets.append(fleet)
    context = CommitContext(output, plan.series, plan.period, plan.created, ModelReference("m", "m", "f"), {}, {}, "CC0-1.0", (), False)
    try:
        fleet.start()
        records = list(Scheduler(plan, Storage(output), fleet, context, {}).run(plan.tiles))
    finally:
        fleet.close()
    assert sorted(record.tile for record in records) == sorted(each.id for each in plan.tiles)
    strikes = (marks / "strikes").read_text().split()
    return Ended({record.tile: record for record in records}, sum(fleet.placed.values()), dict(fleet.left_out), strikes)


@pytest.mark.cluster
def test_memory_that_runs_out_once_costs_nothing(running: None, job: JobSpec, plan: Plan, tmp_path: Path) -> None:
    ended = walk(job, plan, tmp_path, "memory", once=True)
    assert not ended.failed
    assert ended.actors == 1


@pytest.mark.cluster
def test_block_that_never_fits_memory_fails_its_tile_and_says_what_to_lower(running: None, job: JobSpec, plan: Plan, tmp_path: Path) -> None:
    bad = plan.tiles[1].id
    ended = walk(job, plan, tmp_path, "memory", bad, once=False)
    assert set(ended.failed) == {bad}
    assert f"smaller --block ({SIDE} pixels now)" in ended.failed[bad]
    assert ended.strikes == [bad] * 4, "two processes, twice each"
    assert not ended.left_out


@pytest.mark.cluster
@pytest.mark.parametrize("kind", ["nan", "cuda"])
def test_device_that_fails_once_loses_its_actor_and_no_tile(running: None, job: JobSpec, plan: Plan, tmp_path: Path, kind: str) -> None:
    ended = walk(job, plan, tmp_path, kind, once=True)
    assert not ended.failed
    assert ended.actors == 2
    assert not ended.left_out


@pytest.mark.cluster
def test_block_that_fails_on_every_device_fails_its_tile_and_no_node(running: None, job: JobSpec, plan: Plan, tmp_path: Path) -> None:
    bad = plan.tiles[2].id
    ended = walk(job, plan, tmp_path, "nan", bad, once=False)
    assert set(ended.failed) == {bad}
    assert "not numbers" in ended.failed[bad]
    assert not ended.left_out


@pytest.mark.cluster
def test_node_whose_device_always_fails_is_left_out_and_the_run_can_be_started_again(running: None, job: JobSpec, plan: Plan, tmp_path: Path) -> None:
    fleets: list[Fleet] = []
    with pytest.raises(RunInterrupted, match=r"no node is left .* goes on from here") as stopped:
        walk(job, plan, tmp_path, "cuda", once=False, fleets=fleets)
    ((address, why),) = fleets[0].left_out.items()
    assert address in str(stopped.value)
    assert "illegal memory access" in why


@pytest.mark.cluster
def test_block_that_kills_its_process_fails_its_tile_only(running: None, job: JobSpec, plan: Plan, tmp_path: Path) -> None:
    """Innocent units queue behind it; none of them is given up with it."""
    bad = plan.tiles[0].id
    ended = walk(job, plan, tmp_path, "death", bad, once=False)
    assert set(ended.failed) == {bad}
    assert ended.strikes == [bad] * 3


@pytest.mark.cluster
def test_process_that_freezes_is_replaced(running: None, job: JobSpec, plan: Plan, tmp_path: Path) -> None:
    """Nothing is wrong with its node, so only a question to the process itself finds it out."""
    ended = walk(job, plan, tmp_path, "freeze", once=True)
    assert not ended.failed
    assert ended.actors == 2


def die(model: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.cluster
def test_node_on_which_every_process_dies_is_no_wrong_installation(running: None) -> None:
    """As on a full disk. The same command is right later, so it is not status 2."""
    (node,) = living_nodes()
    dying = ray.remote(num_cpus=0, max_retries=0)(die).remote("")
    with pytest.raises(RunInterrupted, match=rf"{node.address} starts no process that lives: .*disk"):
        _answer(node, dying, NodeFacts("3", {}, "none"), time.monotonic() + 60)


@pytest.mark.cluster
def test_death_of_a_process_names_the_folder_that_is_full(running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dying = ray.remote(num_cpus=0, max_retries=0)(die).remote("")
    with pytest.raises(WorkerCrashedError) as death:
        ray.get(dying)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert "MB free" not in _reason(death.value)
    monkeypatch.setattr("pipeline.cluster.LEAST_TEMPORARY", shutil.disk_usage(tmp_path).total + 1)
    assert re.search(rf"; {re.escape(str(tmp_path))} has only [0-9.]+ MB free", _reason(death.value))


class TakenOver:
    """The fence of a run that another one has followed."""

    def check(self) -> None:
        raise LeaseLost("the output is another's")


@pytest.mark.cluster
def test_run_that_lost_its_output_stops_at_once(running: None, job: JobSpec, plan: Plan, tmp_path: Path) -> None:
    output = str(tmp_path / "output")
    fleet = Fleet(settings_of(job, plan, output, fence=TakenOver()), SIZING)
    context = CommitContext(output, plan.series, plan.period, plan.created, ModelReference("m", "m", "f"), {}, {}, "CC0-1.0", (), False)
    try:
        fleet.start()
        with pytest.raises(LeaseLost, match="the output is another's"):
            list(Scheduler(plan, Storage(output), fleet, context, {}).run(plan.tiles))
    finally:
        fleet.close()
    assert not list(Path(output).rglob("*.tif")) and not list(Path(output).rglob("*.arrow"))


@pytest.mark.cluster
def test_every_actor_takes_the_batch_of_the_first(running: None, job: JobSpec, plan: Plan, tmp_path: Path) -> None:
    """A run that is resumed gives the batch that run.json keeps; actors that chose for themselves would give other bytes."""
    for asked, expected in ((None, 1), (3, 3)):
        fleet = Fleet(settings_of(job, plan, str(tmp_path), batch=asked), Sizing(2, 0, 0.5, 2, "two actors"))
        try:
            identity = fleet.start()
            while sum(fleet.placed.values()) < 2:
                fleet.wait(1)
        finally:
            fleet.close()
        assert identity["batch"][0] == expected
        assert not fleet.left_out


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"), Failure.MEMORY),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), Failure.MEMORY),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), Failure.DEVICE),
        (RuntimeError("CUDA error: device-side assert triggered"), Failure.DEVICE),
        (RuntimeError("the sizes of tensors must match"), Failure.ERROR),
        (ValueError("out of memory"), Failure.ERROR),
    ],
)
def test_errors_have_a_kind(error: Exception, kind: Failure) -> None:
    assert failure_of(error) is kind


@pytest.mark.parametrize(
    ("nodes", "workers", "count", "gpus"),
    [
        ([{"CPU": 2}], None, 1, 0),
        ([{"CPU": 2}], 3, 3, 0),
        ([{}, {"CPU": 1}, {"CPU": 1}, {"CPU": 1}], None, 3, 0),
        ([{"CPU": 8}, {"CPU": 3}], None, 5, 0),
        ([{"CPU": 2}, {"CPU": 16, "GPU": 2}], None, 2, 1),
        ([{"CPU": 16, "GPU": 4}], 3, 3, 1),
        ([{"CPU": 16, "GPU": 2}], 5, 2, 1),
    ],
)
def test_actors_fit_on_the_nodes_and_leave_room_for_tasks(nodes: list[dict[str, float]], workers: int | None, count: int, gpus: int) -> None:
    sizing = Sizing.of(nodes, workers)
    assert (sizing.workers, sizing.gpus) == (count, gpus)
    places = [int(node.get("GPU", 0) // gpus if gpus else (node.get("CPU", 0) - 0.5) / sizing.cpus + 1e-9) for node in nodes]
    assert sum(places) >= count


def test_other_nodes_read_for_gpus_without_cores_where_there_is_room() -> None:
    poor: list[dict[str, float]] = [{"CPU": 2, "GPU": 2}, {"CPU": 8, "object_store_memory": 1e9}]
    assert Sizing.of(poor, None).with_readers(poor, 50_000_000).readers
    assert not Sizing.of(poor, None).with_readers(poor, 100_000_000).readers, "blocks on their way would fill the object store"
    rich: list[dict[str, float]] = [{"CPU": 16, "GPU": 2}, {"CPU": 8, "object_store_memory": 1e9}]
    assert not Sizing.of(rich, None).with_readers(rich, 50_000_000).readers


def test_engine_of_the_first_actor_replaces_another_nodes_own(tmp_path: Path) -> None:
    """Two engines of one graph differ in their bytes, and with them the maps; the identity names the one that counts."""
    first, other = EngineCache(tmp_path / "first"), EngineCache(tmp_path / "other")
    first.write("key", b"chosen by timing on the first node")
    first.write("another", b"of another model")
    other.write("key", b"chosen by timing on the other node")
    digest = (tmp_path / "first" / "key").read_bytes()[:32].hex()
    shared = SharedEngine.of({"engine": digest}, first)
    assert shared is not None
    shared.keep(other)
    assert other.read("key") == b"chosen by timing on the first node"
    assert SharedEngine.of({"runtime": "openvino"}, first) is None
    assert SharedEngine.of({"engine": "00" * 32}, first) is None
