"""What is done to a run while it is under way, each at a moment that a seed chooses."""

# ruff: noqa: D102 - what a method does is said once, in Fault.
from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import ClassVar

import psutil

from infra.soak import disks
from infra.soak.job import Attempt, Run, send
from infra.soak.moments import Moment
from infra.soak.proxy import CALM, KINDS, FaultProxy, Weather

STOPPED = frozenset({0, 1, 3})
"""How a disturbed attempt may end: it got over it, lost a tile for now, or stopped."""
HERE = Path(__file__).parent
POISON, NAN, BALLAST = "SPEXMAP_SOAK_POISON", "SPEXMAP_SOAK_NAN", "SPEXMAP_SOAK_BALLAST"
"""Variables that `infra/soak/poison` knows."""


@dataclass
class Stage:
    """What the faults have to do with beside the run itself."""

    proxy: FaultProxy
    scenes: Path
    """Folder of the scenes as they are served."""
    random: Random
    blocks: tuple[str, ...] = ()
    """``top,left`` of every block of the job."""


class Fault:
    """Base: something done to the first attempt of a run. `prepare` before it starts, `act` while it runs, `heal` after it ended."""

    name: ClassVar[str] = ""
    statuses: ClassVar[frozenset[int]] = STOPPED
    """With which the disturbed attempt may end; the ones after it must end with 0."""

    standing: ClassVar[bool] = False
    """Whether it is there from the start, at no moment of its own."""
    alone = True
    """Whether nothing else is done to the run."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.moment = Moment.choose(stage.random)

    @property
    def words(self) -> str:
        """What is done, and when."""
        return self.name if self.standing else f"{self.name} {self.moment}"

    @classmethod
    def missing(cls) -> str:
        """Return why this machine cannot do it, else nothing."""
        return ""

    def prepare(self, run: Run) -> None:
        """Make ready."""

    def act(self, run: Run, attempt: Attempt) -> bool:
        """Do it; return False where the driver ended before."""
        return self.moment.wait(run, attempt) and self.strike(run, attempt)

    def strike(self, run: Run, attempt: Attempt) -> bool:
        """Do it now; return whether there was something to do it to."""
        raise NotImplementedError

    def heal(self, run: Run) -> None:
        """Put right what was done, as an operator would before the command is given again."""


class DriverKilled(Fault):
    """The driver goes without a word, and with it its local cluster."""

    name = "driver killed (-9)"
    statuses = frozenset({-signal.SIGKILL, 0})

    def strike(self, run: Run, attempt: Attempt) -> bool:
        if attempt.is_alive:
            os.kill(attempt.process.pid, signal.SIGKILL)
        return True


class DriverTerminated(Fault):
    """The driver is asked to end, as by a scheduler or a person."""

    name = "driver terminated or interrupted"
    statuses = frozenset({143, 130, -signal.SIGTERM, -signal.SIGINT, 0})

    def strike(self, run: Run, attempt: Attempt) -> bool:
        if attempt.is_alive:
            os.kill(attempt.process.pid, self.stage.random.choice((signal.SIGTERM, signal.SIGINT)))
        return True


class WorkerKilled(Fault):
    """Base: every process of one title is killed, as by the system when memory is short."""

    title: ClassVar[str] = ""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.moment = Moment.choose(stage.random, ("once planned", "once mapping", "with a block staged", "with a raster there"))

    def strike(self, run: Run, attempt: Attempt) -> bool:
        return attempt.until(lambda: bool(attempt.workers(self.title))) and send(attempt.workers(self.title), signal.SIGKILL) > 0


class ActorKilled(WorkerKilled):
    """The process that segments."""

    name = "segmenting actor killed (-9)"
    title = "ray::Segmenter"


class CommitKilled(WorkerKilled):
    """The process that makes a tile's files."""

    name = "commit worker killed (-9)"
    title = "ray::commit"


class RayletKilled(WorkerKilled):
    """The node that the run is on."""

    name = "raylet killed (-9)"
    title = "raylet"


class ControlKilled(WorkerKilled):
    """The head of the cluster."""

    name = "cluster's control service killed (-9)"
    statuses = frozenset({0, 3})
    title = "gcs_server"


class WorkerFrozen(Fault):
    """A process stops for some seconds and goes on, as on a machine that swaps."""

    name = "worker frozen for seconds"
    statuses = frozenset({0})

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.moment = Moment("once planned", self.moment.delay)
        self.title = stage.random.choice(("ray::Segmenter", "ray::commit"))
        self.seconds = stage.random.uniform(1, 6)

    def strike(self, run: Run, attempt: Attempt) -> bool:
        if not attempt.until(lambda: bool(attempt.workers(self.title))):
            return False
        return _freeze(attempt, attempt.workers(self.title), self.seconds)


def _freeze(attempt: Attempt, processes: list[psutil.Process], seconds: float) -> bool:
    """Stop `processes` and let them go on later; return whether there were any."""
    send(processes, signal.SIGSTOP)
    end = time.monotonic() + seconds
    attempt.until(lambda: time.monotonic() >= end)
    send(processes, signal.SIGCONT)
    return bool(processes)


class NodeFrozen(Fault):
    """Every process of the node but driver and control service stops for some seconds, as when a machine is moved."""

    name = "node frozen for seconds"
    statuses = frozenset({0})

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.moment = Moment.choose(stage.random, ("once mapping", "with a block staged", "with a raster there"))
        self.seconds = stage.random.uniform(2, 8)

    def strike(self, run: Run, attempt: Attempt) -> bool:
        return _freeze(attempt, [*attempt.workers("raylet"), *attempt.workers("ray::")], self.seconds)


class KilledBeforeItem(Fault):
    """The moment at which a tile's rasters are there and its commit record is not."""

    name = "killed between rasters and item"
    statuses = frozenset({-signal.SIGKILL, 0, 1, 3})

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.moment = Moment("with a raster there", 0.0)
        self.driver_too = stage.random.random() < 0.5

    @property
    def words(self) -> str:
        return f"{self.name}{', with the driver' if self.driver_too else ''}"

    def strike(self, run: Run, attempt: Attempt) -> bool:
        workers = attempt.workers("ray::commit")
        if self.driver_too:
            os.kill(attempt.process.pid, signal.SIGKILL)
        return send(workers, signal.SIGKILL) > 0 or self.driver_too


class StagedCorrupted(Fault):
    """The driver is killed, and one of the blocks that it left staged is damaged."""

    name = "staged block corrupted"
    statuses = frozenset({-signal.SIGKILL})

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.moment = Moment("with a block staged", self.moment.delay)

    def strike(self, run: Run, attempt: Attempt) -> bool:
        if attempt.is_alive:
            os.kill(attempt.process.pid, signal.SIGKILL)
            attempt.process.wait()
        run.end_processes()
        staged = sorted(run.output.glob(".work/*/*.arrow"))
        if staged:
            _corrupt(self.stage.random.choice(staged), self.stage.random)
        return bool(staged)


def _corrupt(path: Path, random: Random) -> None:
    data = bytearray(path.read_bytes())
    kind = random.choice(("bit", "cut", "empty"))
    if kind == "bit":
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    path.write_bytes(bytes(data) if kind == "bit" else bytes(data[: len(data) // 2]) if kind == "cut" else b"")


class DiskFull(Fault):
    """A small file system where the run writes, made larger before the next attempt; needs the right to mount."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.kilobytes = stage.random.randrange(8, 500)

    @property
    def words(self) -> str:
        return f"{self.name}, {self.kilobytes} kB"

    @classmethod
    def missing(cls) -> str:
        return disks.missing()

    def target(self, run: Run) -> Path:
        raise NotImplementedError

    def prepare(self, run: Run) -> None:
        disks.mount_small(self.target(run), f"{self.kilobytes}k")

    def act(self, run: Run, attempt: Attempt) -> bool:
        return True

    def heal(self, run: Run) -> None:
        disks.enlarge(self.target(run))


class OutputFull(DiskFull):
    """Where the map goes."""

    name = "disk of the output full"
    statuses = frozenset({0, 1, 2, 3})

    def target(self, run: Run) -> Path:
        return run.output


class TemporaryFull(DiskFull):
    """Where rasters are made before they are published."""

    name = "disk of temporary files full"

    def prepare(self, run: Run) -> None:
        super().prepare(run)
        run.environment |= {"TMPDIR": str(self.target(run))}

    def target(self, run: Run) -> Path:
        return run.temporary / "small"


class ServersFail(Fault):
    """Every kind of answer that a proxy can spoil."""

    name = "5 % of catalog and scene calls fail"
    statuses = frozenset({0})
    standing = True
    rate = 0.05

    def prepare(self, run: Run) -> None:
        run.environment |= {"GDAL_HTTP_LOW_SPEED_TIME": "2"}
        self.stage.proxy.clear(Weather(self.rate, KINDS, self.stage.random.randrange(2**31), stall_seconds=4.0))

    def act(self, run: Run, attempt: Attempt) -> bool:
        attempt.process.wait(run.limit)
        return sum(self.stage.proxy.done[kind] for kind in KINDS) > 0

    def heal(self, run: Run) -> None:
        self.stage.proxy.clear(CALM)


class SceneReplaced(Fault):
    """Another file of the same grid comes in the place of a scene's; tiles may show the old or the new one, never both."""

    name = "scene replaced in mid-run"

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.moment = Moment.choose(stage.random, ("once planned", "once mapping", "with a block staged", "with a raster there"))

    def strike(self, run: Run, attempt: Attempt) -> bool:
        replace_scene(self.stage.scenes)
        return True

    def heal(self, run: Run) -> None:
        """The new scene stays: it is what the next attempt finds."""


def replace_scene(scenes: Path) -> None:
    """Put the files of one scene in the place of another's of the same tile, the first band and the mask before the others."""
    old, new = replaced_and_replacing(scenes)
    names = [path.name for path in sorted(new.glob("*.tif"))]
    for name in sorted(names, key=lambda name: (not name.startswith(("B02", "SCL")), name)):
        shutil.copy(new / name, old / f"{name}.part")
        (old / f"{name}.part").replace(old / name)


def replaced_and_replacing(scenes: Path) -> tuple[Path, Path]:
    """Return the folders of two scenes of one tile, the same two always."""
    folders = sorted(path.parent for path in scenes.rglob("SCL.tif"))
    zone = [folder for folder in folders if folder.name.split("_")[1] == folders[0].name.split("_")[1]] or folders
    return zone[0], zone[-1]


class TwoDrivers(Fault):
    """The same command a second time while the first runs."""

    name = "two drivers at once"
    statuses = frozenset({0, 4})

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.moment = Moment.choose(stage.random, ("from the start", "once planned", "once mapping"))

    def strike(self, run: Run, attempt: Attempt) -> bool:
        other = run.start()
        status = run.wait(other)
        # The second one may be the one that gets the output, and then it has what else is done to the run.
        if status not in ((0, 4) if self.alone else (0, 1, 2, 3, 4)):
            raise AssertionError(f"the second driver ended with {status}")
        return 4 in (status, attempt.process.poll()) or attempt.is_alive


def _poison(run: Run, name: str, value: str) -> None:
    """Let the run's processes load what `infra/soak/poison` does under this variable."""
    run.environment |= {"PYTHONPATH": str(HERE / "poison"), name: value}


def _take_poison_away(run: Run, name: str) -> None:
    run.environment.pop("PYTHONPATH", None)
    run.environment.pop(name)


class PoisonBlock(Fault):
    """The process that segments one certain block dies of it, three times."""

    name = "poison block"
    statuses = frozenset({1})

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self.block = stage.random.choice(stage.blocks)

    def prepare(self, run: Run) -> None:
        _poison(run, POISON, self.block)

    def act(self, run: Run, attempt: Attempt) -> bool:
        return True

    def heal(self, run: Run) -> None:
        _take_poison_away(run, POISON)

    @property
    def words(self) -> str:
        return f"{self.name} at {self.block}"


class DeviceGivesNaN(Fault):
    """The model of the first actor gives NaN: the actor must go, and what it had in hand must be made elsewhere."""

    name = "actor gives NaN"
    statuses = frozenset({0})
    standing = True

    def prepare(self, run: Run) -> None:
        _poison(run, NAN, str(run.folder / "broken"))

    def act(self, run: Run, attempt: Attempt) -> bool:
        attempt.process.wait(run.limit)
        if not (run.folder / "broken").exists():
            return False
        if "a segmenting actor died" not in attempt.log.read_text(errors="replace"):
            raise AssertionError("the model gave NaN and no actor ended")
        return True

    def heal(self, run: Run) -> None:
        _take_poison_away(run, NAN)


class SharedMemorySmall(Fault):
    """As in a container with the default of 64 MB in /dev/shm; needs the right to mount."""

    name = "64 MB of shared memory"
    statuses = frozenset({0})
    standing = True

    @classmethod
    def missing(cls) -> str:
        return disks.missing() or ("" if shutil.which("unshare") else "there is no unshare")

    def prepare(self, run: Run) -> None:
        run.prefix = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m soak /dev/shm && exec "$@"', "sh"]

    def act(self, run: Run, attempt: Attempt) -> bool:
        return attempt.until(lambda: bool(attempt.workers("ray::Segmenter")))

    def heal(self, run: Run) -> None:
        run.prefix = []


class SpillingFull(Fault):
    """Ray's object store is full of others' objects, and so is the disk to which it spills; needs the right to mount."""

    name = "disk full under Ray's spilling"
    standing = True
    megabytes = 60

    @classmethod
    def missing(cls) -> str:
        return disks.missing()

    def prepare(self, run: Run) -> None:
        folder = run.temporary / "ray"
        disks.mount_small(folder, f"{self.megabytes}m")
        run.environment |= {"RAY_TMPDIR": str(folder)}
        _poison(run, BALLAST, str(self.marker(run)))

    def act(self, run: Run, attempt: Attempt) -> bool:
        return attempt.until(self.marker(run).exists)

    def heal(self, run: Run) -> None:
        run.environment.pop("RAY_TMPDIR")
        _take_poison_away(run, BALLAST)

    def marker(self, run: Run) -> Path:
        """File that is there once no object goes in any more."""
        return run.folder / "store-full"


FAULTS: tuple[type[Fault], ...] = (
    DriverKilled,
    DriverTerminated,
    ActorKilled,
    CommitKilled,
    RayletKilled,
    ControlKilled,
    WorkerFrozen,
    NodeFrozen,
    KilledBeforeItem,
    StagedCorrupted,
    OutputFull,
    TemporaryFull,
    ServersFail,
    SceneReplaced,
    TwoDrivers,
    PoisonBlock,
    DeviceGivesNaN,
    SharedMemorySmall,
    SpillingFull,
)
