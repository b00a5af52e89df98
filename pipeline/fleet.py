"""The segmenting actors of a run, seen from its driver: units and commits go out, what came of them comes back, what fails is replaced or left out.

The driver holds references and plan rows, never pixels: an actor stages its blocks in the output, a committing task reads them there.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import RayActorError, RayError, WorkerCrashedError

from pipeline.actors import UNITS_PER_ACTOR, Event, Lost, SegmenterActor, Sizing, Slot, Started, StartFailed, load_segmenter
from pipeline.cluster import disk_hint
from pipeline.commit import Commit, CommitFailed, Committed, commit
from pipeline.errors import JobError, RunInterrupted
from pipeline.failures import Failure
from pipeline.grid import PixelBox
from pipeline.nodes import Node, living_nodes
from pipeline.units import SegmenterSettings, Unit, UnitOutcome, read_unit

if TYPE_CHECKING:
    from pipeline.segment import Segmenter

log = logging.getLogger(__name__)

NODE_STRIKES = 2
"""A node whose devices failed on so many different units is left out."""
STARTS = 3
"""When so many actors in a row could not start, the run stops."""


@dataclass(frozen=True)
class Patience:
    """How long is waited for what, in seconds; every one ends in a sentence that says what was waited for."""

    start: float = 600.0
    """For an actor to load its model and build its engine, or to get a place."""
    said: float = 30.0
    """After which the log says each time that the first actor is waited for."""
    place: float = 60.0
    """For a node that could hold an actor, once there is none."""
    ping: float = 30.0
    """Between two questions whether an actor's process still runs."""
    answer: float = 120.0
    """For the answer."""
    unit: float = 3600.0
    """For a unit or a commit."""


class Fleet:
    """The actors of a run. `start` brings them up, `submit` and `commit` give them work, `wait` brings back what has ended.

    Parameters
    ----------
    settings
        For every actor; a batch that is not set is chosen by the first.
    sizing
        How many actors there are to be.
    patience
        Limits of waiting.
    segmenter
        Makes, in an actor's process, what the actor holds.
    """

    def __init__(
        self,
        settings: SegmenterSettings,
        sizing: Sizing,
        patience: Patience | None = None,
        segmenter: Callable[[SegmenterSettings], Segmenter] = load_segmenter,
    ) -> None:
        self.sizing = sizing
        self.left_out: dict[str, str] = {}
        """Addresses of nodes that get no more work, and why."""
        self.placed: Counter[str] = Counter()
        """Actors that were started, by the address of their node."""
        self._patience = patience or Patience()
        self._segmenter = segmenter
        self._settings = settings
        self._shared: Any = ray.put(settings)
        remote: Any = ray.remote
        self._class = remote(concurrency_groups={"watch": 1})(SegmenterActor)
        self._identity: dict[str, Any] | None = None
        self._slots: list[Slot] = []
        self._commits: dict[Any, tuple[Commit, float]] = {}
        self._commit = remote(num_cpus=0.5, max_retries=2)(commit)
        self._read = remote(num_cpus=1, max_retries=3)(read_unit)
        self._strikes: dict[str, set[tuple[str, tuple[PixelBox, ...]]]] = defaultdict(set)
        self._banned: set[str] = set()
        self._addresses: dict[str, str] = {}
        self._failed_starts = 0
        self._placeless_since: float | None = None
        self._displaced: list[Event] = []
        self._engine: Any = None

    def start(self) -> dict[str, Any]:
        """Start the actors and return their numerical identity: the first one's, whose batch and engine the others take over.

        Raises
        ------
        RunInterrupted, JobError
            No actor starts.
        """
        self._slots = [self._start()]
        began = said = time.monotonic()
        until = began + self._patience.start + self._patience.place
        while self._identity is None:
            self.wait(1.0)
            now = time.monotonic()
            if self._identity is None and now > said + self._patience.said:
                said = now
                log.info(
                    "the first actor is not ready yet; an engine that is not kept is built now (%.0f of at most %.0f s)", now - began, until - began
                )
            if now > until and self._identity is None:
                raise RunInterrupted(f"no segmenting actor was ready within {self._patience.start:.0f} s; run the same command again")
        batch, device = self._identity["batch"][0], self._identity["device"]
        self._settings = replace(self._settings, batch=batch, batch_device=device)
        self._shared = ray.put(self._settings)
        if "engine" in self._identity:
            self._engine = self._slots[0].actor.engine.remote()
        self._slots += [self._start() for _ in range(self.sizing.workers - 1)]
        return dict(self._identity)

    def free_slots(self) -> int:
        """Return how many units can be submitted now."""
        return sum(UNITS_PER_ACTOR - len(slot.units) for slot in self._slots if slot.is_ready and not slot.is_alone)

    def submit(self, unit: Unit) -> bool:
        """Give `unit` to the actor that holds the fewest; return False where none has room (a unit that runs alone needs an idle actor)."""
        open_slots = [slot for slot in self._slots if slot.is_ready and not slot.is_alone]
        elsewhere = [slot for slot in open_slots if slot.node not in unit.avoid]
        slot = min(elsewhere or open_slots, key=lambda slot: len(slot.units), default=None)
        if slot is None or len(slot.units) >= UNITS_PER_ACTOR or (unit.alone and slot.units):
            return False
        read = [self._read.remote(self._shared, unit)] if self.sizing.readers else []
        slot.take(slot.actor.run.remote(unit, *read), unit)
        return True

    def commit(self, order: Commit) -> None:
        """Start the task that turns a tile's staged blocks into its published files."""
        self._commits[self._commit.remote(order)] = order, time.monotonic()

    def acquit(self, unit: Unit) -> None:
        """Forget that devices failed on `unit`: it fails on every one."""
        for struck in self._strikes.values():
            struck.discard((unit.tile, unit.boxes))

    @property
    def in_flight(self) -> int:
        """Units and commits that have not come back."""
        return len(self._commits) + sum(len(slot.units) for slot in self._slots)

    def wait(self, seconds: float) -> list[Event]:
        """Return what ended within `seconds`, at least one event if there was any; empty when the time ran out, or an actor got ready.

        Raises
        ------
        RunInterrupted
            No node is left on which an actor could run, or actors do not start any more.
        """
        pending = [*self._commits, *self._references()]
        if pending:
            ready, _ = ray.wait(pending, num_returns=1, timeout=seconds)
        else:
            ready = []
            time.sleep(min(seconds, 1.0))
        events = [event for ref in ready for event in self._collect(ref)]
        events += self._watch() + self._displaced
        self._displaced = []
        self._check_places()
        return events

    def close(self) -> None:
        """End the actors."""
        for slot in self._slots:
            ray.kill(slot.actor)
        for ref in self._commits:
            ray.cancel(ref, force=True)

    def _references(self) -> list[Any]:
        starting = [slot.starting for slot in self._slots if slot.starting is not None]
        return starting + [ref for slot in self._slots for ref in (*slot.units, *([slot.ping] if slot.ping is not None else []))]

    def _collect(self, ref: Any) -> list[Event]:
        if ref in self._commits:
            return [self._collect_commit(ref)]
        slot = next((slot for slot in self._slots if ref in slot.units or ref in (slot.starting, slot.ping)), None)
        if slot is None:
            return []
        try:
            value = ray.get(ref)
        except RayActorError as error:
            return self._replace(slot, _reason(error), charged=self._lives(slot.node))
        except RayError as error:
            return [UnitOutcome(slot.give_up(ref)[0], error=_reason(error))] if ref in slot.units else self._replace(slot, _reason(error))
        if ref == slot.starting:
            self._settle_start(slot, value)
            return []
        if ref == slot.ping:
            slot.ping = None
            return []
        slot.give_up(ref)
        return self._settle_unit(slot, value)

    def _collect_commit(self, ref: Any) -> Event:
        order, _ = self._commits.pop(ref)
        try:
            ended: Committed | CommitFailed = ray.get(ref)
        except RayError as error:
            return CommitFailed(order, _reason(error))
        return ended

    def _settle_unit(self, slot: Slot, outcome: UnitOutcome) -> list[Event]:
        """Return how a unit ended, and what its end does to the actor and to the units beside it."""
        if not outcome.error or outcome.failure not in (Failure.DEVICE, Failure.MEMORY):
            return [outcome]
        lost = self._replace(slot, outcome.error, charged=False)
        if outcome.failure is Failure.DEVICE:
            self._strike(slot.node, outcome)
        return [outcome, *lost]

    def _strike(self, node: str, outcome: UnitOutcome) -> None:
        self._strikes[node].add((outcome.unit.tile, outcome.unit.boxes))
        if len(self._strikes[node]) >= NODE_STRIKES:
            self._leave_out(node, f"its device failed on {len(self._strikes[node])} units, the last time with: {outcome.error}")

    def _leave_out(self, node: str, why: str) -> None:
        address = self._address(node)
        self._banned.add(node)
        self.left_out[address] = why
        log.error("node %s is left out of the run: %s", address, why)
        for slot in [each for each in self._slots if each.node == node]:
            self._displaced += self._replace(slot, "its node is left out", charged=False)

    def _settle_start(self, slot: Slot, value: Started | StartFailed) -> None:
        slot.node = value.node
        if isinstance(value, StartFailed):
            self._settle_failed_start(slot, value)
        elif self._identity is not None and value.identity != self._identity:
            self._leave_out(value.node, f"an actor there would compute differently: {_differences(self._identity, value.identity)}")
        else:
            self._identity = value.identity
            self._failed_starts = 0
            slot.starting, slot.pinged = None, time.monotonic()
            self.placed[self._address(value.node)] += 1

    def _settle_failed_start(self, slot: Slot, failed: StartFailed) -> None:
        if failed.failure is Failure.JOB:
            raise JobError(f"a segmenting actor cannot start on {self._address(failed.node)}: {failed.reason}")
        if failed.failure is Failure.DEVICE:
            self._leave_out(failed.node, f"its device does not work: {failed.reason}")
            return
        self._count_failed_start(f"on {self._address(failed.node)}: {failed.reason}")
        self._replace(slot, failed.reason)

    def _count_failed_start(self, why: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= STARTS:
            raise RunInterrupted(f"segmenting actors do not start ({STARTS} times, the last {why}); run the same command again when that is mended")

    def _replace(self, slot: Slot, why: str, *, charged: bool = True) -> list[Event]:
        """End an actor, start another in its place, and return the units that it held."""
        log.warning("a segmenting actor died with %d units in hand (%s); starting another", len(slot.units), why)
        lost: list[Event] = [Lost(unit, why, charged) for unit in slot.units.values()]
        if slot.starting is not None and not slot.node:
            self._count_failed_start(why)
            # It may have been lost with the node that sent it; the next actor takes its own node's.
            self._engine = None
        ray.kill(slot.actor)
        self._slots[self._slots.index(slot)] = self._start()
        return lost

    def _start(self) -> Slot:
        options: dict[str, Any] = {"num_gpus": self.sizing.gpus, "num_cpus": self.sizing.cpus, "max_concurrency": UNITS_PER_ACTOR}
        if self._banned:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(self._banned))})"}
        actor = self._class.options(**options).remote(self._shared, self._segmenter)
        return Slot(actor, actor.start.remote(self._engine))

    def _watch(self) -> list[Event]:
        """End what has taken longer than it may, and ask the actors whether they still run."""
        now, patience = time.monotonic(), self._patience
        events: list[Event] = []
        for slot in list(self._slots):
            if slot.is_ready and slot.ping is None and now - slot.pinged > patience.ping:
                slot.ping, slot.pinged = slot.actor.ping.remote(), now
            elif slot.ping is not None and now - slot.pinged > patience.answer:
                events += self._replace(slot, f"its process on {self._address(slot.node)} has not answered for {patience.answer:.0f} s")
            elif slot.begun and now - min(slot.begun.values()) > patience.unit:
                events += self._replace(slot, f"a unit has not come back from {self._address(slot.node)} for {patience.unit:.0f} s")
        return events + self._late_commits(now)

    def _late_commits(self, now: float) -> list[Event]:
        late = [ref for ref, (_, begun) in self._commits.items() if now - begun > self._patience.unit]
        for ref in late:
            ray.cancel(ref, force=True)
        return [CommitFailed(self._commits.pop(ref)[0], f"it has not come back for {self._patience.unit:.0f} s") for ref in late]

    def _check_places(self) -> None:
        """Raise RunInterrupted where no actor runs and none can: no node could hold one, or none got ready in time."""
        if any(slot.is_ready for slot in self._slots):
            self._placeless_since = None
            return
        now = time.monotonic()
        self._placeless_since = self._placeless_since or now
        nodes = [node for node in living_nodes() if self._could_hold(node)]
        if not nodes and now - self._placeless_since > (0 if self.left_out else self._patience.place):
            what = "with a GPU " if self.sizing.gpus else ""
            why = "; ".join(f"{address} is left out, {words}" for address, words in self.left_out.items()) or "it was lost"
            raise RunInterrupted(f"no node {what}is left in the cluster: {why}; the same command goes on from here")
        if nodes and now - max(slot.since for slot in self._slots) > self._patience.start:
            where = ", ".join(node.address for node in nodes)
            raise RunInterrupted(f"no segmenting actor was ready within {self._patience.start:.0f} s on {where}; is the cluster full of other work?")

    def _could_hold(self, node: Node) -> bool:
        """Return whether a node has at all what an actor needs."""
        sizing = self.sizing
        return node.id not in self._banned and node.resources.get("GPU", 0) >= sizing.gpus and node.resources.get("CPU", 0) >= sizing.cpus

    def _lives(self, node: str) -> bool:
        """Return whether a node is there: an actor that went with its node was not ended by its unit."""
        return any(each.id == node for each in living_nodes())

    def _address(self, node: str) -> str:
        if node not in self._addresses:
            self._addresses |= {each.id: each.address for each in living_nodes()}
        return self._addresses.get(node, node[:12] or "a node")


def _differences(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    names = [name for name in sorted(mine | theirs) if mine.get(name) != theirs.get(name)]
    return ", ".join(f"{name} {theirs.get(name)} in place of {mine.get(name)}" for name in names)


def _reason(error: BaseException) -> str:
    """Return an error of Ray in one line: what was raised on the other side where there is a traceback, else what Ray says."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d+m", "", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if any(line.startswith("File ") for line in lines):
        return lines[-1]
    died = isinstance(error, WorkerCrashedError | RayActorError)
    return f"{type(error).__name__}: {lines[0]}{disk_hint() if died else ''}"
