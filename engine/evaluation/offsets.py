"""Choose an offset for each class's logit on training windows: ``python -m engine.evaluation.offsets --data CHIPS --model FOLDER``.

Training weighs rare classes up and paints patches, so the odds between classes are those of the windows, not of the world. The offsets that give the
highest mean intersection over union on fresh training windows (another seed, never val) are written to config.json.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engine.evaluation.datasets import find_chips
from engine.evaluation.lessons import window_maker
from engine.evaluation.metrics import IGNORE, confusion_counts, mean_over_classes, overlap_scores
from engine.evaluation.unet import labelled_windows
from engine.spex import Spex
from engine.training.batches import BatchMaker
from engine.training.data import CLASSES

OFFSETS = (-0.8, -0.4, 0.0, 0.4, 0.8)
SEED = 1_000_003
EVERY = 7
"""One of so many known pixels is used; neighbours say the same."""

_SMALLEST = 1e-9


def training_logits(spex: Spex, maker: BatchMaker, batches: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return logits (4, pixels) of the four roots against `other`, and labels (pixels,), over fresh training windows."""
    logits, labels, windows_of = [], [], labelled_windows(maker)
    for step in range(batches):
        windows = windows_of(step)
        with torch.inference_mode():
            shares = spex.planner(windows.bands, CLASSES)(windows.reflectance.to(spex.device)).cpu().numpy()
        truth = windows.labels.numpy().astype(np.uint8).ravel()
        known = np.flatnonzero(truth != IGNORE)[::EVERY]
        rest = np.maximum(1.0 - shares.sum(1, keepdims=True), _SMALLEST)
        logits.append(np.log(np.maximum(shares, _SMALLEST) / rest).transpose(1, 0, 2, 3).reshape(len(CLASSES), -1)[:, known])
        labels.append(truth[known])
    return np.concatenate(logits, 1), np.concatenate(labels)


def best_offsets(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> tuple[dict[str, float], float]:
    """Return the offset of each class, vegetation's being 0, and the mean intersection over union that they reach."""
    best = max(((mean_overlap(logits, labels, (0.0, *rest)), (0.0, *rest)) for rest in product(OFFSETS, repeat=3)), key=lambda each: each[0])
    return dict(zip(CLASSES, best[1], strict=True)), best[0]


def mean_overlap(logits: NDArray[np.float32], labels: NDArray[np.uint8], offsets: tuple[float, ...]) -> float:
    """Return the mean intersection over union of the argmax with offsets added."""
    guess = (logits + np.asarray(offsets, np.float32)[:, None]).argmax(0).astype(np.uint8)
    counts = confusion_counts(labels[None, None], guess[None, None], np.ones((1, 1, len(labels)), bool), len(CLASSES))
    return float(mean_over_classes(overlap_scores(counts[0])["iou"]))


def main() -> None:
    """Parse the command line, write the offsets."""
    parser = argparse.ArgumentParser(description="Choose offsets of the logits on training windows.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the chips")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model; its config.json is changed")
    parser.add_argument("--batches", type=int, default=60)
    options = parser.parse_args()
    spex = Spex.load(options.model, device="cpu")
    logits, labels = training_logits(spex, window_maker(find_chips(options.data, "train"), SEED), options.batches)
    offsets, after = best_offsets(logits, labels)
    before = mean_overlap(logits, labels, (0.0,) * len(CLASSES))
    path = options.model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for row in config["classes"]:
        row["offset"] = round(row.get("offset", 0.0) + offsets.get(row["name"], 0.0), 3)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"mean IoU on training windows {before:.4f} -> {after:.4f} with offsets {offsets}")


if __name__ == "__main__":
    main()
