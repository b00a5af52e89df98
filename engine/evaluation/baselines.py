"""Baselines that need no deep network: thresholds of spectral indices, and gradient boosting of bands and indices pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.bands import channel_of
from engine.evaluation.metrics import IGNORE
from engine.modeling_vision import INDEX_BANDS
from engine.spie.priors import spectral_prior
from engine.training.chip_folder import LabelledChips

ORDER = ("water", "vegetation", "building", "bare")
"""Where the rules of several classes hold on a pixel, the first of these wins; classes without a rule are never predicted."""

DARKEST = 1e-3
"""Reflectance below this counts as this in an index, which keeps ratios finite."""

PIXELS = 60_000
"""Pixels sampled for boosting."""


class Thresholds:
    """The index rules of SPIE as a classifier: the first class of `ORDER` whose rules hold, none of the classes where no rule does."""

    name = "thresholds"
    source = "none"
    calibrated = False

    def __init__(self, classes: Sequence[str]) -> None:
        """Take the model's own names of the K classes, in the order of the labels."""
        self.classes = tuple(classes)

    def __call__(self, chips: LabelledChips, index: int) -> NDArray[np.float32]:
        """Return 1 for the class chosen, 0 for the others, (K, H, W)."""
        chip = chips.reflectance[index]
        chosen = np.zeros((len(self.classes), *chip.shape[1:]), np.float32)
        free = np.ones(chip.shape[1:], bool)
        for name in (each for each in ORDER if each in self.classes):
            prior = spectral_prior(name, chip, chips.bands)
            if prior is not None:
                chosen[self.classes.index(name)] = prior & free
                free &= ~prior
        return chosen


class Boosting:
    """Histogram gradient boosting (scikit-learn) of each pixel's bands and indices, trained on the clean labels, classes as often as they are."""

    name = "boosting"
    source = "none"
    calibrated = True

    def __init__(self, train: LabelledChips, seed: int = 0, pixels: int = PIXELS) -> None:
        from sklearn.ensemble import HistGradientBoostingClassifier

        self.classes = train.classes
        features, labels = sampled_pixels(train, pixels, seed)
        self.model = HistGradientBoostingClassifier(max_iter=200, learning_rate=0.08, max_leaf_nodes=31, random_state=seed)
        self.model.fit(features, labels)

    def __call__(self, chips: LabelledChips, index: int) -> NDArray[np.float32]:
        """Return probabilities (K, H, W); 0 for a class that was not in the training labels."""
        chip = chips.reflectance[index]
        told = self.model.predict_proba(pixel_features(chip, chips.bands))
        probabilities = np.zeros((len(self.classes), told.shape[0]), np.float32)
        probabilities[self.model.classes_] = told.T
        return probabilities.reshape(-1, *chip.shape[1:])


def pixel_features(chip: NDArray[np.float32], bands: Sequence[str]) -> NDArray[np.float32]:
    """Return (pixels, features): bands, and those of the normalised differences in SPEX's stem that they offer; NaN where there is no data."""
    pairs = [(channel_of(a, bands), channel_of(b, bands)) for a, b in INDEX_BANDS.values()]
    dark = np.maximum(chip, np.float32(DARKEST))
    planes = [(dark[a] - dark[b]) / (dark[a] + dark[b]) for a, b in pairs if a is not None and b is not None]
    return np.stack([*chip, *planes], -1).reshape(-1, len(chip) + len(planes))


def sampled_pixels(train: LabelledChips, pixels: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return features and labels of up to so many pixels with data and a label: every place has the same weight, classes are as often as they are."""
    generator = np.random.default_rng(seed)
    labels = train.labels if train.clean is None else train.clean
    chip, pixel = np.nonzero(((labels != IGNORE) & ~np.isnan(train.reflectance).all(1)).reshape(len(train), -1))
    _, place = np.unique(np.asarray(train.places), return_inverse=True)
    chosen = _of_every_place(place[chip], pixels, generator)
    features: list[Any] = [pixel_features(train.reflectance[i], train.bands)[pixel[chosen[chip[chosen] == i]]] for i in range(len(train))]
    answers = [labels[i].ravel()[pixel[chosen[chip[chosen] == i]]] for i in range(len(train))]
    return np.concatenate(features), np.concatenate(answers)


def _of_every_place(place: NDArray[np.intp], wanted: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """Return up to `wanted` positions, each drawn with a chance that gives every place the same weight."""
    _, inverse, counts = np.unique(place, return_inverse=True, return_counts=True)
    weight = 1.0 / counts[inverse]
    return np.asarray(generator.choice(len(place), min(wanted, len(place)), replace=False, p=weight / weight.sum()))
