"""The command `spexmap`.

Exit status: 0 done or nothing to do; 1 some tiles failed, or `validate` found something wrong; 2 the job or its inputs are wrong; 3 stopped in the
middle, or an error that nobody foresaw (its traceback is logged), safe to run again; 4 another run holds the output; 130 and 143 after signals. What
a command needs is imported inside it, so that `spexmap --help` is there at once.
"""

from __future__ import annotations

import functools
import json
import logging
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ParamSpec

import typer

from pipeline.errors import JobError
from spexmap import SpexmapError, __version__

DONE, FAILED, WRONG, STOPPED, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 130, 143

P = ParamSpec("P")

app = typer.Typer(
    help="Land-cover maps of whole regions from a STAC query, by SPEX.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Job = Annotated[str, typer.Argument(metavar="JOB", help="Job file: path or URL.")]
Output = Annotated[str, typer.Argument(metavar="OUTPUT", help="The output of a job: path or URL.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Wins over the job file; dotted keys, values in YAML; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON.")]


class Terminated(SystemExit):
    """SIGTERM came; leaves with status 143."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


def main() -> None:
    """Run the command line and leave with its exit status."""
    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="spexmap")


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _command(function: Callable[P, int]) -> Callable[P, None]:
    """Return a command that leaves with the exit status `function` returns, and with one sentence on stderr for what goes wrong."""

    @functools.wraps(function)
    def command(*arguments: P.args, **options: P.kwargs) -> None:
        try:
            status = function(*arguments, **options)
        except (KeyboardInterrupt, SystemExit) as stop:
            status = _stopped(stop)
        except SpexmapError as error:
            status = _fail(str(error), getattr(error, "exit_status", WRONG))
        except BrokenPipeError:
            status = DONE
        except Exception as error:
            logging.getLogger(__name__).exception("an error that nobody foresaw")
            status = _fail(f"{type(error).__name__}: {error}; this is a defect of spexmap, please report it with the traceback above", STOPPED)
        raise SystemExit(status)

    return command


def _stopped(stop: KeyboardInterrupt | SystemExit) -> int:
    """Return the status after a signal; Ray's own handler of SIGTERM leaves with the number of the signal."""
    if isinstance(stop, KeyboardInterrupt):
        return _fail("interrupted; the same command goes on from here", INTERRUPTED)
    if stop.code in (TERMINATED, signal.SIGTERM):
        return _fail("terminated; the same command goes on from here", TERMINATED)
    return stop.code if isinstance(stop.code, int) else DONE if stop.code is None else STOPPED


def _fail(message: str, status: int) -> int:
    typer.echo(f"spexmap: {' '.join(message.split())}", err=True)
    return status


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"spexmap {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")] = False,
) -> None:
    """Land-cover maps of whole regions from a STAC query, by SPEX."""


@app.command()
@_command
def run(
    job: Job,
    overrides: Overrides = None,
    new_series: Annotated[
        bool, typer.Option("--new-series", help="Map even if grid, classes, model, composite or mask of the series changed.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Segmenting actors; default one for each accelerator, or one.")] = None,
    block: Annotated[int | None, typer.Option(min=1, metavar="PIXELS", help="Side of a block; changes memory and speed, no pixel.")] = None,
    address: Annotated[str | None, typer.Option(metavar="URL", help="Ray cluster; default RAY_ADDRESS, else this machine alone.")] = None,
) -> int:
    """Search, plan, map, publish; go on where an interrupted run stopped."""
    from pipeline.job import load_job

    spec = load_job(job, overrides or ())
    _log_to_stderr()
    from pipeline.run import run_job

    with spec.naming_lines():
        return run_job(spec, new_series=new_series, workers=workers, block=block, address=address)


@app.command()
@_command
def plan(job: Job, overrides: Overrides = None, as_json: AsJson = False) -> int:
    """Print scenes, tiles, windows, bytes to read and expected hours; writes nothing."""
    from pipeline.job import load_job

    spec = load_job(job, overrides or ())
    from pipeline.reports import plan_document, print_plan
    from pipeline.run import prepare

    with spec.naming_lines():
        made = prepare(spec)
    if as_json:
        _echo_json(plan_document(made))
    else:
        print_plan(made)
    return DONE


@app.command()
@_command
def status(output: Output, as_json: AsJson = False) -> int:
    """Print which tiles of an output's runs are done, failed and left."""
    from pipeline.reports import print_status
    from pipeline.status import read_status, status_document

    runs = read_status(output)
    if as_json:
        _echo_json(status_document(runs))
    else:
        print_status(runs)
    return DONE


@app.command()
@_command
def validate(
    output: Output, deep: Annotated[bool, typer.Option("--deep", help="Read every checksum and every overview.")] = False, as_json: AsJson = False
) -> int:
    """Check headers, sizes and documents of an output."""
    from pipeline.storage import Storage
    from pipeline.validate import validate_output

    storage = Storage(output)
    if not storage.exists("catalog.json"):
        raise JobError(f"{output} holds no catalog.json; is it the output of a job?")
    report = validate_output(storage, deep)
    if as_json:
        _echo_json(asdict(report))
    else:
        for problem in report.problems:
            typer.echo(f"{problem.path}: {problem.reason}")
        typer.echo(f"{report.files} files checked, {len(report.problems)} problems")
        if report.unchecked:
            typer.echo(f"not checked against schemas that are not at hand: {', '.join(report.unchecked)}")
    return FAILED if report.problems else DONE


@app.command()
@_command
def schema() -> int:
    """Print the JSON schema of the job file."""
    from pipeline.job import job_schema

    _echo_json(job_schema())
    return DONE


@app.command()
@_command
def demo(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to; made if it is not there.")],
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed is another landscape.")] = None,
    size: Annotated[int | None, typer.Option(metavar="PIXELS", help="Side of each of the two tiles in pixels of 10 m, 128 to 10980.")] = None,
) -> int:
    """Write a small simulated Sentinel-2 catalog and a job for it; needs no network."""
    from pipeline.demo import SEED, SIZE, write_demo

    made = write_demo(directory, SEED if seed is None else seed, SIZE if size is None else size)
    typer.echo(f"wrote a simulated catalog to {made.directory}; map it with: spexmap run {made.job}")
    return DONE


def _echo_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False))


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
