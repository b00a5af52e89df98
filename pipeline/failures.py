"""Which kind of failure an error is, decided where it is raised: what a worker sends back is a value with a kind, not a text to be understood."""

from __future__ import annotations

import sys
from enum import StrEnum

from engine.errors import EngineBuildFailed, PlannerFailed, RuntimeUnavailable, TooLittleMemory
from pipeline.errors import JobError, LeaseLost, RunInterrupted

_OF_DEVICE = ("CUDA error", "device-side assert", "CUDNN_STATUS", "CUBLAS_STATUS", "an illegal memory access")
_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc")
"""What PyTorch and OpenVINO say in errors that have no class of their own."""


class Failure(StrEnum):
    """What has to be done about an error of a worker."""

    ERROR = "error"
    """Try the unit again."""
    MEMORY = "memory"
    """Memory ran out, twice: begin with another process, then give the unit up."""
    DEVICE = "device"
    """The device cannot be trusted any more: end the actor at once, redo its units elsewhere."""
    STORAGE = "storage"
    """Storage does not answer: try again, then stop the run."""
    LEASE = "lease"
    """Another run holds the output: stop at once."""
    JOB = "job"
    """The job asks for what cannot be had."""


def failure_of(error: BaseException) -> Failure:
    """Return the kind of `error`."""
    if isinstance(error, LeaseLost):
        return Failure.LEASE
    if isinstance(error, JobError | RuntimeUnavailable | EngineBuildFailed | TooLittleMemory):
        return Failure.JOB
    if isinstance(error, RunInterrupted) and isinstance(error, OSError):
        return Failure.STORAGE
    if isinstance(error, MemoryError) or _is_of_torch(error, "OutOfMemoryError"):
        return Failure.MEMORY
    if isinstance(error, PlannerFailed) or _is_of_torch(error, "AcceleratorError"):
        return Failure.DEVICE
    return _of_text(str(error)) if isinstance(error, RuntimeError) else Failure.ERROR


def _is_of_torch(error: BaseException, name: str) -> bool:
    """Return whether it is an error of a class of PyTorch, which is not loaded to find out: most workers never need it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, getattr(torch, name))


def _of_text(text: str) -> Failure:
    if any(words in text for words in _OF_MEMORY):
        return Failure.MEMORY
    return Failure.DEVICE if any(words in text for words in _OF_DEVICE) else Failure.ERROR
