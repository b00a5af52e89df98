"""Errors of training."""

from spexmap import SpexmapError


class TrainingDataError(SpexmapError, ValueError):
    """Data that training cannot use: missing, of another shape, or labelled in another way than its description says."""


class TrainingDiverged(SpexmapError, ArithmeticError):
    """The loss was not finite for too many steps in a row."""


class OtherTraining(SpexmapError, ValueError):
    """The output folder holds the state of a training with another model, seed, data or batches."""


class MissingResources(SpexmapError, RuntimeError):
    """What the training asks for is not on this machine or cluster: a GPU, or CPUs for its workers."""
