"""Choose per-class offsets of the logits on training windows: ``python -m engine.training.calibrate --data CHIPS --model FOLDER``.

Training weighs rare classes up and paints patches, so the odds between classes are those of the windows, not of the world. The offsets
that give the highest mean intersection over union on fresh training windows (another seed, never val) are written to config.json.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from engine.spex import Spex
from engine.training.batches import BatchMaker
from engine.training.data import CLASSES, IGNORE, load_chips
from engine.training.evaluate import confusion, intersection_over_union
from engine.training.rededge import fit_red_edge
from engine.training.survey import load_survey

OFFSETS = (-0.8, -0.4, 0.0, 0.4, 0.8)
SEED = 1_000_003


def training_logits(spex: Spex, maker: BatchMaker, batches: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Return logits (4, pixels) of all four classes and labels (pixels,) over fresh training windows, every seventh known pixel."""
    logits, labels = [], []
    for step in range(batches):
        samples, bands = maker.windows(step)
        planner = spex.planner(bands, CLASSES)
        for sample in samples:
            with torch.inference_mode():
                shares = planner(torch.from_numpy(sample.reflectance)[None])[0].numpy()
            known = np.flatnonzero(sample.labels.ravel() != IGNORE)[::7]
            rest = np.maximum(1.0 - shares.sum(0), 1e-9)
            logits.append(np.log(np.maximum(shares, 1e-9) / rest).reshape(len(CLASSES), -1)[:, known])
            labels.append(sample.labels.ravel()[known])
    return np.concatenate(logits, 1), np.concatenate(labels)


def best_offsets(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> tuple[dict[str, float], float]:
    """Return the offset of each class, vegetation's being 0, and the mean intersection over union that they reach."""
    best = max(((_score(logits, labels, (0.0, *rest)), (0.0, *rest)) for rest in product(OFFSETS, repeat=3)), key=lambda each: each[0])
    return dict(zip(CLASSES, best[1], strict=True)), best[0]


def _score(logits: NDArray[np.float32], labels: NDArray[np.uint8], offsets: tuple[float, ...]) -> float:
    guess = (logits + np.asarray(offsets, np.float32)[:, None]).argmax(0).astype(np.uint8)
    return float(np.nanmean(intersection_over_union(confusion(labels, guess))))


def main() -> None:
    """Parse the command line, write the offsets."""
    parser = argparse.ArgumentParser(description="Choose offsets of the logits on training windows.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the chips")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model; its config.json is changed")
    parser.add_argument("--batches", type=int, default=60)
    options = parser.parse_args()
    spectra = options.data.parent / "spectra" / "lucas-s2-toa.npz"
    spex = Spex.load(options.model, device="cpu")
    red_edge = fit_red_edge(options.data / "s2-unlabelled" / "bigearthnet.npz", spectra)
    chips = load_chips(options.data / "hls-worldcover" / "train.npz")
    maker = BatchMaker(chips, spex.processor, red_edge, load_survey(spectra), size=96, seed=SEED)
    logits, labels = training_logits(spex, maker, options.batches)
    before = _score(logits, labels, (0.0,) * len(CLASSES))
    offsets, after = best_offsets(logits, labels)
    path = options.model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for row in config["classes"]:
        row["offset"] = round(row.get("offset", 0.0) + offsets[row["name"]], 3)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"mean IoU on training windows {before:.4f} -> {after:.4f} with offsets {offsets}")


if __name__ == "__main__":
    main()
