"""A Ray cluster for the length of a run: one on this machine, or the one at an address."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from pipeline.errors import JobError, RunInterrupted

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 2**20
"""Fixed: on one machine pixels never go through the object store, so it holds references, plan rows and settings only."""

SHARED_MEMORY = Path("/dev/shm")
JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Where a job that Ray started finds what it was submitted with."""
UNPACKED = "working_dir_files"
"""Folder of the nodes in which Ray unpacks what travels with a job."""

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
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **(_local() if address == "local" else _remote()))
    except Exception as error:  # where a node does not start in time, Ray raises just that
        raise RunInterrupted(f"no Ray cluster at {address}: {error}{_token_hint(error)}") from error
    if threading.current_thread() is threading.main_thread():
        # Ray puts handlers of its own there, which print a stack and abort.
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield address != "local"
    finally:
        ray.shutdown()


def check_outlives_job(output: str) -> None:
    """Raise JobError where `output` lies in the folder that Ray unpacked for a job, and will delete after it."""
    if os.environ.get(JOB_CONFIG) and UNPACKED in Path(output).parts:
        raise JobError(f"output: {output} lies where Ray unpacked this job, and is deleted with it; give a URL or the full path of a shared folder")


def _local() -> dict[str, Any]:
    """Return what starts a cluster here; where containers give little shared memory, the object store lies in the folder of temporary files."""
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
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


def _token_hint(error: BaseException) -> str:
    return "; give the cluster's token: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN" if "token" in str(error).lower() else ""
