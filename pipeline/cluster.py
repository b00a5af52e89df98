"""A Ray cluster for the length of a run: one on this machine, or the one at an address."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.node import Node

from pipeline.errors import JobError, RunInterrupted

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 2**20
"""Fixed: on one machine pixels never go through the object store, so it holds references, plan rows and settings only."""

REACH_ATTEMPTS = 3
LEAST_TEMPORARY = 50 * 2**20
"""Bytes; with less in the folder for temporary files Ray does not start, and does not say why."""
CONTROL_SERVICE = "gcs_server"
SHARED_MEMORY = Path("/dev/shm")
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where a job that Ray started finds what it was submitted with."""
UNPACKED = "working_dir_files"
"""Folder of the nodes in which Ray unpacks what travels with a job."""

CONTROL_SECONDS = 45.0
"""When a cluster's control service has not been there for so long the run ends; Ray waits a minute and then ends the process with status 1."""
OWN_CONTROL_SECONDS = 10.0
"""The same for a cluster that this process started: nobody starts its control service again."""

WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",
    "GDAL_CACHEMAX": "256",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What bounds the memory of every process of a run; GDAL's default cache would grow with the machine."""


@contextmanager
def cluster(address: str | None = None) -> Iterator[bool]:
    """Connect to a cluster that is left when the block ends; yield whether it is one of several machines, not this one alone.

    Parameters
    ----------
    address
        Of a running cluster; None uses ``RAY_ADDRESS`` where a job runs inside a cluster, else starts one on this machine.

    Raises
    ------
    RunInterrupted
        The cluster cannot be reached or started.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    # Ray says with every local start that tokens are on, which is as it should be.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    os.environ.update({name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()})
    if address == "local":
        with _watched("this run's Ray cluster", OWN_CONTROL_SECONDS, _own_service_is_there) as ended, _connected(address, _local()):
            try:
                yield False
            finally:
                ended.set()
    else:
        with _connected(address, _remote()):
            service = ray.get_runtime_context().gcs_address
            with _watched(f"the Ray cluster at {address}", CONTROL_SECONDS, partial(_answers, service)):
                yield True


@contextmanager
def _connected(address: str, options: dict[str, Any]) -> Iterator[None]:
    terminate = signal.getsignal(signal.SIGTERM)
    place = address.removeprefix("ray://")
    if re.fullmatch(r"[^/\s]+:\d+", place) and not any(_answers(place) for _ in range(REACH_ATTEMPTS)):
        raise RunInterrupted(f"nothing answers at {place}, which is to be the address of a Ray cluster; look at --address or RAY_ADDRESS")
    try:
        with _only_what_runs_tasks():
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **options)
    except Exception as error:  # where a node does not start in time, Ray raises just that
        raise RunInterrupted(f"no Ray cluster at {address}: {error}{_token_hint(error)}{disk_hint()}") from error
    if threading.current_thread() is threading.main_thread():
        # Ray puts handlers of its own there, which print a stack and abort.
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        with _signals_held():
            ray.shutdown()


@contextmanager
def _only_what_runs_tasks() -> Iterator[None]:
    """Let a cluster that starts here do without what a run never asks: a quarter of a short run's processor time.

    `ray.init` has no option for the autoscaler's monitor and the log monitor (`RayParams` has), starts the dashboard's server also where it is to
    show nothing, and lets its agent load all that a dashboard shows where that is installed. Where a version of Ray has them under other names they
    run.
    """
    left_out: dict[tuple[Any, str], Any] = dict.fromkeys(((Node, name) for name in ("start_monitor", "start_log_monitor", "start_api_server")), None)
    left_out[ray._private.utils, "get_dashboard_dependency_error"] = ImportError("not asked for")
    methods = {(place, name): getattr(place, name) for place, name in left_out if hasattr(place, name)}
    for place, name in methods:
        setattr(place, name, partial(_answer, left_out[place, name]))
    try:
        yield
    finally:
        for (place, name), method in methods.items():
            setattr(place, name, method)


def _answer(value: Any, *_: Any, **__: Any) -> Any:
    """Return `value`, whatever else is given."""
    return value


@contextmanager
def _signals_held() -> Iterator[None]:
    """Let SIGTERM and SIGINT wait until the block has ended: Ray that is interrupted while it shuts down ends the process its own way.

    Their handlers, which Ray takes away when it shuts down, are there again afterwards.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        for number in came[:1]:
            signal.raise_signal(number)


@contextmanager
def _watched(what: str, patience: float, is_there: Callable[[], bool]) -> Iterator[threading.Event]:
    """End this process where the control service of the cluster, once it was there, is away for `patience` seconds.

    Calls of Ray wait for it then, also the ones that would end them, and at last Ray ends the process with status 1 and words of its own. The event
    that is yielded ends the watch.
    """
    ended = threading.Event()

    def watch() -> None:
        seen: float | None = None
        while not ended.wait(min(1.0, patience / 30)):
            now = time.monotonic()
            if is_there():
                seen = now
            elif seen is not None and now - seen > patience and not ended.is_set():
                print(f"spexmap: the control service of {what} was lost; the same command goes on from here", file=sys.stderr, flush=True)
                os._exit(RunInterrupted.exit_status)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield ended
    finally:
        ended.set()


def _own_service_is_there() -> bool:
    """Return whether the control service that this process started runs."""
    return any(_is_running(child, CONTROL_SERVICE) for child in psutil.Process().children())


def _is_running(process: psutil.Process, name: str) -> bool:
    try:
        return bool(process.name() == name and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _answers(address: str) -> bool:
    """Return whether something listens at ``HOST:PORT``."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), 5.0).close()
    except (OSError, OverflowError):
        return False
    return True


def check_outlives_job(output: str) -> None:
    """Raise JobError where `output` lies in the folder that Ray unpacked for a job, and will delete after it."""
    if os.environ.get(JOB_CONFIG) and UNPACKED in Path(output).parts:
        raise JobError(f"output: {output} lies where Ray unpacked this job, and is deleted with it; give a URL or the full path of a shared folder")


def _local() -> dict[str, Any]:
    """Return what starts a cluster here; where containers give little shared memory, the object store lies in the folder of temporary files.

    Ray would start a process for each core at once, which load Ray whether a run ever needs them or not.
    """
    options: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
        "_system_config": {"prestart_worker_first_driver": False},
    }
    if _free_bytes(SHARED_MEMORY) < OBJECT_STORE_BYTES * 1.1:
        options["_plasma_directory"] = tempfile.gettempdir()
    return options


def _free_bytes(folder: Path) -> int:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _remote() -> dict[str, Any]:
    """Return what a run adds to a cluster's environment; what the job that it runs in has set is left as it is."""
    job = json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env") or {}
    return {"runtime_env": {"env_vars": {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in job.get("env_vars", {})}}}


def disk_hint() -> str:
    """Return in words which folder of temporary files, Ray's or this process's, is nearly full; nothing where none is."""
    folders = dict.fromkeys(Path(folder) for folder in (tempfile.gettempdir(), os.environ.get("RAY_TMPDIR")) if folder)
    full = [f"{folder} has only {free / 2**20:.1f} MB free" for folder in folders if (free := _free_bytes(folder)) < LEAST_TEMPORARY]
    return "".join(f"; {words}" for words in full)


def _token_hint(error: BaseException) -> str:
    return "; give the cluster's token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if "token" in str(error).lower() else ""
