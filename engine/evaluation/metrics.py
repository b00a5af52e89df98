"""Scores of predicted classes and probabilities, from counts that add up over chips.

n chips of h x w pixels, K classes, T tolerances. Everything that a score needs is counted once for each chip; scores of a place, of a
data set or of a thousand bootstrap resamples are then sums of counts. Pixels whose label is ignored count nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

IGNORE = 255
TOLERANCES = (1, 2)
"""Tolerances of the boundary F1, pixels."""
BINS = 15
"""Bins of equal width of the reliability table."""

PER_CLASS = ("iou", "f1", "precision", "recall", "boundary_f1_1px", "boundary_f1_2px", "iou_1px", "ece")
"""Scores that each class has; the mean over classes has the same names."""
OVERALL = ("accuracy", "ece")
"""Scores of all classes together: overall accuracy, and the calibration error of the winner's probability."""

_CROSS = ndimage.generate_binary_structure(2, 1)[None]
_SQUARE = np.ones((1, 3, 3), bool)


@dataclass(frozen=True)
class Counts:
    """Counts (float64) that all scores follow from; the leading axes are chips, places or resamples."""

    confusion: NDArray[np.float64]
    """(..., K, K + 1): pixels by label and prediction; the last column is none of the classes."""
    boundary: NDArray[np.float64]
    """(..., T, K, 4): boundary pixels of the labels that lie near one of the prediction, and of the labels; of the prediction that lie
    near one of the labels, and of the prediction."""
    near: NDArray[np.float64]
    """(..., K, 4): the same four for all pixels of a class, near being one pixel in any direction."""
    reliability: NDArray[np.float64]
    """(..., K + 1, BINS, 3): pixels, sum of probability and hits by class and, last, by winner; all 0 where there are no probabilities."""

    def summed(self, weights: NDArray[np.floating]) -> Counts:
        """Return sums over the first axis, weighted by (B, n): B resamples."""
        return Counts(**{each.name: np.tensordot(weights, getattr(self, each.name), 1) for each in fields(self)})

    def total(self) -> Counts:
        """Return the sum over the first axis."""
        return Counts(**{each.name: getattr(self, each.name).sum(0) for each in fields(self)})

    def at(self, index: NDArray[np.intp]) -> Counts:
        """Return the counts of some chips."""
        return Counts(**{each.name: getattr(self, each.name)[index] for each in fields(self)})


def count(labels: NDArray[np.uint8], guess: NDArray[np.uint8], probabilities: NDArray[np.float32] | None, classes: int) -> Counts:
    """Return the counts of n chips.

    Parameters
    ----------
    labels
        (n, h, w) index of the class, 255 ignored.
    guess
        (n, h, w) index of the class predicted, `classes` where it is none of them.
    probabilities
        (n, K, h, w) in 0..1, NaN = no data; None for a method that has none.
    classes
        K
    """
    known = labels != IGNORE
    boundary = np.stack([_boundary_counts(labels, guess, known, classes, tolerance) for tolerance in TOLERANCES], 1)
    pairs = [_near_counts(known & (labels == k), known & (guess == k), _SQUARE) for k in range(classes)]
    reliability = np.zeros((len(labels), classes + 1, BINS, 3)) if probabilities is None else _reliability(labels, guess, probabilities, known)
    return Counts(confusion_counts(labels, guess, known, classes), boundary, np.stack(pairs, 1), reliability)


def confusion_counts(labels: NDArray[np.uint8], guess: NDArray[np.uint8], known: NDArray[np.bool_], classes: int) -> NDArray[np.float64]:
    """Return pixels by label and prediction of n chips, (n, K, K + 1), where `known` (n, h, w)."""
    chip = np.broadcast_to(np.arange(len(labels))[:, None, None], labels.shape)[known]
    cell = (chip * classes + labels[known]) * (classes + 1) + np.minimum(guess[known], classes)
    return np.bincount(cell, minlength=len(labels) * classes * (classes + 1)).reshape(-1, classes, classes + 1).astype(np.float64)


def class_boundary(inside: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the pixels (n, h, w) of a class with a known pixel of another class above, below, left or right."""
    return np.asarray(known & inside & ndimage.binary_dilation(known & ~inside, _CROSS))


def disc(radius: int) -> NDArray[np.bool_]:
    """Return the pixels within a Euclidean distance, (1, 2 r + 1, 2 r + 1)."""
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(x * x + y * y <= radius * radius)[None]


def _boundary_counts(
    labels: NDArray[np.uint8], guess: NDArray[np.uint8], known: NDArray[np.bool_], classes: int, tolerance: int
) -> NDArray[np.float64]:
    """Return (n, K, 4). After Csurka et al., What is a good evaluation measure for semantic segmentation?, BMVC 2013."""
    reach = disc(tolerance)
    rows = [_near_counts(class_boundary(labels == k, known), class_boundary(guess == k, known), reach) for k in range(classes)]
    return np.stack(rows, 1)


def _near_counts(truth: NDArray[np.bool_], guess: NDArray[np.bool_], reach: NDArray[np.bool_]) -> NDArray[np.float64]:
    found, right = truth & ndimage.binary_dilation(guess, reach), guess & ndimage.binary_dilation(truth, reach)
    return np.stack([mask.sum((1, 2)) for mask in (found, truth, right, guess)], -1).astype(np.float64)


def _reliability(
    labels: NDArray[np.uint8], guess: NDArray[np.uint8], probabilities: NDArray[np.float32], known: NDArray[np.bool_]
) -> NDArray[np.float64]:
    classes = probabilities.shape[1]
    rows = [_binned(probabilities[:, k], labels == k, known) for k in range(classes)]
    return np.stack([*rows, _binned(probabilities.max(1), labels == guess, known)], 1)


def _binned(probability: NDArray[np.float32], right: NDArray[np.bool_], known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return (n, BINS, 3): pixels, sum of probability, hits."""
    use = known & np.isfinite(probability)
    values = probability[use].astype(np.float64)
    chip = np.broadcast_to(np.arange(len(known))[:, None, None], known.shape)[use]
    cell = chip * BINS + np.clip((values * BINS).astype(np.int64), 0, BINS - 1)
    size = len(known) * BINS
    weights = (np.ones_like(values), values, right[use].astype(np.float64))
    columns = [np.asarray(np.bincount(cell, each, size), np.float64) for each in weights]
    return np.asarray(np.stack(columns, -1).reshape(len(known), BINS, 3))


def scores(counts: Counts) -> dict[str, NDArray[np.float64]]:
    """Return every score of `PER_CLASS` as (..., K), and those of `OVERALL` and the means over classes as (...).

    Means are named ``mean_<score>``, overall scores ``overall_<score>``. A score without anything to count is NaN, and left out of
    the mean: a class that is neither in the labels nor predicted. A class that is predicted but not there has IoU 0.
    """
    found = {**overlap_scores(counts.confusion), "iou_1px": _iou_of(*_rates(counts.near))}
    for row, tolerance in enumerate(TOLERANCES):
        found[f"boundary_f1_{tolerance}px"] = _f1_of(*_rates(counts.boundary[..., row, :, :]))
    errors = calibration_error(counts.reliability)
    found["ece"] = errors[..., :-1]
    means = {f"mean_{name}": mean_over_classes(found[name]) for name in PER_CLASS}
    hits = np.trace(counts.confusion[..., :-1], axis1=-2, axis2=-1)
    return {**found, **means, "overall_accuracy": _ratio(hits, counts.confusion.sum((-2, -1))), "overall_ece": errors[..., -1]}


def overlap_scores(confusion: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return IoU, F1, precision and recall (..., K) of confusion counts (..., K, K + 1)."""
    hits = np.diagonal(confusion[..., :-1], axis1=-2, axis2=-1)
    truth, guess = confusion.sum(-1), confusion[..., :-1].sum(-2)
    return {
        "iou": _ratio(hits, truth + guess - hits),
        "f1": _ratio(2 * hits, truth + guess),
        "precision": _ratio(hits, guess),
        "recall": _ratio(hits, truth),
    }


def _rates(near: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return relaxed precision and recall of (..., 4); where one side is empty and the other is not, its rate is 0."""
    found, truth, right, guess = np.moveaxis(near, -1, 0)
    precision, recall = _ratio(right, guess), _ratio(found, truth)
    return np.where((guess == 0) & (truth > 0), 0.0, precision), np.where((truth == 0) & (guess > 0), 0.0, recall)


def _f1_of(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(precision + recall == 0, 0.0, _ratio(2 * precision * recall, precision + recall))


def _iou_of(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union that rates stand for; rates after Mnih and Hinton, Learning to detect roads, ECCV 2010."""
    f1 = _f1_of(precision, recall)
    return np.asarray(f1 / (2.0 - f1))


def calibration_error(reliability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the expected calibration error of (..., BINS, 3): mean distance of probability and frequency. Guo et al., ICML 2017."""
    pixels, probability, hits = np.moveaxis(reliability, -1, 0)
    return _ratio(np.abs(probability - hits).sum(-1), pixels.sum(-1))


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(whole > 0, part / whole, np.nan))


def mean_over_classes(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis of the scores that are there."""
    there = np.isfinite(values)
    return _ratio(np.where(there, values, 0.0).sum(-1), there.sum(-1).astype(np.float64))


def without_borders(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return labels (n, h, w) with the pixels ignored whose eight neighbours are not all of one label."""
    size = (1, 3, 3)
    mixed = ndimage.maximum_filter(labels, size, mode="nearest") != ndimage.minimum_filter(labels, size, mode="nearest")
    return np.where(mixed, np.uint8(IGNORE), labels)
