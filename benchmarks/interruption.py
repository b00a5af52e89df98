"""Kill -9 of the driver in five phases, one attempt after the other at one run: each goes on, and in the end an undisturbed run's map is published.

    python benchmarks/interruption.py [FOLDER]

Every file is compared byte for byte. A kill may cost the units in flight: no block that was staged and no tile that was published is made again.
The catalog is served over HTTP on loopback, so that a request can be held while the driver is killed. Prints one line a phase; exit status 1 if
a claim fails.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from common import SPEXMAP, differences, published_files, scratch, served, small_demo, spexmap

PORT = 18431
TILE, BLOCK = 384, 192
STAGED = ".work/*/[!.]*.arrow"
ITEMS = "*/*/*/v1/*_v1.json"
LIMIT = 10.0
"""Seconds of a run that has nothing to do."""


class Gate:
    """Holds the requests whose path matches, and tells that it has one."""

    def __init__(self) -> None:
        self.pattern = ""
        self.after = 0
        self._seen = 0
        self.held = threading.Event()
        self.open = threading.Event()

    def __call__(self, path: str) -> None:
        if self.pattern and re.search(self.pattern, path):
            self._seen += 1
            if self._seen > self.after:
                self.held.set()
                self.open.wait(60)

    def arm(self, pattern: str, after: int = 0) -> None:
        self.pattern, self.after, self._seen = pattern, after, 0
        self.held.clear()
        self.open.clear()

    def disarm(self) -> None:
        self.pattern = ""
        self.open.set()


def run(job: Path, url: str, output: Path) -> list[str]:
    """Return the arguments of the run whose output goes to `output`."""
    settings = {"output": output, "source.catalog": f"{url}/catalog.json", "grid.tile": TILE}
    return ["run", str(job), *(f"--set={key}={value}" for key, value in settings.items()), f"--block={BLOCK}"]


def count(output: Path, pattern: str) -> int:
    return sum(1 for _ in output.glob(pattern))


def more(output: Path, pattern: str) -> Callable[[], bool]:
    """Return what says whether there are more such files than now."""
    now = count(output, pattern)
    return lambda: count(output, pattern) > now


def kill_when(arguments: list[str], reached: Callable[[], bool]) -> bool:
    """Start the command, kill its driver with signal 9 when the phase is reached; return whether it was still running then."""
    with subprocess.Popen([SPEXMAP, *arguments], start_new_session=True) as driver:
        while driver.poll() is None and not reached():
            time.sleep(0.001)
        alive = driver.poll() is None
        if alive:
            os.kill(driver.pid, signal.SIGKILL)
        driver.wait(60)
    time.sleep(2)
    return alive


def made(output: Path) -> dict[Path, int]:
    """Return what is staged and published, with the moments in which it was written."""
    return {path: path.stat().st_mtime_ns for pattern in (STAGED, ITEMS) for path in output.glob(pattern)}


def made_again(before: dict[Path, int], output: Path) -> list[str]:
    """Return what was there before and has been written anew; staged blocks of tiles that were published are gone."""
    now = made(output)
    return [path.name for path, moment in before.items() if now.get(path, moment) != moment]


def main() -> int:
    """Run all phases and return the exit status."""
    folder = scratch("interruption")
    demo, gate, wrong = small_demo(folder), Gate(), []
    job = demo / "job.yaml"
    with served(demo, PORT, gate) as url:
        spexmap(*run(job, url, folder / "undisturbed"))
        expected = published_files(folder / "undisturbed")
        output = folder / "killed"
        phases: dict[str, tuple[str, tuple[str, int]]] = {
            "search": ("", (r"/[^/]+/[^/]+/[^/]+\.json$", 2)),
            "reading": ("", (r"B11\.tif|swir16\.tif", 8)),
            "segmenting": (STAGED, ("", 0)),
            "between raster and item": ("*/*/*/v1/*_landcover.tif", ("", 0)),
            "collection update": ("*/*/landcover.vrt", ("", 0)),
        }
        before: dict[Path, int] = {}
        for phase, (pattern, armed) in phases.items():
            gate.arm(*armed)
            killed = kill_when(run(job, url, output), more(output, pattern) if pattern else gate.held.is_set)
            gate.disarm()
            again, before = made_again(before, output), made(output)
            there = f"{count(output, STAGED)} blocks staged and {count(output, ITEMS)} tiles published then, {len(again)} of them made again"
            print(f"killed in {phase}: {'yes' if killed else 'NO, it had ended'}; {there}", flush=True)
            if not killed or again:
                wrong.append(phase)
        seconds = spexmap(*run(job, url, output))
        changed, again = differences(expected, published_files(output)), made_again(before, output)
        print(f"went on in {seconds:.1f} s, made {len(again)} again, {len(changed)} of {len(expected)} files differ", flush=True)
        if changed or again:
            wrong.append("the last attempt")
            print("  differ:", *changed, sep="\n    ")
        third = spexmap(*run(job, url, output))
        print(f"a third run, with nothing to do, took {third:.1f} s (limit {LIMIT:g})")
        if third >= LIMIT:
            wrong.append("the third run")
    print("interruption:", f"FAILED in {', '.join(wrong)}" if wrong else "all five attempts went on, and the same bytes were published")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
