"""A model in its folder: what it knows at once, its weights and the libraries that run them only when something asks for them.

A run whose graph or engine is in the node's cache starts without them, some seconds sooner.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from engine.description import ClassQuery, ModelDescription, count_parameters
from engine.models import find_model, fingerprint

if TYPE_CHECKING:
    from engine.planner import Planner
    from engine.spex import Spex


class PlannerSource(Protocol):
    """What planners come from: a `StoredModel`, or a `Spex` with its weights."""

    @property
    def device(self) -> str:
        """PyTorch's name of the device that is to compute."""

    @property
    def folder(self) -> Path | None:
        """Where the model's files lie; None for a model in memory only."""

    @property
    def fingerprint(self) -> str:
        """See `Spex.fingerprint`."""

    def resolve(self, classes: Sequence[str | ClassQuery], disjoint: bool = False) -> tuple[ClassQuery, ...]:
        """See `ModelDescription.resolve`."""

    def planner(self, bands: Sequence[str], classes: Sequence[str | ClassQuery]) -> Planner:
        """See `Spex.planner`."""


class StoredModel:
    """The model of a folder, URL, shipped name or Hugging Face id.

    Parameters
    ----------
    path_or_id
        See `engine.models.find_model`.
    device
        PyTorch's name of the device that is to compute.

    Raises
    ------
    ModelNotFound
        There is no complete model there, or a file of it is damaged.
    """

    def __init__(self, path_or_id: str | Path, device: str) -> None:
        self.folder = find_model(path_or_id)
        self.device = device
        self.description = ModelDescription.read(self.folder)
        self.parameters = count_parameters(self.folder / "model.safetensors")
        self.fingerprint = fingerprint(self.folder)

    @property
    def card(self) -> dict[str, Any]:
        """See `ModelDescription.card`."""
        return self.description.card(self.fingerprint, self.parameters)

    def resolve(self, classes: Sequence[str | ClassQuery], disjoint: bool = False) -> tuple[ClassQuery, ...]:
        """Return the classes complete; see `ModelDescription.resolve`."""
        return self.description.resolve(classes, disjoint)

    def planner(self, bands: Sequence[str], classes: Sequence[str | ClassQuery]) -> Planner:
        """Return the fixed graph of a band set and a list of classes; see `Spex.planner`."""
        return self._spex.planner(bands, classes)

    @cached_property
    def _spex(self) -> Spex:
        from engine.spex import Spex

        return Spex.load(self.folder, self.device)
