"""N runs of the reference job under random faults, and the judgement on each: what is published equals the undisturbed run's byte for byte."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from subprocess import run as run_command
from typing import Any

import numpy as np
import rasterio

from infra.soak.faults import FAULTS, Fault, SceneReplaced, Stage, replace_scene
from infra.soak.job import RASTERS, Attempt, Run, differences, halves, leftovers, published_files, versions
from infra.soak.proxy import FaultProxy
from infra.soak.servers import LoopbackServer, file_handler
from pipeline.demo import write_demo

SIZE = 128
MOST_ATTEMPTS = 5
SLOWEST = 300.0
"""Seconds after which an attempt counts as hung, or thirty times the undisturbed run where that is more."""
DEFECT = "an error that nobody foresaw"


@dataclass
class Outcome:
    """How one run went."""

    number: int
    faults: list[str]
    done: list[str] = field(default_factory=list)
    """Names of the faults that came before the driver's end."""
    statuses: list[int | None] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def result(self) -> str:
        """In a word."""
        if self.problems:
            return "FAILED"
        return "got over it" if len(self.statuses) == 1 else "went on"


class Harness:
    """The servers, the undisturbed run, and the runs; a context manager.

    Parameters
    ----------
    folder
        Where everything lies; failed runs stay there.
    seed
        Chooses faults and moments.
    port
        Of the proxy; the published items name it, so it is the same in all runs.
    size
        Side of each of the catalog's two tiles in pixels.
    keep
        Whether the folders of runs stay that did not fail.
    """

    def __init__(self, folder: Path, seed: int, port: int = 0, size: int = SIZE, keep: bool = False) -> None:
        self.folder, self.seed, self._port, self._size, self._keep = folder, seed, port, size, keep
        self.demo = folder / "demo"
        self.served = folder / "served"
        self.limit = SLOWEST
        self.undisturbed = 0.0
        self.blocks: tuple[str, ...] = ()
        self._expected: dict[str, str] = {}
        self._replaced: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Harness:
        """Write the catalog, start the servers, make the undisturbed run."""
        write_demo(self.demo, size=self._size)
        shutil.copytree(self.demo, self.served, dirs_exist_ok=True)
        files = self._stack.enter_context(LoopbackServer(file_handler(self.served)))
        self.proxy = FaultProxy(files.url, port=self._port)
        self._stack.enter_context(self.proxy)
        try:
            self._undisturbed_run()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        """Stop the servers."""
        self._stack.close()

    @property
    def reference(self) -> Path:
        """Output of the undisturbed run."""
        return self.folder / "undisturbed" / "output"

    def _undisturbed_run(self) -> None:
        run = self.new_run("undisturbed")
        self.undisturbed = self.finish(run)
        self._expected = published_files(run.output)
        self.blocks = tuple(sorted(set(re.findall(r"blocks (-?\d+,-?\d+): read", run.text()))))
        if wrong := [*halves(run.output), *leftovers(run.output)]:
            raise RuntimeError(f"the undisturbed run is not whole: {wrong}")
        self.limit = max(SLOWEST, 30 * self.undisturbed)

    def new_run(self, name: str, number: int = 0) -> Run:
        """Return a run that was not started, in a folder of its own."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return Run(number, self.demo / "job.yaml", self.proxy.url, folder, self.folder / f"t{number}", self.limit)

    def finish(self, run: Run) -> float:
        """Start `run`, which nothing disturbs, and return the seconds that it took; raises RuntimeError where it does not end with 0."""
        started = time.monotonic()
        status = run.wait(run.start())
        seconds = time.monotonic() - started
        if status != 0:
            raise RuntimeError(f"an undisturbed run ended with {status}:\n{run.text()}")
        shutil.rmtree(run.temporary, ignore_errors=True)
        return seconds

    def choose(self, number: int, among: tuple[type[Fault], ...]) -> list[Fault]:
        """Return the faults of a run: one, sometimes two."""
        random = Random(f"{self.seed}/{number}")
        stage = Stage(self.proxy, self.served, random, self.blocks)
        first = among[number % len(among)]
        kinds = [first]
        if len(among) > 1 and random.random() < 0.3:
            kinds.append(random.choice([kind for kind in among if kind is not first and kind.__bases__ != first.__bases__] or [first]))
        faults = [kind(stage) for kind in dict.fromkeys(kinds)]
        for fault in faults:
            fault.alone = len(faults) == 1
        return faults

    def one_run(self, number: int, among: tuple[type[Fault], ...]) -> Outcome:
        """Make a run under its faults, start it again until it ends with 0, and judge it; a failed one keeps its folder."""
        faults = self.choose(number, among)
        run, outcome = self.new_run(f"run-{number}", number), Outcome(number, [fault.words for fault in faults])
        started = time.monotonic()
        with self._cleared(run, outcome):
            self._disturb(run, faults, outcome)
            replaced = any(isinstance(fault, SceneReplaced) for fault in faults)
            while not outcome.problems and not self._ended(run, outcome, replaced):
                if len(outcome.statuses) >= MOST_ATTEMPTS:
                    outcome.problems.append(f"not done after {MOST_ATTEMPTS} attempts")
                    break
                outcome.statuses.append(run.wait(run.start()))
            outcome.problems += self._judge(run, replaced)
        outcome.seconds = time.monotonic() - started
        return outcome

    def _ended(self, run: Run, outcome: Outcome, replaced: bool) -> bool:
        """Return whether nothing is left to do; after a scene was replaced the next run of the schedule is part of it."""
        done = outcome.statuses[-1] == 0
        return done and (not replaced or "nothing to do" in run.attempts[-1].log.read_text())

    def _disturb(self, run: Run, faults: list[Fault], outcome: Outcome) -> None:
        for fault in faults:
            fault.prepare(run)
        attempt = run.start()
        threads = [threading.Thread(target=self._act, args=(fault, run, attempt, outcome), daemon=True) for fault in faults]
        for thread in threads:
            thread.start()
        status = run.wait(attempt)
        for thread in threads:
            thread.join(self.limit)
        outcome.statuses.append(status)
        allowed = frozenset().union(*(fault.statuses for fault in faults if fault.name in outcome.done), {0})
        if status is None:
            outcome.problems.append("the first attempt hung")
        elif status not in allowed and not (len(faults) > 1 and status in (1, 3)):
            outcome.problems.append(f"the first attempt ended with {status}, expected one of {sorted(allowed)}")
        for fault in faults:
            fault.heal(run)

    def _act(self, fault: Fault, run: Run, attempt: Attempt, outcome: Outcome) -> None:
        try:
            if fault.act(run, attempt):
                outcome.done.append(fault.name)
        except Exception as error:
            outcome.problems.append(f"{fault.name}: {type(error).__name__}: {error}")

    def _judge(self, run: Run, replaced: bool) -> list[str]:
        problems = ["an attempt hung"] if None in [attempt.process.returncode for attempt in run.attempts] else []
        if DEFECT in run.text():
            problems.append("an error that nobody foresaw; see the log")
        problems += halves(run.output) + leftovers(run.output)
        if replaced:
            return problems + self._mixtures(run.output)
        return problems + differences(self._expected, published_files(run.output))

    def _mixtures(self, output: Path) -> list[str]:
        """Return the tiles whose newest version shows neither the old scene alone nor the new one alone."""
        old, new, found = (_pixels(folder) for folder in (self.reference, self._with_replaced_scene(), output))
        lost = [f"lost: {name}" for name in sorted(old.keys() - found.keys())]
        return lost + [
            f"neither the old scene nor the new one: {name}" for name in sorted(found) if found[name] not in (old.get(name), new.get(name))
        ]

    def _with_replaced_scene(self) -> Path:
        if self._replaced is None:
            self._restore()
            replace_scene(self.served)
            run = self.new_run("replaced")
            self.finish(run)
            self._replaced = run.output
            if _pixels(self._replaced) == _pixels(self.reference):
                raise RuntimeError("the replaced scene changes no pixel, so that a mixture could not be told")
        return self._replaced

    @contextmanager
    def _cleared(self, run: Run, outcome: Outcome) -> Iterator[None]:
        """Leave no process, mount, fault or file of the run behind; the folder stays where it failed."""
        try:
            yield
        except RuntimeError as error:
            outcome.problems.append(str(error))
        finally:
            run.end_processes()
            self.proxy.clear()
            self._restore()
            mounted = [folder for folder in (run.output, run.temporary / "small", run.temporary / "ray") if folder.is_mount()]
            if outcome.problems:
                _keep(mounted)
            for folder in mounted:
                run_command(["umount", "--lazy", str(folder)], check=False)
            shutil.rmtree(run.temporary, ignore_errors=True)
            if not outcome.problems and not self._keep:
                shutil.rmtree(run.folder, ignore_errors=True)

    def _restore(self) -> None:
        """Bring the scenes back as they were, with their old times."""
        for path in self.demo.rglob("*.tif"):
            there = self.served / path.relative_to(self.demo)
            if there.stat().st_mtime_ns != path.stat().st_mtime_ns:
                shutil.copy2(path, there)


def _keep(mounted: list[Path]) -> None:
    """Copy what lies on small file systems beside them, before these go; sockets stay behind."""
    for folder in mounted:
        shutil.copytree(folder, folder.with_name(f"{folder.name}-kept"), dirs_exist_ok=True, ignore=_sockets)


def _sockets(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_socket()]


def _pixels(output: Path) -> dict[str, dict[str, bytes]]:
    """Return for the newest version of each tile the bytes of its pixels, by raster; ranks of scenes are made ids."""
    newest = {folder.parent.name: folder for folder in sorted(versions(output), key=lambda folder: int(folder.name[1:]))}
    return {tile: {kind: _read(next(folder.glob(f"*_{kind}.tif"))) for kind in RASTERS} for tile, folder in newest.items()}


def _read(path: Path) -> bytes:
    with rasterio.open(path) as dataset:
        return np.ascontiguousarray(dataset.read()).tobytes()


def counts(outcomes: list[Outcome]) -> dict[str, dict[str, int]]:
    """Return by fault how many runs had it, in how many it came in time, and how they went."""
    table: dict[str, Counter[str]] = {kind.name: Counter() for kind in FAULTS}
    for outcome in outcomes:
        for name in {kind.name for kind in FAULTS if any(words.startswith(kind.name) for words in outcome.faults)}:
            table[name].update({"runs": 1, "struck": int(name in outcome.done), outcome.result: 1})
    return {name: dict(row) for name, row in table.items() if row}


def document(harness: Harness, outcomes: list[Outcome], skipped: dict[str, str]) -> dict[str, Any]:
    """Return what is written as JSON."""
    return {
        "seed": harness.seed,
        "runs": len(outcomes),
        "failed": [outcome.number for outcome in outcomes if outcome.problems],
        "undisturbed_seconds": round(harness.undisturbed, 1),
        "seconds": round(sum(outcome.seconds for outcome in outcomes), 1),
        "faults": counts(outcomes),
        "skipped": skipped,
        "outcomes": [
            {"number": o.number, "faults": o.faults, "struck": o.done, "statuses": o.statuses, "seconds": round(o.seconds, 1), "problems": o.problems}
            for o in outcomes
        ],
    }
