"""Peak memory of a run over a region, and over one four times larger: the second may take at most 1.1 times the first.

    python benchmarks/memory.py [FOLDER]

FOLDER is what `spexmap demo` wrote; without it a demo is written. The larger region is the demo's own, and its map lies in FOLDER/output.

Memory is the proportional set size (PSS) summed over the driver and all its descendants, shared memory included, sampled every 0.5 s.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml
from common import SPEXMAP, scratch, spexmap

TILE, BLOCK = 512, 256
LIMIT = 1.1


def summed_pss(process: psutil.Process) -> int:
    """Return the PSS of a process and all its descendants in bytes."""
    total = 0
    for member in [process, *process.children(recursive=True)]:
        try:
            total += member.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def peak(arguments: list[str]) -> tuple[float, float]:
    """Run the command; return its peak memory in MiB and the seconds it took."""
    started, highest = time.monotonic(), 0
    with subprocess.Popen([SPEXMAP, *arguments]) as command:
        process = psutil.Process(command.pid)
        while command.poll() is None:
            highest = max(highest, summed_pss(process))
            time.sleep(0.5)
    if command.returncode:
        raise SystemExit(f"spexmap {' '.join(arguments)} ended with {command.returncode}")
    return highest / 2**20, time.monotonic() - started


def main() -> int:
    """Measure both regions and return the exit status."""
    demo = scratch("memory")
    if not (demo / "job.yaml").exists():
        spexmap("demo", str(demo))
    job = yaml.safe_load((demo / "job.yaml").read_text())
    west, south, east, north = bounds_of(demo / str(job["region"]))
    quarter = {"region": [west, south, (west + east) / 2, (south + north) / 2], "output": demo / "quarter", "name": "demo-quarter"}
    peaks = {}
    for name, settings in {"quarter": quarter, "whole": {}}.items():
        arguments = ["run", str(demo / "job.yaml"), *(f"--set={key}={value}" for key, value in settings.items()), f"--set=grid.tile={TILE}"]
        peaks[name], seconds = peak([*arguments, f"--block={BLOCK}"])
        print(f"{name}: peak {peaks[name]:.0f} MiB in {seconds:.0f} s", flush=True)
    ratio = peaks["whole"] / peaks["quarter"]
    print(f"memory: {ratio:.3f} times for a region four times larger (limit {LIMIT})")
    return 0 if ratio <= LIMIT else 1


def bounds_of(region: Path) -> tuple[float, float, float, float]:
    """Return west, south, east and north of a vector file in degrees."""
    import geopandas

    bounds = geopandas.read_file(region).to_crs("EPSG:4326").total_bounds
    return float(bounds[0]), float(bounds[1]), float(bounds[2]), float(bounds[3])


if __name__ == "__main__":
    sys.exit(main())
