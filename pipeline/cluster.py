"""A Ray cluster for the length of a run: one on this machine, or the one at an address."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from pipeline.errors import RunInterrupted

log = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 128 * 2**20
"""Fixed: pixels never go through the object store, so it holds references, plan rows and settings only."""

WORKER_ENVIRONMENT = {
    "MALLOC_ARENA_MAX": "2",
    "GDAL_CACHEMAX": "256",
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""What bounds the memory of every process of a run; GDAL's default cache would grow with the machine."""


@contextmanager
def cluster(address: str | None = None) -> Iterator[dict[str, float]]:
    """Yield the resources of a cluster that is left when the block ends: ``CPU``, ``GPU`` and others.

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
        if address == "local":
            ray.init(
                address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False, logging_level=logging.WARNING
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, runtime_env={"env_vars": dict(WORKER_ENVIRONMENT)})
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise RunInterrupted(f"no Ray cluster at {address}: {error}") from error
    if threading.current_thread() is threading.main_thread():
        # Ray puts handlers of its own there, which print a stack and abort.
        signal.signal(signal.SIGTERM, terminate)
    try:
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        yield dict(resources)
    finally:
        ray.shutdown()
