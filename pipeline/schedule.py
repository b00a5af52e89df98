"""The driver's walk over the tiles of a frozen plan: units out, outcomes in, tiles committed one by one.

A bounded number of units is in flight, whatever the region. A unit that fails is tried again; a scene that cannot be read is left out of
its whole tile, so that a tile is made from one set of scenes everywhere; a unit whose actor died twice runs alone, and a third death fails its tile
while the others go on. A unit for which memory ran out is given to one more process, then its tile fails. Where storage does not answer or another
run holds the output, the run stops.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from pipeline.actors import UNITS_PER_ACTOR, Event, Lost
from pipeline.commit import Commit, CommitContext, CommitFailed, Committed
from pipeline.errors import LeaseLost, StorageUnavailable
from pipeline.failures import Failure
from pipeline.fleet import Fleet
from pipeline.grid import PixelBox
from pipeline.plan import Plan, TilePlan
from pipeline.published import PublishedTile
from pipeline.runs import TileRecord
from pipeline.staging import staged_boxes
from pipeline.storage import Storage
from pipeline.units import Unit, UnitOutcome
from stac.scenes import Scene

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""How often a unit or a commit that raises is tried."""
DEATHS = 3
MEMORY_FAILURES = 2
"""In how many processes a unit may run out of memory; each one tries it twice."""
WAIT_SECONDS = 10.0
STALL_SECONDS = 120.0
"""When nothing has come back for so long, the log says what is being waited for."""


@dataclass(eq=False)
class _Work:
    """A tile under way."""

    tile: TilePlan
    scenes: tuple[Scene, ...]
    fingerprint: str
    boxes: tuple[PixelBox, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    staged: set[PixelBox] = field(default_factory=set)
    commits: int = 0
    started: float = field(default_factory=time.monotonic)


class Scheduler:
    """Maps the tiles of a plan; `run` yields one record for each tile as it ends."""

    def __init__(self, plan: Plan, storage: Storage, fleet: Fleet, context: CommitContext, published: Mapping[str, PublishedTile]) -> None:
        self._plan = plan
        self._storage = storage
        self._fleet = fleet
        self._context = context
        self._published = published
        self._work: dict[str, _Work] = {}
        self._queue: deque[Unit] = deque()
        self._ended: deque[TileRecord] = deque()

    def run(self, tiles: Iterable[TilePlan]) -> Iterator[TileRecord]:
        """Map `tiles`, yielding how each one ended; the order is that of ending."""
        waiting = iter(tiles)
        last_event = time.monotonic()
        while True:
            self._admit(waiting)
            self._feed()
            yield from self._drain()
            if not self._fleet.in_flight and not self._work:
                return
            events = self._fleet.wait(WAIT_SECONDS)
            if events:
                last_event = time.monotonic()
            elif time.monotonic() - last_event > STALL_SECONDS:
                log.warning("nothing has come back for %.0f s; waiting for %s", time.monotonic() - last_event, ", ".join(sorted(self._work)))
                last_event = time.monotonic()
            for event in events:
                self._settle(event)

    def _drain(self) -> Iterator[TileRecord]:
        while self._ended:
            yield self._ended.popleft()

    def _admit(self, waiting: Iterator[TilePlan]) -> None:
        """Open tiles until there is a unit for every free place, one even where no actor is ready; few are open at a time."""
        most = self._fleet.sizing.workers * UNITS_PER_ACTOR + 1
        while (not self._work or len(self._queue) < self._fleet.free_slots()) and len(self._work) < most:
            tile = next(waiting, None)
            if tile is None:
                return
            scenes = self._plan.scenes_of(tile)
            work = _Work(tile, scenes, tile.fingerprint, self._plan.blocks_of(tile))
            self._work[tile.id] = work
            self._open(work)

    def _open(self, work: _Work) -> None:
        """Queue the blocks of a tile that are not staged; a tile with all of them goes on to its commit."""
        work.staged = staged_boxes(self._storage, work.fingerprint) & set(work.boxes)
        left_out = tuple(self._plan.scene[name] for name in sorted(work.left_out))
        for box in work.boxes:
            if box not in work.staged:
                self._queue.append(Unit(work.tile.id, work.fingerprint, (box,), work.scenes, left_out))
        self._commit_if_complete(work)

    def _feed(self) -> None:
        for _ in range(len(self._queue)):
            unit = self._queue.popleft()
            if not self._is_current(unit):
                continue
            if not self._fleet.submit(unit):
                self._queue.append(unit)

    def _is_current(self, unit: Unit) -> bool:
        work = self._work.get(unit.tile)
        return work is not None and work.fingerprint == unit.fingerprint

    def _settle(self, event: Event) -> None:
        if isinstance(event, UnitOutcome):
            self._settle_unit(event)
        elif isinstance(event, Lost):
            self._settle_death(event)
        elif isinstance(event, Committed):
            self._settle_commit(event)
        else:
            self._settle_failed_commit(event)

    def _settle_unit(self, outcome: UnitOutcome) -> None:
        unit = outcome.unit
        if not self._is_current(unit):
            return
        work = self._work[unit.tile]
        if outcome.failures:
            self._leave_out(work, dict(outcome.failures))
        elif outcome.error:
            self._settle_failure(work, outcome)
        else:
            log.info("%s: read %.1f s, segmented %.1f s", unit, outcome.read_seconds, outcome.segment_seconds)
            work.staged.update(unit.boxes)
            self._commit_if_complete(work)

    def _settle_failure(self, work: _Work, outcome: UnitOutcome) -> None:
        unit = outcome.unit
        self._stop_for(outcome.failure, outcome.error, final=unit.attempts + 1 >= ATTEMPTS)
        if outcome.failure is Failure.MEMORY:
            self._retry(work, replace(unit, memory_failures=unit.memory_failures + 1), outcome.error)
            return
        avoid = (*unit.avoid, outcome.node) if outcome.failure is Failure.DEVICE else unit.avoid
        self._retry(work, replace(unit, attempts=unit.attempts + 1, avoid=avoid), outcome.error)

    def _retry(self, work: _Work, unit: Unit, reason: str) -> None:
        where = f"at blocks {[box.top for box in unit.boxes]}"
        if unit.memory_failures >= MEMORY_FAILURES:
            self._fail(work, f"memory ran out in {MEMORY_FAILURES} processes {where}: {reason}")
        elif unit.attempts >= ATTEMPTS:
            if unit.avoid:
                self._fleet.acquit(unit)
            self._fail(work, f"failed {ATTEMPTS} times {where}: {reason}")
        else:
            log.warning("%s failed (%s); trying again", unit, reason)
            self._queue.append(unit)

    def _settle_death(self, lost: Lost) -> None:
        if not self._is_current(lost.unit):
            return
        if not lost.charged:
            self._queue.appendleft(lost.unit)
            return
        unit = replace(lost.unit, deaths=lost.unit.deaths + 1)
        if unit.deaths >= DEATHS:
            self._fail(self._work[unit.tile], f"its actor died {DEATHS} times, the last time on this unit alone: {lost.reason}")
        else:
            self._queue.append(unit)

    def _leave_out(self, work: _Work, failures: Mapping[str, str]) -> None:
        """Start the tile again from the scenes that can be read."""
        work.left_out.update(failures)
        work.scenes = tuple(scene for scene in work.scenes if scene.id not in work.left_out)
        for name, reason in failures.items():
            log.warning("tile %s: scene %s is left out: %s", work.tile.id, name, reason)
        if not work.scenes or self._has_only_neighbours(work):
            self._fail(work, "no scene could be read: " + "; ".join(f"{name}: {reason}" for name, reason in sorted(work.left_out.items())))
            return
        work.fingerprint = self._plan.fingerprint_of(work.tile, work.scenes)
        published = self._published.get(work.tile.id)
        if published is not None and published.fingerprint == work.fingerprint:
            self._end(work, TileRecord(work.tile.id, "skipped", published.key.version, _missing(work.left_out)))
        else:
            self._open(work)

    def _has_only_neighbours(self, work: _Work) -> bool:
        """Return whether those that showed the tile itself are left out, and what is left shows only the surroundings that are read with it."""
        outline = self._plan.outline(work.tile.box)
        lost = (self._plan.scene[name] for name in work.left_out)
        return any(outline.intersects(scene.footprint) for scene in lost) and not any(outline.intersects(s.footprint) for s in work.scenes)

    def _commit_if_complete(self, work: _Work) -> None:
        self._storage.check_fence()
        if work.staged < set(work.boxes):
            return
        published = self._published.get(work.tile.id)
        self._fleet.commit(
            Commit(
                context=self._context,
                tile=work.tile,
                scenes=work.scenes,
                left_out=dict(work.left_out),
                fingerprint=work.fingerprint,
                boxes=work.boxes,
                version=1 if published is None else published.key.version + 1,
            )
        )

    def _settle_commit(self, committed: Committed) -> None:
        work = self._work[committed.tile]
        seconds = time.monotonic() - work.started
        self._end(work, TileRecord(work.tile.id, "done", committed.version, _missing(work.left_out), seconds, committed.areas))

    def _settle_failed_commit(self, failed: CommitFailed) -> None:
        work = self._work[failed.commit.tile.id]
        work.commits += 1
        self._stop_for(failed.failure, failed.reason, final=work.commits >= ATTEMPTS)
        if work.commits >= ATTEMPTS:
            self._fail(work, f"its files could not be made or written: {failed.reason}")
            return
        log.warning("tile %s: commit failed (%s); trying again", work.tile.id, failed.reason)
        self._open(work)

    def _fail(self, work: _Work, reason: str) -> None:
        self._end(work, TileRecord(work.tile.id, "failed", 0, reason, time.monotonic() - work.started))

    def _end(self, work: _Work, record: TileRecord) -> None:
        del self._work[work.tile.id]
        self._ended.append(record)

    def _stop_for(self, failure: Failure, reason: str, final: bool) -> None:
        """Raise what ends the whole run: the output is another's, or storage answers neither the worker, which asked for minutes, nor us."""
        if failure is Failure.LEASE:
            raise LeaseLost(reason.partition(": ")[2] or reason)
        if failure is Failure.STORAGE and (final or not self._storage.answers()):
            raise StorageUnavailable(reason.partition(": ")[2] or reason)


def _missing(left_out: Mapping[str, str]) -> str:
    return "; ".join(f"without {name}: {reason}" for name, reason in sorted(left_out.items()))
