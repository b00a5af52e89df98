"""Errors of evaluation."""

from spexmap import SpexmapError


class InvalidEvaluation(SpexmapError, ValueError):
    """An evaluation that cannot be made as asked: an arm or a baseline that does not exist, or that the chips cannot offer."""
