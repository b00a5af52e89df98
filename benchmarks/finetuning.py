"""Fine-tune on twenty chips, and measure on others: ``python benchmarks/finetuning.py DATA OUT [--draws 3] [--task NAME]``.

DATA is the folder of the shared chips. Three tasks that a user might have, each with twenty chips drawn at random:

aerial
    NAIP at 1 m with Chesapeake's labels, cut to 128 x 128: trees, low vegetation, impervious surface. The test is the pieces that were not drawn.
sky
    Sentinel-2, Landsat 7 and Landsat 5 with labels of cloud, cloud shadow and clear land, cut to 128 x 128. The test is the pieces that
    were not drawn.
kinds
    HLS chips at 30 m of the train split with WorldCover's trees, grass or shrub, crops, built-up and water. The test is the val split, elsewhere.
    The starting model knows these classes, and was trained on these chips: there is little to gain, and much to lose.

Before: the starting model; a class that it does not know is answered by its parent, or not at all. After: the model that
``spexmap train examples/train/finetune.yaml`` writes. Old classes: clean mean IoU of the four roots on the HLS val split, asked alone; and
answered by the trained weights, as in a list with a new class. Fails where the new classes gain less than 0.03 on average over the draws, or the
old ones, asked alone, lose more than 0.02.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
BANDS = ["blue", "green", "red", "nir", "swir16", "swir22"]
ROOTS = ("vegetation", "building", "water", "bare")
IGNORE = 255
GAIN, LOSS = 0.03, 0.02


@dataclass(frozen=True)
class Chip:
    """One labelled chip."""

    reflectance: np.ndarray
    """(C, H, W) float32"""
    codes: np.ndarray
    """(H, W) uint8, 255 ignored."""
    place: str


@dataclass(frozen=True)
class Task:
    """Classes that a user wants, with chips to learn from and chips to test on."""

    name: str
    bands: Sequence[str]
    classes: dict[int, str]
    new: dict[str, dict[str, str]]
    pool: list[Chip]
    test: list[Chip]
    """Empty: what is left of the pool."""

    def draw(self, seed: int, count: int = 20) -> tuple[list[Chip], list[Chip]]:
        order = np.random.default_rng(seed).permutation(len(self.pool))
        chosen, rest = ([self.pool[k] for k in part] for part in (order[:count], order[count:]))
        return chosen, self.test or rest


def kinds(data: Path) -> Task:
    """WorldCover's classes at 30 m."""
    cover = {10: 1, 20: 2, 30: 2, 40: 3, 50: 4, 80: 5}
    pool, test = ([*hls_chips(data / "chips" / "hls-worldcover" / f"{split}.npz", cover)] for split in ("train", "val"))
    several = [chip for chip in pool if sum((chip.codes == code).mean() > 0.05 for code in range(1, 6)) >= 2]
    classes = {1: "trees", 2: "grass or shrub", 3: "crops", 4: "building", 5: "water"}
    new = {name: {"parent": "vegetation"} for name in ("trees", "grass or shrub", "crops")}
    return Task("kinds", BANDS, classes, new, several, test)


def hls_chips(path: Path, cover: dict[int, int]) -> list[Chip]:
    """Return the chips of an HLS file; clouds, shadows and the labels that the spectra contradict are ignored."""
    from engine.training.data import load_chips

    lookup = np.full(256, IGNORE, np.uint8)
    for code, target in cover.items():
        lookup[code] = target
    loaded = load_chips(path)
    with np.load(path) as arrays:
        codes = np.where(loaded.clean == IGNORE, IGNORE, lookup[arrays["worldcover"]])
    return [Chip(loaded.reflectance[k], codes[k].astype(np.uint8), f"place{loaded.place[k]}") for k in range(len(loaded))]


def aerial(data: Path) -> Task:
    """Chesapeake's classes at 1 m."""
    pool = []
    for path in sorted((data / "chips" / "naip-chesapeake").glob("*.npz")):
        with np.load(path) as arrays:
            channels = arrays["arr_0"][0]
        codes = np.full(channels.shape[1:], IGNORE, np.uint8)
        for code, target in {2: 1, 3: 2, 5: 3, 6: 3}.items():
            codes[channels[8] == code] = target
        photograph = channels[[2, 1, 0, 3]] / np.float32(255)
        for top, left in ((0, 0), (0, 128), (128, 0), (128, 128)):
            where = np.s_[top : top + 128, left : left + 128]
            pool.append(Chip(photograph[:, *where], codes[where], path.stem))
    classes = {1: "trees", 2: "low vegetation", 3: "impervious surface"}
    new = {"trees": {"parent": "vegetation"}, "low vegetation": {"parent": "vegetation"}, "impervious surface": {"parent": "building"}}
    return Task("aerial", ["blue", "green", "red", "nir"], classes, new, pool, [])


def sky(data: Path) -> Task:
    """Clouds, their shadows and clear land at 10 m to 30 m."""
    pool = []
    for path in sorted((data / "chips" / "cloud-shadow").glob("*.npz")):
        with np.load(path) as arrays:
            reflectance, mask = arrays["img"].transpose(2, 0, 1), arrays["msk"][..., 0]
        codes = np.full(mask.shape, IGNORE, np.uint8)
        for code, target in {4: 1, 0: 2, 1: 2, 3: 3}.items():
            codes[mask == code] = target
        corners = [(top, left) for top in range(0, 512, 128) for left in range(0, 512, 128)]
        windows = [np.s_[top : top + 128, left : left + 128] for top, left in corners]
        pool += [Chip(reflectance[:, *where], codes[where], path.stem) for where in windows]
    return Task("sky", BANDS, {1: "cloud", 2: "cloud shadow", 3: "clear land"}, {}, pool, [])


def is_known(model: str, name: str) -> bool:
    """Return whether the starting model has a class of that name."""
    from engine import Spex
    from engine.errors import UnknownClass

    try:
        Spex.load(model, "cpu").processor.lexicon.find(name)
    except UnknownClass:
        return False
    return True


def write_folder(folder: Path, task: Task, chips: Sequence[Chip], model: str) -> None:
    """Write chips as GeoTIFF pairs with classes.yaml."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, chip in enumerate(chips):
        for kind, values in (("images", chip.reflectance.astype(np.float32)), ("labels", chip.codes[None])):
            path = folder / kind / f"chip{number:02d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            shape = {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype}
            with rasterio.open(path, "w", driver="GTiff", crs="EPSG:3857", transform=rasterio.transform.from_origin(0, 0, 30, 30), **shape) as file:
                file.write(values)
    places = {f"chip{number:02d}": chip.place for number, chip in enumerate(chips)}
    legend = {"bands": list(task.bands), "classes": task.classes, "new": {name: said for name, said in task.new.items() if not is_known(model, name)}}
    (folder / "classes.yaml").write_text(yaml.safe_dump(legend | ({"places": places} if task.test else {})))


def score(model: Path | str, task: Task, chips: Sequence[Chip], names: Sequence[str]) -> np.ndarray:
    """Return the intersection over union (K,) of classes, argmax over them; two classes of one name share what it gets."""
    from engine import Spex

    if not any(names):
        return np.zeros(len(names))
    spex = Spex.load(model, "cpu")
    asked = [name for name in dict.fromkeys(names) if name]
    counts = np.zeros((len(names), 2))
    for chip in chips:
        shares = spex.segment(chip.reflectance[None], task.bands, asked).probabilities[0]
        guess = np.array([names.index(name) for name in asked])[np.nan_to_num(shares, nan=-1.0).argmax(0)]
        known = chip.codes != IGNORE
        for k, code in enumerate(task.classes):
            mine, truth = guess == k, chip.codes == code
            counts[k] += (mine & truth & known).sum(), ((mine | truth) & known).sum()
    return counts[:, 0] / np.maximum(counts[:, 1], 1)


def trained_weights(model: Path, out: Path) -> Path:
    """Write the weights of the last class set as a model of their own, which answers all lists of classes by them, and return its folder."""
    from engine import Spex
    from engine.class_sets import rows_of_set
    from engine.training.checkpoint import write_model

    spex = Spex.load(model, "cpu")
    last, sets = spex.taught[-1], spex.config.class_sets
    last.config.classes, last.config.class_sets = rows_of_set(spex.config.classes, sets, len(sets) - 1), []
    write_model(out, last, spex.processor)
    return out


def old_score(model: Path | str, data: Path) -> float:
    """Return the clean mean IoU of the roots on the HLS val split."""
    from engine.training.data import load_chips

    loaded = load_chips(data / "chips" / "hls-worldcover" / "val.npz")
    chips = [Chip(loaded.reflectance[k], loaded.clean[k], "") for k in range(len(loaded))]
    task = Task("old", BANDS, dict(enumerate(ROOTS)), {}, chips, [])
    return float(score(model, task, chips, ROOTS).mean())


def nearest_known(model: str, task: Task) -> list[str]:
    """Return for each class the one that the starting model has for it: the same, or its parent; empty where it has none."""
    from engine import Spex
    from engine.errors import UnknownClass

    lexicon = Spex.load(model, "cpu").processor.lexicon
    found = []
    for name in task.classes.values():
        for word in (name, task.new.get(name, {}).get("parent", name)):
            try:
                found.append(lexicon.find(word))
                break
            except UnknownClass:
                continue
        else:
            found.append("")
    return found


def one_draw(task: Task, seed: int, data: Path, out: Path, model: str, sets: Sequence[str]) -> dict[str, float]:
    """Fine-tune on one draw by the documented command, and return the figures."""
    chosen, test = task.draw(seed)
    folder, trained = out / f"{task.name}-{seed}-chips", out / f"{task.name}-{seed}"
    write_folder(folder, task, chosen, model)
    shutil.rmtree(trained, ignore_errors=True)
    file = REPOSITORY / "examples" / "train" / "finetune.yaml"
    sets = [f"data.chips={folder.absolute()}", f"model.start={model}", f"seed={seed}", *sets]
    command = [sys.executable, "-m", "pipeline", "train", str(file), "--out", str(trained), *(part for each in sets for part in ("--set", each))]
    began, spent = time.monotonic(), processor_seconds()
    subprocess.run(command, check=True, cwd=REPOSITORY)
    seconds = time.monotonic() - began
    computed = processor_seconds() - spent
    before = score(model, task, test, nearest_known(model, task))
    after = score(trained, task, test, list(task.classes.values()))
    for name, was, now in zip(task.classes.values(), before, after, strict=True):
        print(f"  {task.name} {seed}: {name}: {was:.3f} -> {now:.3f}", flush=True)
    return {
        "before": float(before.mean()),
        "after": float(after.mean()),
        "old_after": old_score(trained, data),
        "old_beside": old_score(trained_weights(trained, out / f"{task.name}-{seed}-weights"), data),
        "minutes": seconds / 60,
        "processor_minutes": computed / 60,
    }


def processor_seconds() -> float:
    """Return the processor time of the commands that were run, user's and system's, all threads."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description="Fine-tune on twenty chips, and measure on others.")
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="spex-small")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="sets", help="as of spexmap train, such as threads=1")
    parser.add_argument("--task", choices=("aerial", "sky", "kinds"), action="append")
    options = parser.parse_args()
    old_before, missed = old_score(options.model, options.data), []
    print(f"old classes before: {old_before:.3f}", flush=True)
    for make in (aerial, sky, kinds):
        if options.task and make.__name__ not in options.task:
            continue
        task = make(options.data)
        rows = [one_draw(task, seed, options.data, options.out, options.model, options.sets) for seed in range(options.draws)]
        gain = float(np.mean([row["after"] - row["before"] for row in rows]))
        loss = float(old_before - np.mean([row["old_after"] for row in rows]))
        print("| task | draw | new classes before | after | old classes before | after | by the trained weights | minutes, wall | processor |")
        print("|---|---|---|---|---|---|---|---|---|")
        for seed, row in enumerate(rows):
            figures = (row["before"], row["after"], old_before, row["old_after"], row["old_beside"])
            scores = " | ".join(f"{each:.3f}" for each in figures)
            print(f"| {task.name} | {seed} | {scores} | {row['minutes']:.1f} | {row['processor_minutes']:.1f} |")
        print(json.dumps({"task": task.name, "gain": round(gain, 4), "loss_of_old": round(loss, 4)}), flush=True)
        missed += [task.name] if gain < GAIN or loss > LOSS else []
    sys.exit(f"missed: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
