"""The reference job under random faults, again and again.

    python -m infra.soak [--runs 200] [--seed 1] [--only NUMBER] [--faults WORD] [--folder DIR] [--keep] [--json FILE]

Exit status 1 if a run did not end with the bytes of the undisturbed one; its folder is kept and the command that repeats it is printed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from infra.soak.faults import FAULTS, Fault
from infra.soak.harness import Harness, Outcome, counts, document


def main() -> int:
    """Make the runs, print a line each and a table at the end; return the exit status."""
    options = _options()
    # A shell ignores it for what it runs in the background, and programs inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    among, skipped = _possible(options.faults)
    for name, reason in skipped.items():
        print(f"left out: {name}: {reason}")
    # Ray keeps sockets there, whose paths may have 107 characters.
    folder = options.folder or Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
    outcomes: list[Outcome] = []
    with Harness(folder.resolve(), options.seed, options.port, keep=options.keep) as harness:
        print(
            f"undisturbed: {harness.undisturbed:.1f} s, {len(harness.blocks)} blocks; {len(among)} kinds of faults, seed {options.seed}", flush=True
        )
        for number in [options.only] if options.only is not None else range(options.first, options.first + options.runs):
            outcome = harness.one_run(number, among)
            outcomes.append(outcome)
            _print(outcome, options)
        report = document(harness, outcomes, skipped)
    _print_table(outcomes)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if not report["failed"] and options.folder is None and not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"soak: {len(outcomes)} runs, {len(report['failed'])} failed, {report['seconds'] / 60:.1f} minutes; seed {options.seed}")
    return 1 if report["failed"] else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.soak", description="The reference job under random faults.")
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1, help="chooses faults and moments")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="begin with this run")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="make this run alone")
    parser.add_argument("--faults", default="", metavar="WORD", help="only faults whose name contains this; changes which run has which")
    parser.add_argument("--folder", type=Path, metavar="DIR", help="short; default a temporary one")
    parser.add_argument("--keep", action="store_true", help="keep the folders of all runs")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--port", type=int, default=0, help="of the server that the scenes come from; default a free one")
    return parser.parse_args()


def _possible(word: str) -> tuple[tuple[type[Fault], ...], dict[str, str]]:
    wanted = [kind for kind in FAULTS if word in kind.name]
    skipped = {kind.name: kind.missing() for kind in wanted if kind.missing()}
    possible = tuple(kind for kind in wanted if kind.name not in skipped)
    if not possible:
        raise SystemExit(f"no fault is called {word!r}: {', '.join(kind.name for kind in FAULTS)}")
    return possible, skipped


def _print(outcome: Outcome, options: argparse.Namespace) -> None:
    statuses = ", ".join("hung" if status is None else str(status) for status in outcome.statuses)
    late = "" if outcome.done else " (came too late)"
    print(f"{outcome.number}: {' and '.join(outcome.faults)}{late}: {statuses}: {outcome.result}, {outcome.seconds:.1f} s", flush=True)
    for problem in outcome.problems:
        print(f"    {problem}")
    if outcome.problems:
        chosen = f" --faults '{options.faults}'" if options.faults else ""
        print(f"    again: python -m infra.soak --seed {options.seed} --only {outcome.number}{chosen}", flush=True)


def _print_table(outcomes: list[Outcome]) -> None:
    columns = ("runs", "struck", "got over it", "went on", "FAILED")
    print(f"{'fault':<38}" + "".join(f"{column:>13}" for column in columns))
    for name, row in counts(outcomes).items():
        print(f"{name:<38}" + "".join(f"{row.get(column, 0):>13}" for column in columns))


if __name__ == "__main__":
    sys.exit(main())
