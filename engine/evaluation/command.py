"""The command `spexmap evaluate`: predict, assess, write evaluation.json, tables.md and index.html."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.errors import UnknownClass
from engine.evaluation import baselines, unet
from engine.evaluation.arms import ARMS, SpexPredictor, possible_arms
from engine.evaluation.assess import (
    INTERVAL,
    Assessment,
    assess,
    difference_document,
    label_views,
    place_document,
    reliability_document,
    score_document,
)
from engine.evaluation.datasets import SALT_LAKE, default_band_sets, find_chips, load_split, parse_bands, training_chips
from engine.evaluation.errors import InvalidEvaluation
from engine.evaluation.fitting import Fit, best_device
from engine.evaluation.lessons import Lessons, Windows, read_lessons
from engine.evaluation.page import write_page
from engine.evaluation.predictors import Prediction, Predictor, in_bands, predict
from engine.evaluation.tables import markdown
from engine.spex import Spex
from engine.training.chip_folder import LabelledChips
from spexmap import __version__

BASELINES = ("thresholds", "boosting", "unet")
UNET_STEPS = 5000
"""As many as spex-small's instruction tuning has (examples/train/spex-small.yaml). SPEX has two stages before it, the U-Net begins at random."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate, on what, against what."""

    model: str
    data: Path
    """An .npz file of chips, a folder of such, or a folder of GeoTIFF pairs."""
    split: str = "val"
    out: Path = Path("evaluation")
    bands: Sequence[str] = ()
    """Band sets, such as ``rgb+nir``; empty: the usual ones that the chips offer. The first is the main one."""
    arms: Sequence[str] = tuple(ARMS)
    """Arms of attributes, on the main band set."""
    baselines: Sequence[str] = ()
    unet_steps: int = UNET_STEPS
    train: Path | None = None
    """Where the baselines' training chips lie; None: the split ``train`` beside the evaluated one."""
    left_out: Sequence[str] | None = None
    """Chips to report with and without; None: chip 182 of the shared chips, where it is there."""
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    kinds: bool = False
    """Score the kinds of vegetation beside the other roots, in place of the four roots."""


def evaluate(asked: Evaluation) -> dict[str, Any]:
    """Evaluate a model, write the three files into the output folder, and return what evaluation.json holds.

    Raises
    ------
    InvalidEvaluation, InvalidChips, ModelNotFound, UnknownBand, UnknownClass
        What is asked cannot be evaluated, or a baseline has nothing to learn from; nothing is predicted or written.
    """
    _check(asked)
    chips = load_split(asked.data, asked.split, asked.kinds)
    asked = replace(asked, arms=possible_arms(asked.arms, chips.places))
    spex = Spex.load(asked.model, asked.device, asked.threads)
    _check_classes(spex, chips)
    names = tuple(asked.bands) or default_band_sets(chips.bands)
    sets = {name: parse_bands(name, chips.bands) for name in names}
    left_out, lessons = _left_out(asked, chips), _lessons(asked, chips, sets)
    predictions = list(_predictions(asked, spex, chips, sets, lessons))
    assessments = _assessments(predictions, chips, left_out)
    document = _document(asked, spex, chips, sets, assessments)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "evaluation.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (asked.out / "tables.md").write_text(markdown(document), encoding="utf-8")
    colors = [each.color for each in spex.resolve(chips.classes)]
    write_page(asked.out / "index.html", document, chips, [each for each in predictions if each.bands == names[0]], colors)
    return document


def named(text: str) -> tuple[str, ...]:
    """Return the names of a list such as ``thresholds,unet``."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _check(asked: Evaluation) -> None:
    for given, known, what in ((asked.arms, ARMS, "arm"), (asked.baselines, BASELINES, "baseline")):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InvalidEvaluation(f"{what} {unknown[0]!r} is not known; there are {', '.join(known)}")
    if asked.kinds and "unet" in asked.baselines:
        raise InvalidEvaluation("the U-Net baseline learns the four roots; leave it out where kinds of vegetation are scored")


def _check_classes(spex: Spex, chips: LabelledChips) -> None:
    try:
        spex.resolve(chips.classes)
    except UnknownClass as error:
        raise UnknownClass(f"the labels hold a class that the model cannot be asked for: {error}") from error


def _left_out(asked: Evaluation, chips: LabelledChips) -> tuple[str, ...]:
    if asked.left_out is None:
        shared = find_chips(asked.data, asked.split).suffix == ".npz"
        return (SALT_LAKE,) if shared and SALT_LAKE in chips.names and len(chips) > 1 else ()
    unknown = [name for name in asked.left_out if name not in chips.names]
    if unknown:
        raise InvalidEvaluation(f"chip {unknown[0]!r} to leave out is not there; chips are called {', '.join(chips.names[:5])} ...")
    return tuple(asked.left_out)


def _lessons(asked: Evaluation, chips: LabelledChips, sets: dict[str, tuple[str, ...]]) -> Lessons:
    """Return what the baselines learn from; raises where something of it is not there."""
    if not {"boosting", "unet"} & set(asked.baselines):
        return Lessons()
    path = training_chips(asked.data, asked.split, asked.train)
    return read_lessons(asked.baselines, path, chips, sets, asked.seed, asked.kinds)


def _predictions(asked: Evaluation, spex: Spex, chips: LabelledChips, sets: dict[str, tuple[str, ...]], lessons: Lessons) -> Iterator[Prediction]:
    """Yield SPEX on every band set, its other arms and itself without offsets on the first one, then every baseline on every band set."""
    main = next(iter(sets))
    for name, bands in sets.items():
        seen = in_bands(chips, bands)
        for arm in ("none", *(each for each in asked.arms if each != "none" and name == main)):
            log.info("spex on %s, attributes: %s", name, arm)
            yield predict(SpexPredictor(spex, bands, chips.classes, arm, seed=asked.seed), seen, name, arm)
    plain = SpexPredictor(spex, sets[main], chips.classes, offsets=False)
    if plain.has_offsets:
        log.info("spex on %s, without offsets", main)
        yield predict(plain, in_bands(chips, sets[main]), main)
    for baseline in asked.baselines:
        for name, predictor, seen in _baseline(asked, baseline, chips, sets, spex, lessons):
            log.info("%s on %s", baseline, name)
            yield predict(predictor, seen, name)


def _baseline(
    asked: Evaluation, baseline: str, chips: LabelledChips, sets: dict[str, tuple[str, ...]], spex: Spex, lessons: Lessons
) -> Iterator[tuple[str, Predictor, LabelledChips]]:
    seen = {name: in_bands(chips, bands) for name, bands in sets.items()}
    if baseline == "thresholds":
        rules = baselines.Thresholds([each.target for each in spex.resolve(chips.classes)])
        yield from ((name, rules, each) for name, each in seen.items())
    elif baseline == "boosting":
        assert lessons.pixels is not None
        for name, bands in sets.items():
            yield name, baselines.Boosting(in_bands(lessons.pixels, bands), asked.seed), seen[name]
    else:
        assert lessons.windows is not None
        network = unet.UNetPredictor(fit_unet(asked, lessons.windows), spex.device)
        yield from ((name, network, each) for name, each in seen.items())


def fit_unet(asked: Evaluation, windows: Windows) -> unet.UNet:
    """Return the U-Net trained on windows; goes on from OUT/unet/state.pt where the same evaluation was interrupted."""
    state = asked.out / "unet" / "state.pt"
    return unet.train_unet(windows.maker, Fit(asked.unet_steps, unet.RATE, asked.seed, best_device(asked.device), state, key=windows.key))


def _assessments(predictions: Sequence[Prediction], chips: LabelledChips, left_out: Sequence[str]) -> list[list[Assessment]]:
    """Return for each prediction its assessment under every view."""
    views = label_views(chips, left_out)
    return [[assess(prediction, chips, view) for view in views] for prediction in predictions]


def _document(
    asked: Evaluation, spex: Spex, chips: LabelledChips, sets: dict[str, tuple[str, ...]], assessments: Sequence[Sequence[Assessment]]
) -> dict[str, Any]:
    main_view = 0 if chips.clean is None else 1
    rows = []
    for views in assessments:
        prediction, main = views[0].prediction, views[main_view]
        rows.append(
            {
                "method": prediction.method,
                "bands": prediction.bands,
                "arm": prediction.arm,
                "source": prediction.source,
                "views": {each.view.name: score_document(each, chips.classes) for each in views},
                "reliability": reliability_document(main, chips.classes) if prediction.probabilities is not None else None,
                "places": place_document(main, chips),
            }
        )
    card = spex.model_card
    return {
        "version": __version__,
        "model": {"name": card["name"], "fingerprint": card["fingerprint"], "parameters": card["total_parameters"]},
        "data": {"split": asked.split, "chips": len(chips), "places": len(set(chips.places)), "classes": list(chips.classes)},
        "band_sets": {name: list(bands) for name, bands in sets.items()},
        "main": {"bands": next(iter(sets)), "view": assessments[0][main_view].view.name},
        "arms": {name: ARMS[name] for name in dict.fromkeys(("none", *asked.arms))},
        "baselines": list(asked.baselines),
        "unet_steps": asked.unet_steps if "unet" in asked.baselines else None,
        "seed": asked.seed,
        "interval": INTERVAL,
        "results": rows,
        "differences": list(_differences(assessments, chips)),
    }


def _differences(assessments: Sequence[Sequence[Assessment]], chips: LabelledChips) -> Iterator[dict[str, Any]]:
    """Yield SPEX without attributes minus every other method on the same bands, and every other arm minus SPEX without attributes."""
    plain = {views[0].prediction.bands: views for views in assessments if views[0].prediction.method == "spex" and views[0].prediction.arm == "none"}
    for views in assessments:
        prediction, against = views[0].prediction, plain[views[0].prediction.bands]
        for mine, other in zip(against, views, strict=True):
            if prediction.method != "spex":
                yield difference_document(mine, other, chips.classes)
            elif prediction.arm != "none":
                yield difference_document(other, mine, chips.classes) | {"first": f"spex, attributes {prediction.arm}"}
