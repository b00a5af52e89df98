"""Samples: one chip, one class, one mask, and words of which every part knows where it comes from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.spie.errors import InconsistentSample
from engine.spie.sentences import MaskSummary, answer_of, attributes_json, attributes_of, check_answer, instruction_of, phrase_of

Source = Literal["index", "labels", "none"]
SOURCES: tuple[Source, ...] = ("index", "labels", "none")


@dataclass(frozen=True)
class Evidence:
    """A mask of one class together with what it was made from; only `from_index` and `from_labels` of this module make one."""

    source: Source
    mask: NDArray[np.bool_]
    """(H, W)"""
    summary: MaskSummary

    @property
    def attributes(self) -> str:
        """The largest regions as JSON."""
        return attributes_json(self.summary.regions)


def from_index(mask: NDArray[np.bool_], summary: MaskSummary) -> Evidence:
    """Return what spectral indices say."""
    return Evidence("index", mask, summary)


def from_labels(mask: NDArray[np.bool_], summary: MaskSummary) -> Evidence:
    """Return what labels say."""
    return Evidence("labels", mask, summary)


@dataclass(frozen=True)
class Sample:
    """One instruction with its answer and its mask."""

    sample_id: str
    target: str
    """Class."""
    prior: Evidence | None
    """What the attributes of the instruction come from; None: it carries none."""
    truth: Evidence
    """What mask and answer come from."""
    valid: NDArray[np.bool_]
    """(H, W): pixels with data, not clouded, and with a label where the mask comes from labels."""
    index_means: Mapping[str, float | None] = field(default_factory=dict)
    """Mean of spectral indices over the mask."""

    @property
    def phrase(self) -> str:
        """The class inside a sentence."""
        return phrase_of(self.target)

    @property
    def source(self) -> Source:
        """Where the attributes of the instruction come from; it follows from them and cannot be set."""
        return "none" if self.prior is None else self.prior.source

    @property
    def instruction(self) -> str:
        """What a human asks."""
        return instruction_of(self.phrase, None if self.prior is None else self.prior.attributes, self.sample_id)

    @property
    def answer(self) -> str:
        """What the model should say."""
        return answer_of(self.phrase, self.truth.summary)


def check_sample(sample: Sample) -> None:
    """Raise `InconsistentSample` where a sample's text, mask, attributes and source disagree."""
    carried = attributes_of(sample.instruction)
    if (carried is None) != (sample.source == "none"):
        raise InconsistentSample(f"{sample.sample_id}: source {sample.source!r}, but attributes {carried!r}")
    if sample.prior is not None and sample.prior.source == sample.truth.source and carried != sample.truth.attributes:
        raise InconsistentSample(f"{sample.sample_id}: attributes and mask both come from {sample.source!r} and differ")
    if (sample.truth.mask & ~sample.valid).any() or int(sample.truth.mask.sum()) != sample.truth.summary.pixels:
        raise InconsistentSample(f"{sample.sample_id}: the mask is not the one described, or covers pixels without data")
    check_answer(sample.answer, sample.phrase, sample.truth.summary, sample.truth.attributes)
    for evidence in (sample.prior, sample.truth):
        if evidence is not None:
            check_attributes(evidence.attributes)


def check_attributes(attributes: str) -> None:
    """Raise `InconsistentSample` where attributes (JSON) break the rules of SPIE: keys in order, at most ten, coordinates 0..1 of three decimals."""
    rows = json.loads(attributes)
    points = [point for row in rows for point in (row["Centroid"], *row["Bounding box"])]
    right = (
        len(rows) <= 10
        and all(list(row) == ["Size of area", "Centroid", "Location", "Bounding box"] and len(row["Bounding box"]) == 4 for row in rows)
        and all(0 <= value <= 1 and round(value, 3) == value for point in points for value in point)
    )
    if not right:
        raise InconsistentSample(f"these attributes break the rules of SPIE: {attributes}")


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return a mask as lengths of runs, row by row, beginning with the pixels before the first True (0 where that is the first pixel)."""
    flat = np.concatenate([[False], mask.ravel(), [not mask.ravel()[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(length) for length in np.diff(edges, prepend=0)]


def mask_of_runs(runs: list[int], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask that `run_lengths` wrote."""
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(shape)
