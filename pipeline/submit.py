"""A job on a remote cluster, through the Ray Jobs API: the job file and small files travel there, its log and the run's exit status come back.

Everything that the cluster shows of a job (its command line, its environment) can be read by everyone who reaches its dashboard, so no secret goes
there: headers are given as ``${NAME}`` and put in on the cluster.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pyarrow.parquet as pq
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.errors import JobError, RunInterrupted
from pipeline.faults import reason, without_secrets
from pipeline.job import JobSpec, load_job
from stac.deadline import within

log = logging.getLogger(__name__)

LARGEST = 50_000_000
"""Bytes of files that travel with a job; more is refused."""
LOST_SECONDS = 600.0
"""A cluster that has not answered for so long is given up; the job there may go on."""
STOP_SECONDS = 30.0
POLL_SECONDS = 2.0
STATUSES = (0, 1, 2, 3, 4, 130, 143)
"""What `spexmap run` ends with; anything else did not come from it."""
STOPPED, UNKNOWN = 143, 3

ANSWER_SECONDS, UPLOAD_SECONDS = 30.0, 300.0
"""Limits of a call of the Jobs API, and of the one that takes the files along: its client has none."""
TAIL_SECONDS = 300.0
"""So long a log is listened to before the cluster is asked whether the job still runs: a connection may be gone without a word."""
_FAULTS = (RuntimeError, OSError, RayError, aiohttp.ClientError, KeyError, TypeError, ValueError)
"""What the client of the Jobs API raises; the last three where what answers is no Ray."""


@dataclass(frozen=True)
class Package:
    """What travels: files by their place in the job's folder on the cluster, and the command that runs there."""

    files: dict[str, Path]
    command: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Copy the files into `folder`."""
        for name, source in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)


def make_package(job: str, overrides: Sequence[str] = (), options: Sequence[str] = ()) -> Package:
    """Return what a job needs on a cluster so that its relative paths keep their meaning.

    A region file and an item collection travel with the job. A local output, model or catalog of many files does not: its full path is
    used, with a warning, for that works where all nodes share a file system.

    Parameters
    ----------
    job
        Job file, path or URL.
    overrides
        As for `load_job`.
    options
        More options of ``spexmap run``.

    Raises
    ------
    JobError
        The job is wrong, what it names is missing or too large, or a secret would be shown on the cluster.
    """
    spec = load_job(job, overrides)
    _refuse_secrets(spec, overrides)
    files: dict[str, Path] = {} if "://" in job else {Path(job).name: Path(job)}
    places = {"region": _region(spec, files), "source.catalog": _catalog(spec, files), "output": _there("output", spec.output)}
    places["model"] = _there("model", spec.model) if Path(spec.model).is_absolute() else None
    _refuse_large(files)
    moved = {key: f"{key}={json.dumps(place)}" for key, place in places.items() if place is not None}
    kept = [text for text in overrides if text.partition("=")[0].strip() not in moved]
    settings = [word for text in (*kept, *moved.values()) for word in ("--set", text)]
    return Package(files, ("spexmap", "run", job if "://" in job else Path(job).name, *settings, *options))


def _refuse_secrets(spec: JobSpec, overrides: Sequence[str]) -> None:
    plain = [name for name, value in spec.source.headers.items() if "${" not in value.get_secret_value()]
    shown = [text for text in overrides if without_secrets(text) != text or (plain and text.startswith(("source=", "source.headers")))]
    if shown:
        raise JobError(
            f"--set {shown[0].partition('=')[0]}: everyone who reaches the cluster could read this value in the job's command line; "
            "write ${NAME} and set the variable NAME on the cluster's nodes"
        )
    for name in plain:
        log.warning("source.headers.%s travels in the job file as it stands; write ${NAME} and set the variable NAME on the cluster's nodes", name)


def _region(spec: JobSpec, files: dict[str, Path]) -> str | None:
    """Return where the region file will lie; all files of the same stem go with a shapefile."""
    if not isinstance(spec.region, str) or "://" in spec.region:
        return None
    path = Path(spec.region)
    if not path.exists():
        raise JobError(f"region: there is no file {path}")
    if path.is_dir():
        return _add(path, "region", files)
    parts = path.parent.glob(f"{path.stem}.*") if path.suffix.lower() == ".shp" else (path,)
    for part in parts:
        _add(part, "region", files)
    return f"region/{path.name}"


def _catalog(spec: JobSpec, files: dict[str, Path]) -> str | None:
    """Return where the catalog will lie: an item collection that names its files in full travels, another local catalog stays."""
    catalog = spec.source.catalog
    if "://" in catalog:
        return None
    path = Path(catalog)
    if not path.is_file():
        raise JobError(f"source.catalog: there is no file {path}")
    if path.stat().st_size <= LARGEST and _names_files_in_full(path):
        return _add(path, "catalog", files)
    return _there("source.catalog", catalog)


def _names_files_in_full(path: Path) -> bool:
    """Return whether `path` is an item collection whose assets are URLs or absolute paths."""
    try:
        if path.suffix in (".parquet", ".geoparquet"):
            items = [{"assets": assets} for assets in pq.read_table(path, columns=["assets"])["assets"].to_pylist()]
        else:
            document = json.loads(path.read_bytes())
            items = document["features"] if document.get("type") == "FeatureCollection" else [{}]
        hrefs = [asset["href"] for item in items for asset in item["assets"].values() if asset]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all("://" in href or href.startswith("/") for href in hrefs)


def _add(path: Path, folder: str, files: dict[str, Path]) -> str:
    inner = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    files.update({f"{folder}/{each.relative_to(path.parent)}": each for each in inner})
    return f"{folder}/{path.name}"


def _there(key: str, place: str) -> str | None:
    """Return a local path in full, with a warning; a URL needs neither."""
    if "://" in place:
        return None
    log.warning("%s: %s does not travel; every node of the cluster must see the same folder under this path, else give a URL", key, place)
    return place


def _refuse_large(files: dict[str, Path]) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > LARGEST:
        largest = max(sizes, key=lambda name: sizes[name])
        raise JobError(
            f"the files of the job have {sum(sizes.values()) / 1e6:.0f} MB, {files[largest]} alone {sizes[largest] / 1e6:.0f} MB, and at most "
            f"{LARGEST / 1e6:.0f} MB travel with a job; put them where the cluster reaches them, and name their URL"
        )


def submit(package: Package, address: str) -> int:
    """Run a package on the cluster at `address`, write its log to standard output, and return the exit status of the run.

    A signal stops the job on the cluster before it goes on.

    Raises
    ------
    JobError
        The address is not that of a dashboard, or the cluster refuses the job.
    RunInterrupted
        The cluster cannot be reached, or not any more; then the job may go on there.
    """
    for chatty in ("ray.dashboard.modules", "ray._private.runtime_env"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    client = _client(address)
    with tempfile.TemporaryDirectory(prefix="spexmap-") as folder:
        package.write(Path(folder))
        try:
            entrypoint = f"exec {shlex.join(package.command)}"
            job = within(UPLOAD_SECONDS, partial(client.submit_job, entrypoint=entrypoint, runtime_env={"working_dir": folder}))
        except _FAULTS as error:
            raise _refused(address, error) from error
    log.info("job %s runs on %s", job, address)
    try:
        return _exit_status(_followed(client, job))
    except (KeyboardInterrupt, SystemExit):
        _stop(client, job)
        raise


def _client(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise JobError(f"--address {address}: give the URL of the cluster's dashboard, such as http://127.0.0.1:8265")
    try:
        return within(ANSWER_SECONDS, partial(JobSubmissionClient, address))
    except _FAULTS as error:
        raise _refused(address, error) from error


def _refused(address: str, error: BaseException) -> JobError | RunInterrupted:
    text = str(error)
    if "401" in text or "403" in text or "token" in text.lower():
        return JobError(f"the cluster at {address} does not let us in: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token")
    return RunInterrupted(f"no Ray cluster takes jobs at {address} ({reason(error)}); is it up, and is this the address of its dashboard?")


def _followed(client: JobSubmissionClient, job: str) -> Any:
    """Write the log of a job until it has ended, and return what the cluster knows of it."""
    printer = _Printer()
    until = time.monotonic() + LOST_SECONDS
    while True:
        try:
            with suppress(TimeoutError):
                asyncio.run(asyncio.wait_for(_tail(client, job, printer), TAIL_SECONDS))
            info = within(ANSWER_SECONDS, partial(client.get_job_info, job))
            if info.status.is_terminal():
                return info
            until = time.monotonic() + LOST_SECONDS
        except _FAULTS as error:
            if time.monotonic() > until:
                raise RunInterrupted(
                    f"the cluster has not answered for {LOST_SECONDS:.0f} s ({reason(error)}); job {job} may go on there, "
                    "spexmap status OUTPUT says how far it is"
                ) from error
            log.warning("the cluster does not answer (%s); trying again", reason(error))
        time.sleep(POLL_SECONDS)


class _Printer:
    """Writes a log that comes in pieces and, after an interruption, from its beginning again."""

    def __init__(self) -> None:
        self._written = 0
        self._position = 0

    def rewind(self) -> None:
        """Begin again: what was written is not written twice."""
        self._position = 0

    def feed(self, text: str) -> None:
        """Write what is new of the next piece."""
        self._position += len(text)
        new = min(len(text), self._position - self._written)
        if new > 0:
            sys.stdout.write(text[len(text) - new :])
            sys.stdout.flush()
            self._written = self._position


async def _tail(client: JobSubmissionClient, job: str, printer: _Printer) -> None:
    printer.rewind()
    async for text in client.tail_job_logs(job):
        printer.feed(text)


def _exit_status(info: Any) -> int:
    if info.status == JobStatus.STOPPED:
        log.error("the job was stopped on the cluster; the same command goes on from here")
        return STOPPED
    if info.driver_exit_code in STATUSES:
        return int(info.driver_exit_code)
    words = without_secrets(" ".join(str(info.message).split())[:500])
    log.error("the job ended on the cluster without a status of its own (%s); the same command goes on from here", words)
    return UNKNOWN


def _stop(client: JobSubmissionClient, job: str) -> None:
    """Stop a job and wait a while until it has ended."""
    try:
        within(STOP_SECONDS, partial(client.stop_job, job))
        until = time.monotonic() + STOP_SECONDS
        while not within(STOP_SECONDS, partial(client.get_job_status, job)).is_terminal() and time.monotonic() < until:
            time.sleep(0.2)
        log.info("job %s is stopped", job)
    except _FAULTS as error:
        log.error("job %s could not be stopped (%s); it goes on unless you stop it: ray job stop %s", job, reason(error), job)
