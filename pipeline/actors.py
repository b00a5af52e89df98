"""Ray: segmenting actors pinned to accelerators, committing tasks beside them, and what comes back from both.

The driver holds references and plan rows, never pixels: an actor stages its blocks in the output, a committing task reads them there. Exceptions come
back as values that carry the unit; a dead actor comes back as one `Lost` for each unit that it held.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from pipeline.commit import Commit, Committed, commit_tile
from pipeline.errors import RunInterrupted
from pipeline.segment import Segmenter, SegmenterSettings, Unit, UnitOutcome

log = logging.getLogger(__name__)

UNITS_PER_ACTOR = 2
"""One that is computed and one that is read meanwhile."""
THREADS = 2
"""Intra-op threads of an actor."""
START_SECONDS = 300.0
"""An actor that has not loaded its model by then counts as lost."""


@dataclass(frozen=True)
class Sizing:
    """How many actors a cluster gets and what each one holds."""

    workers: int
    gpus: float
    """Accelerators an actor is pinned to: 1, or 0 where there is none."""
    cpus: float
    threads: int
    """Intra-op threads: part of the numerical identity."""
    reason: str

    @classmethod
    def of(cls, resources: dict[str, float], workers: int | None) -> Sizing:
        """Return the sizing for what `ray.cluster_resources` reports.

        One actor for each GPU. Without one, an actor for every two cores, or `workers`; together they leave half a core free, for actors that hold
        every core starve committing tasks. Threads do not depend on the number of actors, so that it changes no byte.
        """
        cores, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0))
        if gpus:
            count = min(workers or gpus, gpus)
            return cls(count, 1.0, 1.0, THREADS, f"{gpus} GPUs: {count} pinned actors")
        count = workers or max(1, int(cores // THREADS))
        return cls(count, 0.0, max(0.01, (cores - 0.5) / count), THREADS, f"no GPU, {cores:g} cores: {count} actors with {THREADS} threads")


@dataclass(frozen=True)
class Lost:
    """A unit whose actor died while it held the unit."""

    unit: Unit
    reason: str


@dataclass(frozen=True)
class CommitFailed:
    """A commit that raised."""

    commit: Commit
    reason: str


Event = UnitOutcome | Lost | Committed | CommitFailed


@dataclass(eq=False)
class _Slot:
    """One actor and the units that it holds."""

    actor: Any
    units: dict[Any, Unit] = field(default_factory=dict)

    @property
    def is_alone(self) -> bool:
        return any(unit.alone for unit in self.units.values())


class Fleet:
    """The actors of a run. `submit` and `commit` start work, `wait` brings back what has ended."""

    def __init__(self, settings: SegmenterSettings, sizing: Sizing) -> None:
        self.sizing = sizing
        self._settings = ray.put(settings)
        self._actor: Any = ray.remote(Segmenter)
        self._slots = [_Slot(self._start()) for _ in range(sizing.workers)]
        self._commits: dict[Any, Commit] = {}
        self._commit = ray.remote(num_cpus=0.5, max_retries=2)(commit_tile)

    def identity(self) -> dict[str, Any]:
        """Return the numerical identity that all actors share; raises RunInterrupted if one does not start or they differ."""
        try:
            identities = ray.get([slot.actor.identity.remote() for slot in self._slots], timeout=START_SECONDS)
        except RayError as error:
            raise RunInterrupted(f"a segmenting actor did not start: {_reason(error)}") from error
        if any(identity != identities[0] for identity in identities):
            raise RunInterrupted(
                f"the actors would compute differently ({identities}); give the run nodes of one kind with one version of everything"
            )
        return dict(identities[0])

    def free_slots(self) -> int:
        """Return how many units can be submitted now."""
        return sum(UNITS_PER_ACTOR - len(slot.units) for slot in self._slots if not slot.is_alone)

    def submit(self, unit: Unit) -> bool:
        """Give `unit` to the actor that holds the fewest; return False where none has room (a unit that runs alone needs an idle actor)."""
        slot = min((slot for slot in self._slots if not slot.is_alone), key=lambda slot: len(slot.units), default=None)
        if slot is None or len(slot.units) >= UNITS_PER_ACTOR or (unit.alone and slot.units):
            return False
        slot.units[slot.actor.run.remote(unit)] = unit
        return True

    def commit(self, commit: Commit) -> None:
        """Start the task that turns a tile's staged blocks into its published files."""
        self._commits[self._commit.remote(commit)] = commit

    @property
    def commits_running(self) -> int:
        """Commits that have not come back."""
        return len(self._commits)

    @property
    def in_flight(self) -> int:
        """Units and commits that have not come back."""
        return self.commits_running + sum(len(slot.units) for slot in self._slots)

    def wait(self, seconds: float) -> list[Event]:
        """Return what ended within `seconds`, at least one event if there was any; empty when the time ran out."""
        pending = [*self._commits, *(ref for slot in self._slots for ref in slot.units)]
        ready, _ = ray.wait(pending, num_returns=1, timeout=seconds)
        return [event for ref in ready for event in self._collect(ref)]

    def close(self) -> None:
        """End the actors."""
        for slot in self._slots:
            ray.kill(slot.actor)

    def _collect(self, ref: Any) -> list[Event]:
        if ref in self._commits:
            return [self._collect_commit(ref)]
        slot = next((slot for slot in self._slots if ref in slot.units), None)
        if slot is None:
            return []
        try:
            outcome: UnitOutcome = ray.get(ref)
        except RayActorError as error:
            return self._replace(slot, _reason(error))
        except RayError as error:
            return [UnitOutcome(slot.units.pop(ref), error=_reason(error))]
        del slot.units[ref]
        return [outcome]

    def _collect_commit(self, ref: Any) -> Event:
        commit = self._commits.pop(ref)
        try:
            committed: Committed = ray.get(ref)
        except RayError as error:
            return CommitFailed(commit, _reason(error))
        return committed

    def _replace(self, slot: _Slot, reason: str) -> list[Event]:
        """Start another actor in the place of a dead one."""
        log.warning("a segmenting actor died with %d units in hand (%s); starting another", len(slot.units), reason)
        lost: list[Event] = [Lost(unit, reason) for unit in slot.units.values()]
        ray.kill(slot.actor)
        slot.units.clear()
        slot.actor = self._start()
        return lost

    def _start(self) -> Any:
        sizing = self.sizing
        options = {"num_gpus": sizing.gpus, "num_cpus": sizing.cpus, "max_concurrency": UNITS_PER_ACTOR}
        return self._actor.options(**options).remote(self._settings)


def _reason(error: BaseException) -> str:
    """Return an error of Ray in one line: what was raised on the other side where there is a traceback, else what Ray says."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d+m", "", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if any(line.startswith("File ") for line in lines) else f"{type(error).__name__}: {lines[0]}"
