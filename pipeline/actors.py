"""What runs in Ray's workers: segmenting actors pinned to accelerators, and what comes back from them.

Everything that goes wrong in a worker comes back as a value with a kind (`pipeline.failures`); only what ends a worker itself, Ray has to tell.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import ray

from pipeline.commit import CommitFailed, Committed
from pipeline.engines import SharedEngine
from pipeline.failures import Failure, failure_of
from pipeline.faults import reason
from pipeline.units import ReadUnit, SegmenterSettings, Unit, UnitOutcome

if TYPE_CHECKING:
    from pipeline.segment import Segmenter

log = logging.getLogger(__name__)

UNITS_PER_ACTOR = 2
"""One that is computed and one that is read meanwhile."""
THREADS = 2
"""Intra-op threads of an actor."""
CORES_TO_READ = 4.0
"""A GPU node with fewer cores for each GPU than this lets other nodes read for it, where there are some."""
STORE_SHARE = 0.3
"""Of the object store that blocks on their way may fill."""


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
    readers: bool = False
    """Whether tasks on other nodes read for the actors."""

    @classmethod
    def of(cls, nodes: Sequence[Mapping[str, float]], workers: int | None) -> Sizing:
        """Return the sizing for the resources of each node, as `ray.nodes` reports them.

        One actor for each GPU. Without one, an actor for every two cores of a node, or `workers`; together they leave half a core free, for actors
        that hold every core starve committing tasks. Threads do not depend on the number of actors, so that it changes no byte.
        """
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if gpus:
            count = min(workers or gpus, gpus)
            return cls(count, 1.0, 1.0, THREADS, f"{gpus} GPUs: {count} pinned actors")
        cores = [node["CPU"] for node in nodes if node.get("CPU", 0) > 0] or [1.0]
        places = [max(1, int(each // THREADS)) for each in cores]
        count = workers or sum(places)
        fits_everywhere = min((each - 0.5) / place for each, place in zip(cores, places, strict=True))
        share = (sum(cores) - 0.5 * len(cores)) / count
        reason = f"no GPU, {sum(cores):g} cores: {count} actors with {THREADS} threads"
        return cls(count, 0.0, max(0.01, min(fits_everywhere, share)), THREADS, reason)

    def with_readers(self, nodes: Sequence[Mapping[str, float]], block_bytes: int) -> Sizing:
        """Return the sizing with reading tasks where the GPU nodes have too few cores, other nodes have some, and the object store has room.

        Parameters
        ----------
        nodes
            Resources of each node.
        block_bytes
            What one block that was read takes in the object store.
        """
        gpus = sum(node.get("GPU", 0) for node in nodes)
        cores_of_gpus = sum(node.get("CPU", 0) for node in nodes if node.get("GPU", 0))
        cores_elsewhere = sum(node.get("CPU", 0) for node in nodes if not node.get("GPU", 0))
        if not self.gpus or cores_elsewhere < 1 or cores_of_gpus >= CORES_TO_READ * gpus:
            return self
        store = sum(node.get("object_store_memory", 0) for node in nodes if not node.get("GPU", 0))
        if block_bytes * self.workers * UNITS_PER_ACTOR > STORE_SHARE * store:
            log.warning("GPU nodes have %g cores for %g GPUs, but the object store is too small for others to read for them", cores_of_gpus, gpus)
            return self
        return replace(self, readers=True, reason=f"{self.reason}, {cores_elsewhere:g} cores elsewhere read for them")


@dataclass(frozen=True)
class Started:
    """An actor that is ready."""

    node: str
    """Ray's id of its node."""
    identity: dict[str, Any]
    """See `Segmenter.identity`."""


@dataclass(frozen=True)
class StartFailed:
    """An actor that could not get ready."""

    node: str
    reason: str
    failure: Failure


@dataclass(frozen=True)
class Lost:
    """A unit whose actor ended while it held the unit."""

    unit: Unit
    reason: str
    charged: bool = True
    """Whether the unit may have been what ended it."""


Event = UnitOutcome | Lost | Committed | CommitFailed


def load_segmenter(settings: SegmenterSettings) -> Segmenter:
    """Return what an actor holds. Only here, in the actor's process, are the model's libraries loaded."""
    from pipeline.segment import Segmenter

    return Segmenter(settings)


class SegmenterActor:
    """A segmenter in a process of its own. It is made before it loads anything, so that what goes wrong then can be sent back."""

    def __init__(self, settings: SegmenterSettings, segmenter: Callable[[SegmenterSettings], Segmenter]) -> None:
        self._settings = settings
        self._make = segmenter
        self._node = str(ray.get_runtime_context().get_node_id())

    def start(self, engine: SharedEngine | None = None) -> Started | StartFailed:
        """Load the model, with the engine of another actor where one is given."""
        try:
            if engine is not None:
                engine.keep()
            self._segmenter = self._make(self._settings)
            return Started(self._node, self._segmenter.identity())
        except Exception as error:
            log.exception("the actor cannot start")
            return StartFailed(self._node, reason(error), failure_of(error))

    def engine(self) -> SharedEngine | None:
        """Return the engine that computes here, for the other actors."""
        return SharedEngine.of(self._segmenter.identity())

    def run(self, unit: Unit, read: ReadUnit | None = None) -> UnitOutcome:
        """See `Segmenter.run`."""
        return replace(self._segmenter.run(unit, read), node=self._node)

    @ray.method(concurrency_group="watch")
    def ping(self) -> bool:
        """Return at once: a process that does not is frozen."""
        return True


@dataclass(eq=False)
class Slot:
    """One actor, seen from the driver."""

    actor: Any
    starting: Any
    """Reference to what `SegmenterActor.start` will return; None after it has."""
    since: float = field(default_factory=time.monotonic)
    node: str = ""
    units: dict[Any, Unit] = field(default_factory=dict)
    begun: dict[Any, float] = field(default_factory=dict)
    """When each unit was given to the actor."""
    ping: Any = None
    pinged: float = field(default_factory=time.monotonic)

    @property
    def is_ready(self) -> bool:
        """Whether it takes units."""
        return self.starting is None

    @property
    def is_alone(self) -> bool:
        """Whether it holds a unit that must be alone."""
        return any(unit.alone for unit in self.units.values())

    def take(self, ref: Any, unit: Unit) -> None:
        """Note a unit that was given to the actor."""
        self.units[ref] = unit
        self.begun[ref] = time.monotonic()

    def give_up(self, ref: Any) -> tuple[Unit, float]:
        """Forget a unit that came back; return it with the seconds that it took."""
        return self.units.pop(ref), time.monotonic() - self.begun.pop(ref)
