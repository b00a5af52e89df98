"""Errors of the pipeline room, and the exit status that each one means."""

from spexmap import SpexmapError


class JobError(SpexmapError, ValueError):
    """The job file or what it names is wrong; nothing was started (exit status 2)."""

    exit_status = 2


class GridError(JobError):
    """The region and the grid do not fit each other."""


class SeriesChanged(JobError):
    """The output holds a series of this name with another grid, classes, model, composite or mask."""


class RunInterrupted(SpexmapError, RuntimeError):
    """Storage or cluster was lost in the middle; the same command goes on where this one stopped (exit status 3)."""

    exit_status = 3


class VersionTaken(RunInterrupted):
    """The version of a tile that was about to be written is there already, made from other inputs (exit status 3)."""


class StorageUnavailable(RunInterrupted, OSError):
    """A store kept failing, whatever was tried (exit status 3)."""


class StorageRefused(SpexmapError, PermissionError):
    """A store does not let us: no permission, no such bucket, wrong credentials (exit status 2)."""

    exit_status = 2


class AccessLost(RunInterrupted, PermissionError):
    """A store that let a run begin does not let it go on: its credentials ran out or were withdrawn (exit status 3)."""


class OutputHeld(SpexmapError, RuntimeError):
    """Another run holds this output (exit status 4)."""

    exit_status = 4


class LeaseLost(OutputHeld):
    """Another run took the output over while this one was not heard of; nothing more is written (exit status 4)."""


class ReadFailed(SpexmapError, OSError):
    """A scene could not be read for a block, after retries on fresh handles."""


class NoScenes(SpexmapError):
    """The catalog has no scene of the region in the period: a plain sentence, not a failure (exit status 0)."""

    exit_status = 0
