"""What failing servers cost: the same job with 5 % of all catalog and scene calls failing, beside an undisturbed run, again and again.

    python benchmarks/faults.py [FOLDER] [PAIRS]

Half of the failures are refusals (429 with Retry-After, 500, 503), the others resets, torn bodies and stalls of four seconds, of which a reader waits
two.
Prints a line a pair; exit status 1 if a run does not publish the undisturbed bytes, or the median ratio is above 1.5.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

from infra.soak.harness import Harness
from infra.soak.job import differences, published_files
from infra.soak.proxy import KINDS, Weather

LIMIT = 1.5
SIZE = 256


def main() -> int:
    """Run the pairs and return the exit status."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="faults-", dir="/tmp")).resolve()
    pairs = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    ratios, wrong = [], 0
    with Harness(folder, seed=1, size=SIZE) as harness:
        expected = published_files(harness.reference)
        for number in range(1, pairs + 1):
            calm = harness.finish(harness.new_run("calm", number))
            harness.proxy.clear(Weather(0.05, KINDS, seed=number, stall_seconds=4.0))
            run = harness.new_run("failing", number)
            run.environment |= {"GDAL_HTTP_LOW_SPEED_TIME": "2"}
            failing = harness.finish(run)
            done = dict(harness.proxy.done)
            harness.proxy.clear()
            changed = differences(expected, published_files(run.output))
            wrong += bool(changed)
            ratios.append(failing / calm)
            failed = sum(done.values()) - done.get("passed", 0)
            print(f"{number}: calm {calm:.1f} s, failing {failing:.1f} s, {failed} of {sum(done.values())} calls failed, {len(changed)} files differ")
            print("".join(f"    {each}\n" for each in changed[:6]), end="", flush=True)
    median = statistics.median(ratios)
    print(f"faults: median ratio {median:.2f} of {pairs} pairs (limit {LIMIT}), {wrong} runs with other bytes")
    return 1 if wrong or median > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
