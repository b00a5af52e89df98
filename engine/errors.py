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
