"""What failing servers cost: the same job with 5 % of all calls failing, beside an undisturbed run, again and again.

    python benchmarks/faults.py [FOLDER] [PAIRS] [--s3]

Catalog and scenes lie behind HTTP; with ``--s3`` the output lies on S3 (OpenStack Swift, which `make test-services` installs), and its calls
fail, too.
Half of the failures are refusals (429 with Retry-After, 500, 503), the others resets, torn answers and stalls, in which a server says nothing for
a minute. All limits are the defaults.
Prints a line a pair; exit status 1 if a run does not publish the undisturbed bytes, or the median ratio is above 1.5.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from infra.soak.harness import Harness
from infra.soak.job import Run, differences, published_files
from infra.soak.proxy import KINDS, FaultProxy, Weather

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests" / "services"))
import swift

LIMIT = 1.5
SIZE = 256
BUCKET = "maps"


@dataclass
class RemoteRun(Run):
    """A run whose output lies in a bucket; `output` holds a copy after `fetch`."""

    store: swift.ObjectStore = field(kw_only=True)

    def command(self) -> list[str]:
        """Return the command of a local run, with the output in the bucket."""
        return [f"--set=output=s3://{BUCKET}/{self.folder.name}" if part == f"--set=output={self.output}" else part for part in super().command()]

    def fetch(self) -> None:
        """Copy what was published, not through the proxy."""
        files = self.store.files()
        for path in files.find(f"{BUCKET}/{self.folder.name}"):
            local = self.output / path.removeprefix(f"{BUCKET}/{self.folder.name}/")
            local.parent.mkdir(parents=True, exist_ok=True)
            files.get_file(path, str(local))


@contextmanager
def remote_output(folder: Path) -> Iterator[tuple[swift.ObjectStore, FaultProxy]]:
    """Run the S3 service with an empty bucket, and a proxy before it."""
    if not swift.is_installed():
        raise SystemExit("OpenStack Swift is not installed here: make test-services")
    with swift.object_store(folder / "swift") as store, FaultProxy(store.endpoint) as proxy:
        store.files().mkdir(BUCKET)
        yield store, proxy


class Pairs:
    """Makes runs in one harness, perhaps with their output in a bucket."""

    def __init__(self, harness: Harness, remote: tuple[swift.ObjectStore, FaultProxy] | None) -> None:
        self._harness, self._remote = harness, remote
        self._proxies = [harness.proxy, *([remote[1]] if remote else [])]
        self._expected = published_files(harness.reference)

    def run(self, name: str, number: int, weather: Weather) -> tuple[float, list[str], Counter[str]]:
        """Return the seconds of a run, how what it published differs from the undisturbed run, and what was done to its calls."""
        for proxy in self._proxies:
            proxy.clear(weather)
        run = self._new_run(f"{name}-{number}", number)
        seconds = self._harness.finish(run)
        done = sum((proxy.done for proxy in self._proxies), Counter())
        if isinstance(run, RemoteRun):
            run.fetch()
        return seconds, differences(self._expected, published_files(run.output)), done

    def _new_run(self, name: str, number: int) -> Run:
        run = self._harness.new_run(name, number)
        if self._remote is None:
            return run
        store, proxy = self._remote
        environment = replace(store, port=proxy.port).environment
        return RemoteRun(run.number, run.job, run.url, run.folder, run.temporary, run.limit, environment, store=store)


def main() -> int:
    """Run the pairs and return the exit status."""
    given = [argument for argument in sys.argv[1:] if argument != "--s3"]
    folder = Path(given[0] if given else tempfile.mkdtemp(prefix="faults-", dir="/tmp")).resolve()
    count = int(given[1]) if len(given) > 1 else 3
    ratios, wrong = [], 0
    with ExitStack() as stack:
        harness = stack.enter_context(Harness(folder, seed=1, size=SIZE))
        pairs = Pairs(harness, stack.enter_context(remote_output(folder)) if "--s3" in sys.argv else None)
        for number in range(1, count + 1):
            calm, _, _ = pairs.run("calm", number, Weather())
            failing, changed, done = pairs.run("failing", number, Weather(0.05, KINDS, seed=number))
            wrong += bool(changed)
            ratios.append(failing / calm)
            failed = done.total() - done["passed"]
            print(
                f"{number}: calm {calm:.1f} s, failing {failing:.1f} s, {failed} of {done.total()} calls failed ({done['stall']} stalls),"
                f" {len(changed)} files differ"
            )
            print("".join(f"    {each}\n" for each in changed[:6]), end="", flush=True)
    median = statistics.median(ratios)
    print(f"faults: median ratio {median:.2f} of {count} pairs (limit {LIMIT}), {wrong} runs with other bytes")
    return 1 if wrong or median > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
