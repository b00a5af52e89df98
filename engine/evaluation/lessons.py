"""What the baselines of an evaluation learn from, found and read before anything is predicted: what is missing must not cost hours of work."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.evaluation.datasets import load_hls, load_split
from engine.evaluation.errors import InvalidEvaluation
from engine.training.batches import BatchMaker
from engine.training.chip_folder import InvalidChips, LabelledChips
from engine.training.data import CLASSES
from engine.training.rededge import fit_red_edge
from engine.training.survey import load_survey

UNET_BATCH, UNET_WINDOW = 8, 96
"""Windows a step and pixels of their sides, as in spex-small's instruction tuning."""


@dataclass(frozen=True)
class Windows:
    """What the U-Net learns from."""

    maker: BatchMaker
    key: str
    """Changes with the content of every file that the windows are made of: a training state of another key is not gone on with."""


@dataclass(frozen=True)
class Lessons:
    """What the baselines that are asked for learn from; None for those that are not."""

    pixels: LabelledChips | None = None
    """Of boosting."""
    windows: Windows | None = None
    """Of the U-Net."""


def read_lessons(
    baselines: Sequence[str], path: Path, chips: LabelledChips, sets: Mapping[str, Sequence[str]], seed: int = 0, kinds: bool = False
) -> Lessons:
    """Return what the baselines learn from.

    Parameters
    ----------
    baselines
        Names of those asked for.
    path
        Of the training chips, as `training_chips` finds them.
    chips
        Those that are evaluated.
    sets
        Bands by name of the band set.
    seed
        Of the U-Net's windows.
    kinds
        Whether the kinds of vegetation are scored.

    Raises
    ------
    InvalidChips
        The training chips lack a class, a band or a file that a baseline needs.
    InvalidEvaluation
        The U-Net is asked for classes other than the four roots.
    """
    windows = _windows(path, chips, seed) if "unet" in baselines else None
    return Lessons(_pixels(path, chips, sets, kinds) if "boosting" in baselines else None, windows)


def _pixels(path: Path, chips: LabelledChips, sets: Mapping[str, Sequence[str]], kinds: bool) -> LabelledChips:
    train = load_split(path, "train", kinds)
    if train.classes != chips.classes:
        raise InvalidChips(f"{path}: training chips have the classes {', '.join(train.classes)}, evaluated ones {', '.join(chips.classes)}")
    for name, bands in sets.items():
        missing = [band for band in bands if band not in train.bands]
        if missing:
            raise InvalidChips(f"{path}: training chips have no {', '.join(missing)}, which band set {name!r} has; name other chips by --train")
    return train


def _windows(path: Path, chips: LabelledChips, seed: int) -> Windows:
    if path.suffix != ".npz":
        raise InvalidChips(f"{path}: the U-Net baseline learns from the windows of the shared chips (.npz); leave it out, or use boosting")
    if chips.classes != CLASSES:
        raise InvalidEvaluation(
            f"the U-Net baseline learns {', '.join(CLASSES)}, the evaluated chips have {', '.join(chips.classes)}; leave it out, or use boosting"
        )
    return Windows(window_maker(path, seed), training_key(path))


def window_files(path: Path) -> tuple[Path, Path, Path]:
    """Return the files that windows are made of: the chips, and the unlabelled chips and spectra that lie beside them.

    Raises
    ------
    InvalidChips
        One of them is missing.
    """
    root = path.absolute().parent.parent
    files = (path, root / "s2-unlabelled" / "bigearthnet.npz", root.parent / "spectra" / "lucas-s2-toa.npz")
    for file in files:
        if not file.is_file():
            raise InvalidChips(f"{file} is missing; the windows of SPEX's training need it: put it there, or leave the U-Net baseline out")
    return files


def window_maker(path: Path, seed: int) -> BatchMaker:
    """Return the maker of training windows of an .npz file of shared chips, with the red edge and the survey that lie beside them.

    Raises
    ------
    InvalidChips
        A file of `window_files` is missing or holds something else.
    """
    from engine.lexicon import DEFAULT_TERMS, Lexicon
    from engine.processing import SpexProcessor, train_tokenizer

    _, unlabelled, spectra = window_files(path)
    words = SpexProcessor(train_tokenizer(["water"], 300), Lexicon(DEFAULT_TERMS))
    try:
        red_edge, survey = fit_red_edge(unlabelled, spectra), load_survey(spectra)
    except (KeyError, IndexError, OSError, ValueError) as error:
        raise InvalidChips(f"{unlabelled} or {spectra} is not what the windows of SPEX's training need: {error}") from error
    return BatchMaker(load_hls(path), words, red_edge, survey, UNET_BATCH, UNET_WINDOW, seed)


def training_key(path: Path) -> str:
    """Return what a U-Net trained on windows of these chips depends on beside steps, rate and seed, which `Fit.identity` holds."""
    return f"unet {path.name} {digest(window_files(path))} {torch.__version__}"


def digest(files: Iterable[Path]) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of the contents of files, whatever they are called."""
    each = []
    for file in files:
        with file.open("rb") as stream:
            each.append(hashlib.file_digest(stream, "sha256").hexdigest())
    return hashlib.sha256(" ".join(each).encode()).hexdigest()[:16]
