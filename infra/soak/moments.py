"""When a fault comes: in a phase of a run, which what lies in its output tells, and a moment later."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from infra.soak.job import Attempt, Run

PHASES: dict[str, Callable[[Run], bool]] = {
    "from the start": lambda run: True,
    "once planned": lambda run: _appeared(run, "runs/*/plan.parquet"),
    "once mapping": lambda run: _appeared(run, "runs/*/run.json") and '"running"' in _newest(run, "runs/*/run.json"),
    "with a block staged": lambda run: _appeared(run, ".work/*/*.arrow"),
    "with a raster there": lambda run: _appeared(run, "*/*/*/v*/*_landcover.tif"),
    "with a tile published": lambda run: _appeared(run, "*/*/*/v*/*_v?.json"),
    "with the map there": lambda run: _appeared(run, "*/*/landcover.vrt"),
}


@dataclass(frozen=True)
class Moment:
    """A phase of the run and a delay after it is reached."""

    phase: str
    delay: float

    @classmethod
    def choose(cls, random: Random, among: tuple[str, ...] = tuple(PHASES)) -> Moment:
        """Return a random one."""
        return cls(random.choice(among), round(random.uniform(0, 1.5) * random.random(), 3))

    def wait(self, run: Run, attempt: Attempt) -> bool:
        """Wait for it; return False where the driver ended before."""
        if not attempt.until(lambda: PHASES[self.phase](run)):
            return False
        end = time.monotonic() + self.delay
        return attempt.until(lambda: time.monotonic() >= end)

    def __str__(self) -> str:
        """Return the moment in words."""
        return f"{self.phase} + {self.delay:g} s"


def _appeared(run: Run, pattern: str) -> bool:
    return next(run.output.glob(pattern), None) is not None


def _newest(run: Run, pattern: str) -> str:
    try:
        return max(run.output.glob(pattern)).read_text()
    except (OSError, ValueError):
        return ""
