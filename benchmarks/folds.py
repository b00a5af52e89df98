"""Cross-validate SPEX and a U-Net of its size over place groups: five folds, train and val pooled, the same windows and steps.

    python benchmarks/folds.py DATA [--steps 5000] [--seeds 3] [--models spex,unet] [--out build/folds] [--device auto] [--start FOLDER] [--json]

DATA holds ``chips/`` and ``spectra/``. Chips of one place are in one fold; places are dealt so that the folds have like shares of each class. For
each fold, model and seed a model is trained on the other four folds and predicts the chips of the fold; counts by chip go to one JSON file in the
output folder. The same command goes on where it was stopped: finished files are kept, an unfinished training goes on from its state, written every
few minutes. Hours on two cores; `--fold` and `--seed` do one part, so that several machines can share an output folder.

The table pools the five held-out folds. Of each model the best seed by clean mean IoU is compared; the difference has a 90 % interval over places.
Claims: clean mean IoU of SPEX at least the U-Net's, lower bound of the difference at least -0.01, building above it. Exit status 1 where one fails,
or where a part is missing.

`--start` begins SPEX from weights that were pre-trained without labels; one that saw labels of these chips would make the figures worthless.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from engine.configuration import SpexConfig
from engine.evaluation import unet
from engine.evaluation.arms import SpexPredictor
from engine.evaluation.bootstrap import interval, place_weights
from engine.evaluation.datasets import labelled
from engine.evaluation.fitting import Fit, best_device, fit
from engine.evaluation.metrics import IGNORE, confusion_counts, mean_over_classes, overlap_scores
from engine.evaluation.predictors import Prediction, predict
from engine.evaluation.tables import table
from engine.modeling import SpexForLandCover, fuse_attention
from engine.spex import Spex
from engine.training.alignment import Instructed
from engine.training.augment import TEN
from engine.training.batches import BatchMaker
from engine.training.data import CLASSES, TRAINING_BANDS, Chips, load_chips
from engine.training.rededge import fit_red_edge
from engine.training.stages import new_processor
from engine.training.survey import load_survey
from engine.training.workers import on_device

FOLDS = 5
STEPS, SEEDS, SPEX_RATE = 5000, 3, 7e-4
LEAST_DIFFERENCE = -0.01


@dataclass(frozen=True)
class Part:
    """One training of the cross-validation."""

    fold: int
    model: str
    seed: int
    steps: int
    device: str
    start: Path | None
    out: Path

    @property
    def stem(self) -> str:
        """Name of its files."""
        return f"{self.model}-fold{self.fold}-seed{self.seed}"

    @property
    def result(self) -> Path:
        """File of its counts, there once it is done."""
        return self.out / f"{self.stem}.json"

    def how(self, rate: float) -> Fit:
        """Return how it is trained; the state lies beside the result."""
        return Fit(self.steps, rate, self.seed, self.device, self.out / "states" / f"{self.stem}.pt", key=f"{self.stem} {self.start or ''}")


def main() -> int:
    arguments = parse()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    chips = pooled(arguments.data)
    fold_of = deal_places(chips, FOLDS)
    folds = range(FOLDS) if arguments.fold is None else [arguments.fold]
    seeds = range(arguments.seeds) if arguments.seed is None else [arguments.seed]
    device = best_device(arguments.device)
    parts = [
        Part(f, m, s, arguments.steps, device, arguments.start, arguments.out) for s in seeds for f in folds for m in arguments.models.split(",")
    ]
    arguments.out.mkdir(parents=True, exist_ok=True)
    make = windows_from(arguments.data)
    for part in parts:
        if not is_done(part):
            run_part(part, chips, fold_of, make)
    figures = summary(arguments.out, arguments.steps, chips)
    print(json.dumps(figures, indent=1) if arguments.json else report(figures))
    return 1 if figures["failures"] else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of chips/ and spectra/")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds, from 0")
    parser.add_argument("--seed", type=int, help="this seed only")
    parser.add_argument("--fold", type=int, choices=range(FOLDS), help="this fold only")
    parser.add_argument("--models", default="spex,unet")
    parser.add_argument("--out", type=Path, default=Path("build/folds"))
    parser.add_argument("--device", default="auto", help="auto: CUDA where there is one")
    parser.add_argument("--start", type=Path, help="model folder whose weights SPEX starts from")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser.parse_args()


def pooled(data: Path) -> Chips:
    """Return the chips of train and val together; their places have numbers of their own."""
    train, val = (load_chips(data / "chips" / "hls-worldcover" / f"{split}.npz") for split in ("train", "val"))
    if set(train.place.tolist()) & set(val.place.tolist()):
        raise SystemExit("train and val share numbers of places; they cannot be pooled")
    return Chips(*(np.concatenate([getattr(train, name), getattr(val, name)]) for name in train.__dataclass_fields__))


def deal_places(chips: Chips, folds: int) -> np.ndarray:
    """Return the fold of each chip: places, those with most of a rare class first, each to the fold that has least of what it brings."""
    places, inverse = np.unique(chips.place, return_inverse=True)
    pixels = np.stack([(chips.clean == k).sum((1, 2)) for k in range(len(CLASSES))], 1).astype(float)
    share = np.zeros((len(places), len(CLASSES)))
    np.add.at(share, inverse, pixels / pixels.sum(0))
    load, fold = np.zeros((folds, len(CLASSES))), np.zeros(len(places), int)
    for place in np.argsort(-share.max(1), kind="stable"):
        fold[place] = int(np.argmin(((load + share[place]) ** 2).sum(1) - (load**2).sum(1)))
        load[fold[place]] += share[place]
    return fold[inverse]


def windows_from(data: Path) -> Callable[[Chips, int], BatchMaker]:
    """Return what makes the maker of training windows of some chips and a seed: as `spexmap train` draws them."""
    spectra = data / "spectra" / "lucas-s2-toa.npz"
    red_edge = fit_red_edge(data / "chips" / "s2-unlabelled" / "bigearthnet.npz", spectra)
    survey, processor = load_survey(spectra), new_processor(new_config())
    return lambda chips, seed: BatchMaker(chips, processor, red_edge, survey, 8, 96, seed)


def new_config() -> SpexConfig:
    """Return the configuration of spex-small."""
    return SpexConfig.preset("spex-small", bands=list(TEN))


def is_done(part: Part) -> bool:
    """Return whether a part's counts are there; refuses those of another number of steps, which must not be mixed."""
    if not part.result.is_file():
        return False
    steps = json.loads(part.result.read_text(encoding="utf-8"))["steps"]
    if steps != part.steps:
        raise SystemExit(f"{part.result} is of {steps} steps, not {part.steps}; use another --out")
    return True


def run_part(part: Part, chips: Chips, fold_of: np.ndarray, make: Callable[[Chips, int], BatchMaker]) -> None:
    """Train on the other folds, predict the held-out one, and write its counts by chip."""
    maker, held = make(chips.at(np.flatnonzero(fold_of != part.fold)), part.seed), labelled(chips.at(np.flatnonzero(fold_of == part.fold)))
    predictor = train_spex(maker, part) if part.model == "spex" else train_unet(maker, part)
    prediction = predict(predictor, held, "six")
    document = {
        "steps": part.steps,
        "chips": list(held.names),
        "confusion": {"clean": by_chip(prediction, held.clean), "raw": by_chip(prediction, held.labels)},
    }
    unfinished = part.result.with_suffix(".tmp")
    unfinished.write_text(json.dumps(document) + "\n", encoding="utf-8")
    unfinished.replace(part.result)
    part.how(0.0).state.unlink(missing_ok=True)


def train_spex(maker: BatchMaker, part: Part) -> SpexPredictor:
    """Return SPEX trained by instruction tuning (stage C of `spexmap train`) on the batches of a maker."""
    torch.manual_seed(part.seed)
    model = SpexForLandCover(new_config()) if part.start is None else Spex.load(part.start, "cpu").model.requires_grad_(True)
    fuse_attention(model)
    device = torch.device(part.device)
    fit(Instructed(model), maker, lambda objective, batch: objective(on_device(batch, device))["loss"], part.how(SPEX_RATE))
    return SpexPredictor(Spex(model, maker.processor, device=part.device), TRAINING_BANDS, CLASSES)


def train_unet(maker: BatchMaker, part: Part) -> unet.UNetPredictor:
    """Return the U-Net trained on the same windows."""
    return unet.UNetPredictor(unet.train_unet(maker, part.how(unet.RATE)), part.device)


def by_chip(prediction: Prediction, labels: np.ndarray) -> list:
    """Return the confusion counts of each chip, (n, K, K + 1) as lists."""
    return confusion_counts(labels, prediction.guess, labels != IGNORE, len(CLASSES)).astype(int).tolist()


def summary(out: Path, steps: int, chips: Chips) -> dict:
    """Return the pooled scores of every model and seed whose five folds are done, and the comparison of the best ones."""
    place = dict(zip(map(str, chips.chip_id.tolist()), chips.place.tolist(), strict=True))
    found: dict[str, dict[int, dict[str, tuple[list[str], np.ndarray]]]] = {}
    for model in ("spex", "unet"):
        for seed in range(100):
            paths = [out / f"{model}-fold{fold}-seed{seed}.json" for fold in range(FOLDS)]
            if all(path.is_file() for path in paths):
                found.setdefault(model, {})[seed] = pool([json.loads(path.read_text(encoding="utf-8")) for path in paths])
    rows = [
        {"model": model, "seed": seed, "labels": view, **named_scores(confusion)}
        for model, seeds in found.items()
        for seed, views in seeds.items()
        for view, (_, confusion) in views.items()
    ]
    figures: dict = {"steps": steps, "rows": rows, "comparison": {}, "failures": []}
    if set(found) != {"spex", "unet"}:
        figures["failures"].append(f"only {', '.join(found) or 'nothing'} has all {FOLDS} folds; run the same command again for the rest")
        return figures
    best = {model: max(seeds, key=lambda seed: named_scores(seeds[seed]["clean"][1])["mean"]) for model, seeds in found.items()}
    figures["best_seed"] = best
    for view in ("clean", "raw"):
        (names, spex), (others, baseline) = (found[model][best[model]][view] for model in ("spex", "unet"))
        if names != others:
            raise SystemExit("the folds of SPEX and of the U-Net hold different chips; remove the output folder")
        figures["comparison"][view] = differences(spex, baseline, [place[name] for name in names])
    figures["failures"] += failures(figures["comparison"]["clean"])
    return figures


def pool(documents: list[dict]) -> dict[str, tuple[list[str], np.ndarray]]:
    """Return the chips' names and confusion counts of all folds together, by view."""
    names = [name for document in documents for name in document["chips"]]
    return {view: (names, np.concatenate([np.array(each["confusion"][view], float) for each in documents])) for view in ("clean", "raw")}


def overlap(confusion: np.ndarray, k: int | None) -> np.ndarray:
    """Return the IoU of a class, or the mean over classes, of confusion counts (..., K, K + 1)."""
    each = overlap_scores(confusion)["iou"]
    return mean_over_classes(each) if k is None else each[..., k]


def named_scores(confusion: np.ndarray) -> dict[str, float]:
    """Return IoU by class, mean and accuracy of all chips (n, K, K + 1) together."""
    total = confusion.sum(0)
    each = {name: round(float(overlap(total, k)), 4) for k, name in enumerate(CLASSES)}
    return {**each, "mean": round(float(overlap(total, None)), 4), "accuracy": round(float(np.trace(total) / total.sum()), 4)}


def differences(spex: np.ndarray, baseline: np.ndarray, places: list[int]) -> dict[str, dict[str, float]]:
    """Return SPEX minus U-Net in IoU by class and mean, with 90 % intervals over places, the same places drawn for both."""
    weights = place_weights(np.array(places))
    gaps = {}
    for name, k in (("mean", None), *((name, k) for k, name in enumerate(CLASSES))):
        value = overlap(spex.sum(0), k) - overlap(baseline.sum(0), k)
        samples = [overlap(np.tensordot(weights, each, 1), k) for each in (spex, baseline)]
        low, high = interval(samples[0] - samples[1])
        gaps[name] = {"value": round(float(value), 4), "low": round(float(low), 4), "high": round(float(high), 4)}
    return gaps


def failures(clean: dict[str, dict[str, float]]) -> list[str]:
    """Return which claims the comparison on clean labels does not bear out."""
    claims = {
        "mean IoU of SPEX is below the U-Net's": clean["mean"]["value"] >= 0,
        f"lower bound of the difference is below {LEAST_DIFFERENCE}": clean["mean"]["low"] >= LEAST_DIFFERENCE,
        "building is not above the U-Net's": clean["building"]["value"] > 0,
    }
    return [sentence for sentence, holds in claims.items() if not holds]


def report(figures: dict) -> str:
    """Return the figures as Markdown tables."""
    columns = [*CLASSES, "mean", "accuracy"]
    rows = [[f"{row['model']}, seed {row['seed']}", row["labels"], *(f"{row[name]:.3f}" for name in columns)] for row in figures["rows"]]
    parts = [f"{FOLDS} folds over places, {figures['steps']} steps, IoU on the held-out chips pooled", table(["model", "labels", *columns], rows)]
    if figures["comparison"]:
        best = figures["best_seed"]
        shown = [
            [view, *(f"{gap['value']:+.3f} ({gap['low']:+.3f} to {gap['high']:+.3f})" for gap in gaps.values())]
            for view, gaps in figures["comparison"].items()
        ]
        parts += [
            f"SPEX (seed {best['spex']}) minus U-Net (seed {best['unet']}), 90 % interval over places",
            table(["labels", "mean", *CLASSES], shown),
        ]
    return "\n\n".join([*parts, *(f"NOT SO: {sentence}" for sentence in figures["failures"])])


if __name__ == "__main__":
    sys.exit(main())
