"""The reference job: started, watched and started again as a scheduler would, and its output compared with the undisturbed one."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

TILE, BLOCK = 192, 128
MARK = "SPEXMAP_SOAK_RUN"
"""Environment variable by which all processes of a run are found again."""
RASTERS = ("landcover", "confidence", "source", "quality")


@dataclass
class Attempt:
    """One start of the command."""

    process: subprocess.Popen[bytes]
    log: Path

    def workers(self, title: str) -> list[psutil.Process]:
        """Return the processes below the driver whose command line begins with `title`, or whose program is called so."""
        return [each for each in _children(self.process.pid) if _title(each).startswith(title) or _name(each) == title]

    @property
    def is_alive(self) -> bool:
        """Whether the driver runs."""
        return self.process.poll() is None

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait until `reached()`; return False where the driver ended before."""
        while not reached():
            if not self.is_alive:
                return False
            time.sleep(0.02)
        return True


@dataclass
class Run:
    """One run of the job into its own output, perhaps in several attempts."""

    number: int
    job: Path
    url: str
    folder: Path
    """Holds the output, temporary files and logs of this run."""
    temporary: Path
    """TMPDIR of the run; short, because Ray keeps sockets there."""
    limit: float
    """Seconds after which an attempt counts as hung."""
    environment: dict[str, str] = field(default_factory=dict)
    """Added to every attempt's environment; faults put their own there."""
    prefix: list[str] = field(default_factory=list)
    """Before the command; faults put there what it runs under."""
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def output(self) -> Path:
        """Where the map goes."""
        return self.folder / "output"

    def command(self) -> list[str]:
        """Return the command: the same in every attempt, but for what faults put before it."""
        settings = {"output": self.output, "source.catalog": f"{self.url}/catalog.json", "grid.tile": TILE}
        options = [f"--set={key}={value}" for key, value in settings.items()]
        return [*self.prefix, sys.executable, "-m", "pipeline", "run", str(self.job), *options, f"--block={BLOCK}", "--workers=1"]

    def start(self) -> Attempt:
        """Start the command once more."""
        self.temporary.mkdir(parents=True, exist_ok=True)
        log = self.folder / f"attempt-{len(self.attempts) + 1}.log"
        own = {MARK: str(self.folder), "TMPDIR": str(self.temporary), "RAY_TMPDIR": str(self.temporary), "RAY_USAGE_STATS_ENABLED": "0"}
        with log.open("wb") as sink:
            process = subprocess.Popen(
                self.command(), env={**os.environ, **own, **self.environment}, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
            )
        attempt = Attempt(process, log)
        self.attempts.append(attempt)
        return attempt

    def wait(self, attempt: Attempt) -> int | None:
        """Return the exit status (negative for a signal), None where the attempt was ended because it hung."""
        try:
            return attempt.process.wait(self.limit)
        except subprocess.TimeoutExpired:
            attempt.process.kill()
            attempt.process.wait()
            return None

    def text(self) -> str:
        """Return what all attempts wrote to stdout and stderr."""
        return "".join(attempt.log.read_text(errors="replace") for attempt in self.attempts)

    def end_processes(self) -> None:
        """End what is left of the run: a killed driver leaves processes that take a moment to notice."""
        left = [each for each in psutil.process_iter() if _belongs(each, str(self.folder))]
        for each in left:
            _signal(each, signal.SIGKILL)
        psutil.wait_procs(left, timeout=10)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.Error:
        return ""


def _belongs(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get(MARK) == mark
    except psutil.Error:
        return False


def _signal(process: psutil.Process, number: int) -> bool:
    """Send a signal; return whether the process was there."""
    try:
        process.send_signal(number)
    except psutil.Error:
        return False
    return True


def send(processes: list[psutil.Process], number: int) -> int:
    """Send a signal to `processes`; return to how many of them it went."""
    return sum(_signal(each, number) for each in processes)


def published_files(output: Path) -> dict[str, str]:
    """Return the sha256 of every published file by its path in the output: all but the records of runs and staged work."""
    names = {path.relative_to(output).as_posix(): path for path in sorted(output.rglob("*")) if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items() if not name.startswith(("runs/", ".work/"))}


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return in words how `found` differs from `expected`."""
    missing = [f"missing: {name}" for name in sorted(expected.keys() - found.keys())]
    more = [f"one too many: {name}" for name in sorted(found.keys() - expected.keys())]
    return missing + more + [f"other bytes: {name}" for name in sorted(expected.keys() & found.keys()) if expected[name] != found[name]]


def leftovers(output: Path) -> list[str]:
    """Return what lies in the output's working folder though the run has ended."""
    return [f"left in .work: {path.relative_to(output)}" for path in sorted((output / ".work").rglob("*")) if path.is_file()]


def versions(output: Path) -> Iterator[Path]:
    """Yield the folder of every version of every tile."""
    yield from (path for path in sorted(output.glob("*/*/*/v*")) if path.is_dir())


def halves(output: Path) -> list[str]:
    """Return the versions that lack an item or a raster."""
    wrong = []
    for folder in versions(output):
        names = {path.name for path in folder.iterdir()}
        whole = any(name.endswith(f"_{folder.name}.json") for name in names) and all(
            any(f"_{kind}.tif" in name for name in names) for kind in RASTERS
        )
        wrong += [] if whole else [f"half a version: {folder.relative_to(output)}"]
    return wrong
