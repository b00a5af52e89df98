"""The held-out part of a user's chips: it chooses when fine-tuning stops, and the thresholds of the new classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.description import UNION, ClassQuery
from engine.modeling import SpexForLandCover
from engine.processing import SpexProcessor
from engine.spex import Spex
from engine.training.chip_folder import IGNORE, LabelledChips
from engine.training.errors import MissingResources, TrainingDataError

THRESHOLDS = np.arange(1, 20) / 20.0

WORTH = 0.02
"""Mean intersection over union by which trained weights must beat those they started from, where these know all classes: few held-out chips tell no
less, and what was learnt from many is easily lost."""


def split_chips(chips: LabelledChips, share: float, seed: int, tries: int = 64) -> tuple[LabelledChips, LabelledChips]:
    """Return the training and the held-out part; places are not torn apart. Of some random splits the one with the most classes in both parts.

    Raises
    ------
    TrainingDataError
        There are fewer than two places.
    """
    places = sorted(set(chips.places))
    if len(places) < 2:
        raise TrainingDataError(f"{len(chips)} chips at {len(places)} place: fine-tuning needs two at least, one to train and one to hold out")
    number = min(max(1, round(share * len(places))), len(places) - 1)
    generator = np.random.default_rng((seed, 4))
    drawn = [frozenset(generator.permutation(places)[:number].tolist()) for _ in range(tries)]
    inside = [np.array([place in held for place in chips.places]) for held in drawn]
    best = max(range(tries), key=lambda k: (_classes_in_both(chips, inside[k]), -k))
    return chips.at(np.flatnonzero(~inside[best])), chips.at(np.flatnonzero(inside[best]))


def _classes_in_both(chips: LabelledChips, held: NDArray[np.bool_]) -> int:
    parts = [set(np.unique(chips.labels[which])) - {IGNORE} for which in (held, ~held)]
    return len(parts[0] & parts[1])


class Holdout:
    """Looks at the held-out chips now and then, and remembers the best weights.

    It is made before the first step, or `set_state` follows. `beginning` are the weights to go back to where training has not gained `worth`.
    """

    def __init__(
        self,
        chips: LabelledChips,
        parts: Sequence[tuple[str, ...]],
        model: SpexForLandCover,
        processor: SpexProcessor,
        beginning: Mapping[str, Tensor],
        every: int,
        patience: int,
        worth: float = WORTH,
    ) -> None:
        self.chips, self.parts, self.model, self.processor = chips, tuple(parts), model, processor
        self.every, self.patience, self.worth = every, patience, worth
        self.best, self.worse = -1.0, 0
        self.weights: dict[str, Tensor] = {}
        self.beginning, self.start = beginning, self.score()

    def look(self, step: int, last: int) -> dict[str, float]:
        """Return the mean intersection over union every few steps, and whether to stop."""
        if step % self.every and step != last:
            return {}
        score = self.score()
        if score > self.best:
            self.best, self.worse = score, 0
            self.weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        else:
            self.worse += 1
        return {"held_out": score, "stop": float(self.worse >= self.patience)}

    def probabilities(self) -> NDArray[np.float32]:
        """Return the probabilities (N, K, H, W) of the chips' classes."""
        return class_probabilities(self.model, self.processor, self.chips, self.parts)

    def score(self) -> float:
        """Return the mean intersection over union of the chips' classes."""
        return float(np.nanmean(intersection_over_union(self.probabilities(), self.chips.labels)))

    def restore(self) -> None:
        """Go back to the best weights; to those of the start where the best ones are not worth it."""
        self.model.load_state_dict(self.weights if self.best > self.start + self.worth else self.beginning)

    def thresholds(self, names: Sequence[str]) -> dict[str, float]:
        """Return a threshold for each of `names` that the held-out chips show."""
        shares = self.probabilities()
        found = {parts[0]: best_threshold(shares[:, k], self.chips.labels, k) for k, parts in enumerate(self.parts) if len(parts) == 1}
        return {name: value for name, value in found.items() if name in names and value is not None}

    def state(self) -> dict[str, Any]:
        """Return what `set_state` takes."""
        return {"best": self.best, "worse": self.worse, "weights": self.weights, "start": self.start}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go back to a state."""
        self.best, self.worse, self.weights, self.start = state["best"], state["worse"], state["weights"], state["start"]


def class_probabilities(
    model: SpexForLandCover, processor: SpexProcessor, chips: LabelledChips, parts: Sequence[tuple[str, ...]]
) -> NDArray[np.float32]:
    """Return the probabilities (N, K, H, W) of classes that are unions of the model's, as maps would have them; NaN = no data."""
    queries = [ClassQuery(f"class_{k}", target=UNION.join(each)) for k, each in enumerate(parts)]
    with as_spex(model, processor) as spex:
        return np.concatenate([spex.segment(chip[None], chips.bands, queries).probabilities for chip in chips.reflectance])


@contextmanager
def as_spex(model: SpexForLandCover, processor: SpexProcessor) -> Iterator[Spex]:
    """Lend a model in training for mapping."""
    free, training = {name: p.requires_grad for name, p in model.named_parameters()}, model.training
    try:
        yield Spex(model, processor, device=str(model.device))
    finally:
        model.train(training)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(free[name])


def intersection_over_union(probabilities: NDArray[np.float32], labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the intersection over union of each class (K,), argmax over the classes where a label is known; NaN for classes that are not there."""
    known = labels != IGNORE
    guess = np.nan_to_num(probabilities, nan=-1.0).argmax(1)[known]
    truth = labels[known]
    scores = []
    for k in range(probabilities.shape[1]):
        inside, outside = ((guess == k) & (truth == k)).sum(), ((guess == k) | (truth == k)).sum()
        scores.append(inside / outside if (truth == k).any() else np.nan)
    return np.array(scores, np.float64)


def best_threshold(probability: NDArray[np.float32], labels: NDArray[np.uint8], index: int) -> float | None:
    """Return the probability from which on pixels best match the label `index` (by intersection over union), None where no pixel has it."""
    known = (labels != IGNORE) & np.isfinite(probability)
    values, truth = probability[known], labels[known] == index
    if not truth.any():
        return None
    scores = [(values[truth] >= t).sum() / (truth.sum() + (values[~truth] >= t).sum()) for t in THRESHOLDS]
    best = max(range(len(THRESHOLDS)), key=lambda k: (scores[k], -abs(THRESHOLDS[k] - 0.5)))
    return float(THRESHOLDS[best])


def device_of(name: str) -> torch.device:
    """Return the device of a training file's word; raises `MissingResources` where that is CUDA and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise MissingResources("device is cuda, but PyTorch finds no CUDA device here; set device: auto or device: cpu")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
