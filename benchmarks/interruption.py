"""Kill -9 of the driver in five phases, then the same command: it goes on, and what it publishes equals an undisturbed run's byte for byte.

    python benchmarks/interruption.py [FOLDER]

The catalog is served over HTTP on loopback, so that a request can be held while the driver is killed. Prints one line a phase; exit
status 1 if a claim fails.
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

from common import SPEXMAP, differences, published_files, scratch, served, spexmap

PORT = 18431
SIZE, TILE, BLOCK = 384, 384, 192
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


def appeared(output: Path, pattern: str) -> bool:
    return next(output.glob(pattern), None) is not None


def kill_when(arguments: list[str], reached: Callable[[], bool], delay: float = 0.0) -> bool:
    """Start the command, kill its driver with signal 9 when the phase is reached; return whether it was still running then."""
    with subprocess.Popen([SPEXMAP, *arguments], start_new_session=True) as driver:
        while driver.poll() is None and not reached():
            time.sleep(0.001)
        time.sleep(delay)
        alive = driver.poll() is None
        if alive:
            os.kill(driver.pid, signal.SIGKILL)
        driver.wait(60)
    time.sleep(2)
    return alive


def blocks_made(output: Path) -> int:
    """Return how many blocks the log of the run, of all its attempts, says were segmented."""
    return sum(len(re.findall(r"segmented \d", log.read_text())) for log in output.glob("runs/*/log"))


def main() -> int:
    """Run all phases and return the exit status."""
    folder = scratch("interruption")
    spexmap("demo", str(folder / "demo"), "--size", str(SIZE))
    job, gate, wrong = folder / "demo" / "job.yaml", Gate(), []
    with served(folder / "demo", PORT, gate) as url:
        spexmap(*run(job, url, folder / "undisturbed"))
        expected = published_files(folder / "undisturbed")
        all_blocks = blocks_made(folder / "undisturbed")
        output = folder / "unused"
        phases: dict[str, tuple[Callable[[], bool], float, tuple[str, int]]] = {
            "search": (gate.held.is_set, 0.0, (r"/[^/]+/[^/]+/[^/]+\.json$", 2)),
            "reading": (gate.held.is_set, 0.0, (r"B11\.tif|swir16\.tif", 8)),
            "segmenting": (lambda: appeared(output, ".work/*/[!.]*.arrow"), 0.3, ("", 0)),
            "between raster and item": (lambda: appeared(output, "*/*/*/v1/*_landcover.tif"), 0.0, ("", 0)),
            "collection update": (lambda: appeared(output, "*/*/landcover.vrt"), 0.0, ("", 0)),
        }
        for phase, (reached, delay, armed) in phases.items():
            output = folder / phase.replace(" ", "-")
            gate.arm(*armed)
            killed = kill_when(run(job, url, output), reached, delay)
            gate.disarm()
            staged = len(list(output.glob(".work/*/[!.]*.arrow")))
            items = len(list(output.glob("*/*/*/v1/*_v1.json")))
            earlier = blocks_made(output)
            seconds = spexmap(*run(job, url, output))
            changed = differences(expected, published_files(output))
            made = blocks_made(output) - earlier
            print(
                f"killed in {phase}: {'yes' if killed else 'NO, it had ended'}; {staged} blocks staged and {items} tiles published then;",
                f"went on in {seconds:.1f} s, made {made} of {all_blocks} blocks, {len(changed)} of {len(expected)} files differ",
                flush=True,
            )
            if not killed or changed or made > all_blocks - staged:
                wrong.append(phase)
                print("  differ:", *changed, sep="\n    ")
        third = spexmap(*run(job, url, output))
        print(f"a third run, with nothing to do, took {third:.1f} s (limit {LIMIT:g})")
        if third >= LIMIT:
            wrong.append("the third run")
    print("interruption:", f"FAILED in {', '.join(wrong)}" if wrong else "all five phases went on and published the same bytes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
