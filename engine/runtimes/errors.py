"""Errors of the runtimes."""

from spexmap import SpexmapError


class RuntimeUnavailable(SpexmapError, RuntimeError):
    """A runtime that was asked for cannot run here; the message says what to install or what to ask for instead."""


class EngineBuildFailed(SpexmapError, RuntimeError):
    """A library refused a graph; the message carries what it said."""
