"""Evaluate on the val split: ``python -m engine.training.evaluate --data CHIPS --model FOLDER [--unet unet.safetensors] [--json FILE]``.

Prints intersection over union per class, argmax over the four, on raw and on clean labels, for all six bands and for what other sensors
have; beside it the U-Net, where one is given. Bare is shown with and without chip 182, a salt or ice lake that is most of val's bare.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from scipy import ndimage

from engine.spex import Spex
from engine.training.data import CLASSES, IGNORE, TRAINING_BANDS, Chips, load_chips
from engine.training.unet import UNet, normalised

BAND_SETS = {
    "six": TRAINING_BANDS,
    "rgb+nir+swir16": TRAINING_BANDS[:5],
    "rgb+nir": TRAINING_BANDS[:4],
    "rgb": TRAINING_BANDS[:3],
}
SALT_LAKE = 182

Predict = Callable[[NDArray[np.float32]], NDArray[np.uint8]]


def confusion(truth: NDArray[np.uint8], guess: NDArray[np.uint8], classes: int = len(CLASSES)) -> NDArray[np.int64]:
    """Return counts (truth, guess) of the pixels whose label is not ignored."""
    known = truth != IGNORE
    return np.bincount(truth[known].astype(np.int64) * classes + guess[known], minlength=classes**2).reshape(classes, classes)


def intersection_over_union(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the score of each class from a confusion matrix; NaN for a class that is in neither."""
    hits = np.diag(counts).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.asarray(hits / (counts.sum(0) + counts.sum(1) - hits))


def figures(chips: Chips, guess: NDArray[np.uint8]) -> dict[str, dict[str, float]]:
    """Return the scores of a prediction (N, H, W): raw, clean, clean with one pixel of tolerance, clean without chip 182."""
    other = chips.chip_id != SALT_LAKE
    return {
        "raw": _named(confusion(chips.labels, guess)),
        "clean": _named(confusion(chips.clean, guess)),
        "clean, borders of one pixel left out": _named(confusion(without_borders(chips.clean), guess)),
        f"clean without chip {SALT_LAKE}": _named(confusion(chips.clean[other], guess[other])),
    }


def _named(counts: NDArray[np.int64]) -> dict[str, float]:
    scores = intersection_over_union(counts)
    named = {name: round(float(score), 4) for name, score in zip(CLASSES, scores, strict=True)}
    return {**named, "mean": round(float(np.nanmean(scores)), 4), "accuracy": round(float(np.trace(counts) / counts.sum()), 4)}


def without_borders(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return labels (N, H, W) with the pixels ignored whose eight neighbours are not all of one label."""
    size = (1, 3, 3)
    mixed = ndimage.maximum_filter(labels, size, mode="nearest") != ndimage.minimum_filter(labels, size, mode="nearest")
    return np.where(mixed, np.uint8(IGNORE), labels)


def predict(chips: Chips, bands: Sequence[str], one: Predict) -> NDArray[np.uint8]:
    """Return the class index (N, H, W) of every chip, one at a time, seen in some of the bands."""
    channels = [TRAINING_BANDS.index(name) for name in bands]
    return np.stack([one(chip[channels]) for chip in chips.reflectance])


def spex_predictor(spex: Spex, bands: Sequence[str]) -> Predict:
    """Return argmax over the four classes by SPEX, `other` not allowed."""
    planner = spex.planner(bands, CLASSES)

    @torch.inference_mode()
    def one(chip: NDArray[np.float32]) -> NDArray[np.uint8]:
        result: NDArray[np.uint8] = planner(torch.from_numpy(chip)[None])[0].argmax(0).to(torch.uint8).numpy()
        return result

    return one


def unet_predictor(path: Path) -> Predict:
    """Return argmax by the U-Net of a safetensors file, on all six bands."""
    model = UNet().eval()
    model.load_state_dict(load_file(path))

    @torch.inference_mode()
    def one(chip: NDArray[np.float32]) -> NDArray[np.uint8]:
        result: NDArray[np.uint8] = model(normalised(torch.from_numpy(chip)[None]))[0].argmax(0).to(torch.uint8).numpy()
        return result

    return one


def evaluate(chips: Chips, spex: Spex, unet: Path | None = None) -> dict[str, dict[str, dict[str, float]]]:
    """Return the figures of SPEX by band set, and of the U-Net where its weights are given."""
    report = {f"spex, {name}": figures(chips, predict(chips, bands, spex_predictor(spex, bands))) for name, bands in BAND_SETS.items()}
    if unet is not None:
        report["unet, six"] = figures(chips, predict(chips, TRAINING_BANDS, unet_predictor(unet)))
    return report


def table(report: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the report as a Markdown table."""
    columns = [*CLASSES, "mean", "accuracy"]
    lines = ["| model, bands | labels | " + " | ".join(columns) + " |", "|---|---|" + "---|" * len(columns)]
    for model, views in report.items():
        lines += [f"| {model} | {view} | " + " | ".join(f"{scores[name]:.3f}" for name in columns) + " |" for view, scores in views.items()]
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, print the table."""
    parser = argparse.ArgumentParser(description="Evaluate SPEX on the val split.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the chips")
    parser.add_argument("--model", default="spex-small")
    parser.add_argument("--unet", type=Path, help="weights of the baseline")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    spex = Spex.load(options.model, threads=options.threads)
    report = evaluate(load_chips(options.data / "hls-worldcover" / "val.npz"), spex, options.unet)
    print(table(report))
    if "unet, six" in report:
        gaps = {view: report["spex, six"][view]["mean"] - report["unet, six"][view]["mean"] for view in ("raw", "clean")}
        print("mean IoU of SPEX minus U-Net: " + ", ".join(f"{view} {gap:+.3f}" for view, gap in gaps.items()))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
