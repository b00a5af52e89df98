"""Offsets of a class set's logits, chosen on the user's chips: few numbers, where the weights lean to other classes than the labels do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.lexicon import Lexicon
from engine.modeling import SpexForLandCover
from engine.processing import SpexProcessor
from engine.training.chip_folder import IGNORE, LabelledChips
from engine.training.finetuning import Family
from engine.training.heldout import as_spex

STEPS = (-0.5, -0.25, 0.25, 0.5)
"""What the search tries to add to the offset of a class."""

LARGEST, ROUNDS, WORTH = 1.5, 4, 0.001
"""Size of an offset; rounds over the classes; gain in mean intersection over union for which an offset is moved."""

PIXELS = 100_000
"""Labelled pixels that the search looks at; where there are more, evenly thinned."""

LEAST = 1e-6
"""Probabilities below count as this."""


@dataclass(frozen=True)
class LabelledLogits:
    """Labelled pixels, and the logits that a model gives them."""

    logits: Tensor
    """(1, Q, 1, P) in the order of the lexicon; those of the kinds of a root up to a constant."""
    labels: Tensor
    """(P,) int64: index into the classes of the chips."""
    parts: tuple[tuple[int, ...], ...]
    """For each class of the chips the queries whose probabilities add up to it."""
    family: Family

    def score(self, offsets: Sequence[float]) -> float:
        """Return the mean intersection over union with an offset for each class of the chips, over the classes that are there."""
        shift = torch.zeros(self.logits.shape[1])
        for parts, offset in zip(self.parts, offsets, strict=True):
            shift[list(parts)] += offset
        logs = self.family.log_probabilities(self.logits + shift[None, :, None, None])[0, :, 0]
        guess = torch.stack([logs[list(parts)].logsumexp(0) for parts in self.parts]).argmax(0)
        count = len(offsets)
        cells = torch.bincount(self.labels * count + guess, minlength=count * count).reshape(count, count).double()
        hits, there = cells.diagonal(), cells.sum(1)
        return float((hits / (there + cells.sum(0) - hits).clamp(min=1))[there > 0].mean())


def labelled_logits(
    model: SpexForLandCover, processor: SpexProcessor, chips: LabelledChips, parts: Sequence[tuple[str, ...]], pixels: int = PIXELS
) -> LabelledLogits:
    """Return what a model says of the labelled pixels of chips; `parts` name, for each class of the chips, the model's classes that make it up."""
    names = list(processor.lexicon.terms)
    every = max(1, int((chips.labels != IGNORE).sum()) // pixels)
    shares, labels = [], []
    with as_spex(model, processor) as spex:
        for chip, cover in zip(chips.reflectance, chips.labels, strict=True):
            known = cover != IGNORE
            shares.append(spex.segment(chip[None], chips.bands, names).probabilities[0][:, known][:, ::every])
            labels.append(cover[known][::every])
    logits = logits_of(torch.from_numpy(np.concatenate(shares, 1)), processor.lexicon)
    queries = tuple(tuple(names.index(name) for name in each) for each in parts)
    return LabelledLogits(logits[None, :, None], torch.from_numpy(np.concatenate(labels)).long(), queries, Family(processor.lexicon))


def logits_of(shares: Tensor, lexicon: Lexicon) -> Tensor:
    """Return logits (Q, P) that have the probabilities (Q, P), in the order of the lexicon."""
    names, logs = list(lexicon.terms), shares.clamp(min=LEAST).log()
    other = (1.0 - shares[[names.index(root) for root in lexicon.roots]].sum(0)).clamp(min=LEAST).log()
    above = [logs[names.index(term.parent)] if term.parent else other for term in lexicon.terms.values()]
    return logs - torch.stack(above)


def best_offsets(told: LabelledLogits) -> list[float]:
    """Return an offset for each class of the chips, found by moving one at a time for as long as the mean intersection over union grows."""
    offsets = [0.0] * len(told.parts)
    best = told.score(offsets)
    for _ in range(ROUNDS):
        before = best
        for moves in _single_moves(len(offsets)):
            tried = [each + move for each, move in zip(offsets, moves, strict=True)]
            score = told.score(tried) if max(map(abs, tried)) <= LARGEST else best
            if score > best + WORTH:
                best, offsets = score, tried
        if best == before:
            break
    return offsets


def _single_moves(count: int) -> list[list[float]]:
    return [[step * (k == j) for j in range(count)] for k in range(count) for step in STEPS]
