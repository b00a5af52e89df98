"""Errors of the engine room."""

from spexmap import SpexmapError


class ModelNotFound(SpexmapError, FileNotFoundError):
    """No model lies at the path or under the name given, or its files are incomplete."""


class UnknownClass(SpexmapError, ValueError):
    """A class that the model does not know; the message names the nearest ones that it does."""


class UnknownBand(SpexmapError, ValueError):
    """A band name that is not canonical, given twice, or a band set without a band that the model requires."""


class InvalidReflectance(SpexmapError, ValueError):
    """An array that cannot be surface reflectance of the bands named: wrong shape, empty, or digital numbers."""


class InvalidPrompt(SpexmapError, ValueError):
    """A prompt that the tokenizer or the model cannot take: too long, or without an answer to condense."""


class RuntimeUnavailable(SpexmapError, RuntimeError):
    """A runtime that was asked for cannot run here; the message says what to install or what to ask for instead."""


class EngineBuildFailed(SpexmapError, RuntimeError):
    """A library refused a graph; the message carries what it said."""


class TooLittleMemory(SpexmapError, MemoryError):
    """The device has no room for a block with even one window."""


class PlannerFailed(SpexmapError, ArithmeticError):
    """The planner did not run, or gave a probability that is not a number at a pixel that has data: its device cannot be trusted."""
