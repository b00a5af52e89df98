"""From predictions to figures: views of the labels, scores with intervals, places, differences between methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.evaluation.bootstrap import LEVEL, RESAMPLES, SEED, interval, place_weights
from engine.evaluation.metrics import OVERALL, PER_CLASS, Counts, count, scores, without_borders
from engine.evaluation.predictors import Prediction
from engine.training.chip_folder import LabelledChips

BORDERS = "borders of one pixel left out"


@dataclass(frozen=True)
class View:
    """One way to look at the labels."""

    name: str
    labels: NDArray[np.uint8]
    """(N, H, W) of all chips, 255 ignored."""
    chips: NDArray[np.intp]
    """Which chips count."""


@dataclass(frozen=True)
class Assessment:
    """A prediction's scores under one view."""

    prediction: Prediction
    view: View
    counts: Counts
    """Of each chip of the view."""
    found: Mapping[str, NDArray[np.float64]]
    """Scores of all chips together: see `metrics.scores`."""
    samples: Mapping[str, NDArray[np.float64]]
    """The same of each resample of places, first axis."""


def label_views(chips: LabelledChips, left_out: Sequence[str] = ()) -> list[View]:
    """Return the views of chips: as labelled, clean, without borders, and each of them without each chip left out."""
    everything = np.arange(len(chips))
    named = {"raw": chips.labels} if chips.clean is None else {"raw": chips.labels, "clean": chips.clean}
    last = list(named)[-1]
    views = [View(name, labels, everything) for name, labels in named.items()]
    views.append(View(f"{last}, {BORDERS}", without_borders(named[last]), everything))
    for chip in left_out:
        others = np.array([i for i, name in enumerate(chips.names) if name != chip])
        views += [View(f"{name} without chip {chip}", labels, others) for name, labels in reversed(named.items())]
    return views


def assess(prediction: Prediction, chips: LabelledChips, view: View, resamples: int = RESAMPLES, seed: int = SEED) -> Assessment:
    """Return the scores of a prediction under a view. The same places are drawn for every prediction, so differences are paired."""
    index = view.chips
    probabilities = None if prediction.probabilities is None else prediction.probabilities[index]
    counts = count(view.labels[index], prediction.guess[index], probabilities, len(chips.classes))
    weights = place_weights([chips.places[i] for i in index], resamples, seed)
    return Assessment(prediction, view, counts, scores(counts.total()), scores(counts.summed(weights)))


def score_document(assessment: Assessment, classes: Sequence[str]) -> dict[str, Any]:
    """Return JSON-ready scores: per class, means and overall, each with the ends of its interval over places."""
    bounds = {name: interval(samples) for name, samples in assessment.samples.items()}

    def figure(name: str, k: int | None = None) -> dict[str, float | None]:
        values = (assessment.found[name], *bounds[name])
        return dict(zip(("value", "low", "high"), (_number(each if k is None else each[k]) for each in values), strict=True))

    return {
        "classes": {each: {name: figure(name, k) for name in PER_CLASS} for k, each in enumerate(classes)},
        "mean": {name: figure(f"mean_{name}") for name in PER_CLASS},
        "overall": {name: figure(f"overall_{name}") for name in OVERALL},
        "pixels": {each: int(assessment.counts.confusion[:, k].sum()) for k, each in enumerate(classes)},
    }


def place_document(assessment: Assessment, chips: LabelledChips) -> dict[str, Any]:
    """Return JSON-ready scores of each place alone: IoU by class, overall accuracy, chips and labelled pixels."""
    places = np.array([chips.places[i] for i in assessment.view.chips])
    document = {}
    for place in sorted(set(places.tolist()), key=_natural):
        counts = assessment.counts.at(np.flatnonzero(places == place))
        found = scores(counts.total())
        document[place] = {
            "chips": [chips.names[i] for i in assessment.view.chips[places == place]],
            "pixels": int(counts.confusion.sum()),
            "iou": {name: _number(found["iou"][k]) for k, name in enumerate(chips.classes)},
            "accuracy": _number(found["overall_accuracy"]),
        }
    return document


def reliability_document(assessment: Assessment, classes: Sequence[str]) -> dict[str, Any]:
    """Return JSON-ready reliability tables, by class and of the winner: of each bin the pixels, mean probability and frequency."""
    table = assessment.counts.total().reliability
    rows = {}
    for name, bins in zip([*classes, "winner"], table, strict=True):
        rows[name] = [
            {"pixels": int(pixels), "probability": _number(total / pixels), "frequency": _number(hits / pixels)}
            for pixels, total, hits in bins
            if pixels
        ]
    return rows


def difference_document(first: Assessment, second: Assessment, classes: Sequence[str]) -> dict[str, Any]:
    """Return JSON-ready differences of intersection over union, first minus second, with paired intervals over places."""
    gaps = {"mean": _gap(first, second, "mean_iou", None)}
    gaps |= {name: _gap(first, second, "iou", k) for k, name in enumerate(classes)}
    return {
        "view": first.view.name,
        "bands": first.prediction.bands,
        "first": first.prediction.method,
        "second": second.prediction.method,
        "iou": gaps,
    }


def _gap(first: Assessment, second: Assessment, name: str, k: int | None) -> dict[str, float | None]:
    where = ... if k is None else (..., k)
    low, high = interval(first.samples[name][where] - second.samples[name][where])
    value = first.found[name][where] - second.found[name][where]
    return {"value": _number(value), "low": _number(low), "high": _number(high)}


def _number(value: Any) -> float | None:
    return round(float(value), 4) if np.isfinite(value) else None


def _natural(place: str) -> tuple[int, str]:
    return (int(place), "") if place.isdigit() else (1 << 62, place)


INTERVAL = {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED, "unit": "place"}
"""How intervals are made, for the document."""
