"""The command `spexmap evaluate`: predict, assess, write evaluation.json, tables.md and index.html."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from engine.errors import UnknownClass
from engine.evaluation import baselines, unet
from engine.evaluation.arms import ARMS, SpexPredictor
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
from engine.evaluation.datasets import SALT_LAKE, default_band_sets, find_chips, load_hls, load_split, parse_bands, training_chips
from engine.evaluation.fitting import Fit, best_device
from engine.evaluation.page import write_page
from engine.evaluation.predictors import Prediction, Predictor, in_bands, predict
from engine.evaluation.tables import markdown
from engine.spex import Spex
from engine.training.batches import BatchMaker
from engine.training.chip_folder import InvalidChips, LabelledChips
from engine.training.rededge import fit_red_edge
from engine.training.survey import load_survey
from spexmap import SpexmapError, __version__

BASELINES = ("thresholds", "boosting", "unet")
UNET_STEPS, UNET_BATCH, UNET_WINDOW = 5300, 8, 96
"""Steps, windows a step and pixels of their sides, as spex-small was trained."""

log = logging.getLogger(__name__)


class InvalidEvaluation(SpexmapError, ValueError):
    """An evaluation that cannot be made as asked: an arm or a baseline that does not exist."""


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
        What is asked cannot be evaluated; nothing is written.
    """
    _check(asked)
    chips = load_split(asked.data, asked.split, asked.kinds)
    spex = Spex.load(asked.model, asked.device, asked.threads)
    _check_classes(spex, chips)
    names = tuple(asked.bands) or default_band_sets(chips.bands)
    sets = {name: parse_bands(name, chips.bands) for name in names}
    predictions = list(_predictions(asked, spex, chips, sets))
    assessments = _assessments(predictions, chips, _left_out(asked, chips))
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


def _predictions(asked: Evaluation, spex: Spex, chips: LabelledChips, sets: dict[str, tuple[str, ...]]) -> Iterator[Prediction]:
    """Yield SPEX on every band set, its other arms on the first one, then every baseline on every band set."""
    main = next(iter(sets))
    for name, bands in sets.items():
        seen = in_bands(chips, bands)
        for arm in ("none", *(each for each in asked.arms if each != "none" and name == main)):
            log.info("spex on %s, attributes: %s", name, arm)
            yield predict(SpexPredictor(spex, bands, chips.classes, arm, seed=asked.seed), seen, name, arm)
    for baseline in asked.baselines:
        for name, predictor, seen in _baseline(asked, baseline, chips, sets, spex):
            log.info("%s on %s", baseline, name)
            yield predict(predictor, seen, name)


def _baseline(
    asked: Evaluation, baseline: str, chips: LabelledChips, sets: dict[str, tuple[str, ...]], spex: Spex
) -> Iterator[tuple[str, Predictor, LabelledChips]]:
    seen = {name: in_bands(chips, bands) for name, bands in sets.items()}
    if baseline == "thresholds":
        rules = baselines.Thresholds([each.target for each in spex.resolve(chips.classes)])
        yield from ((name, rules, each) for name, each in seen.items())
    elif baseline == "boosting":
        train = load_split(training_chips(asked.data, asked.split, asked.train), "train", asked.kinds)
        _check_same_classes(train, chips)
        for name, bands in sets.items():
            yield name, baselines.Boosting(in_bands(train, bands), asked.seed), seen[name]
    else:
        network = unet.UNetPredictor(fit_unet(asked), spex.device)
        yield from ((name, network, each) for name, each in seen.items())


def _check_same_classes(train: LabelledChips, chips: LabelledChips) -> None:
    if train.classes != chips.classes:
        raise InvalidChips(f"training chips have the classes {', '.join(train.classes)}, evaluated ones {', '.join(chips.classes)}")


def fit_unet(asked: Evaluation) -> unet.UNet:
    """Return the U-Net trained on the windows of SPEX's training; goes on from OUT/unet/state.pt where an evaluation was interrupted.

    Raises
    ------
    InvalidChips
        The chips are a user's: windows are drawn from the shared chips only.
    """
    path = training_chips(asked.data, asked.split, asked.train)
    if path.suffix != ".npz":
        raise InvalidChips(f"{path}: the U-Net baseline learns from the windows of the shared chips (.npz); leave it out, or use boosting")
    maker = window_maker(path, asked.seed)
    key = f"unet {path.name} {torch.__version__}"
    return unet.train_unet(maker, Fit(asked.unet_steps, unet.RATE, asked.seed, best_device(asked.device), asked.out / "unet" / "state.pt", key=key))


def window_maker(path: Path, seed: int) -> BatchMaker:
    """Return the maker of training windows of an .npz file of shared chips, with the red edge and the survey that lie beside them."""
    from engine.processing import DEFAULT_TERMS, Lexicon, SpexProcessor, train_tokenizer

    root = path.parent.parent
    spectra = root.parent / "spectra" / "lucas-s2-toa.npz"
    for file in (root / "s2-unlabelled" / "bigearthnet.npz", spectra):
        if not file.is_file():
            raise InvalidChips(f"{file} is missing; the windows of SPEX's training need it")
    words = SpexProcessor(train_tokenizer(["water"], 300), Lexicon(DEFAULT_TERMS))
    red_edge = fit_red_edge(root / "s2-unlabelled" / "bigearthnet.npz", spectra)
    return BatchMaker(load_hls(path), words, red_edge, load_survey(spectra), UNET_BATCH, UNET_WINDOW, seed)


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
