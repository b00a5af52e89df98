"""What an evaluation reads: shared chips (.npz) or a user's GeoTIFF pairs, and the band sets they can be seen in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.bands import check_bands
from engine.errors import UnknownBand
from engine.training.chip_folder import InvalidChips, LabelledChips, is_chip_folder, load_chip_folder
from engine.training.data import CLASSES, IGNORE, KINDS, LEAVES, TRAINING_BANDS, Chips, load_chips

BAND_SETS = ("six", "rgb+nir+swir16", "rgb+nir", "rgb")
"""Band sets evaluated where nothing else is asked, as far as the chips have the bands."""

_WORDS = {"rgb": ("blue", "green", "red"), "six": TRAINING_BANDS}

SALT_LAKE = "182"
"""A salt or ice lake that is most of val's bare ground."""


def labelled(chips: Chips) -> LabelledChips:
    """Return shared chips with the four roots as classes, named by their number."""
    places, names = (tuple(map(str, each.tolist())) for each in (chips.place, chips.chip_id))
    return LabelledChips(chips.reflectance, TRAINING_BANDS, chips.labels, CLASSES, places, names, chips.clean)


def labelled_kinds(chips: Chips) -> LabelledChips:
    """Return shared chips with the kinds of vegetation and the other roots as classes; vegetation of no known kind is ignored. Clean labels only."""
    classes = (*KINDS, *CLASSES[1:])
    lookup = np.full(256, IGNORE, np.uint8)
    for index, name in enumerate(classes):
        lookup[LEAVES.index(name)] = index
    roots = labelled(chips)
    return LabelledChips(roots.reflectance, roots.bands, lookup[chips.leaves], classes, roots.places, roots.names)


def find_chips(data: Path, split: str) -> Path:
    """Return the .npz file or the chip folder of a split.

    `data` is such a file or folder itself, or a folder that holds ``SPLIT.npz``, ``hls-worldcover/SPLIT.npz`` or the chip folder ``SPLIT``. A file is
    evaluated whatever the split is called; its training split is ``train.npz`` beside it.

    Raises
    ------
    InvalidChips
        There is none.
    """
    if data.suffix == ".npz":
        files = [data.with_name("train.npz") if split == "train" else data]
    else:
        files = [data / f"{split}.npz", data / "hls-worldcover" / f"{split}.npz"]
    for path in files:
        if path.is_file():
            return path
    for path in (data / split, data):
        if is_chip_folder(path):
            return path
    raise InvalidChips(f"no chips of split {split!r} at {data}: neither {split}.npz, nor {split}/classes.yaml, nor classes.yaml")


def load_split(data: Path, split: str, kinds: bool = False) -> LabelledChips:
    """Return the chips of a split, shared ones with the roots or the kinds of vegetation as classes.

    Raises
    ------
    InvalidChips
        As `find_chips` and `load_chip_folder` do, or kinds are asked of a user's chips, which have the classes that they have.
    """
    path = find_chips(data, split)
    if path.suffix != ".npz":
        if kinds:
            raise InvalidChips(f"{path}: the kinds of vegetation are labelled in the shared chips (.npz) only")
        return load_chip_folder(path)
    return labelled_kinds(load_hls(path)) if kinds else labelled(load_hls(path))


def load_hls(path: Path) -> Chips:
    """Return shared chips; raises `InvalidChips` where the file lacks an array."""
    try:
        return load_chips(path)
    except (KeyError, OSError, ValueError) as error:
        raise InvalidChips(f"{path} is no file of HLS chips with WorldCover labels: {error}") from error


def training_chips(data: Path, split: str, train: Path | None) -> Path:
    """Return where the chips that a baseline may learn from lie; raises `InvalidChips` where that is where the evaluated ones lie."""
    path = find_chips(data if train is None else train, "train")
    if path.resolve() == find_chips(data, split).resolve():
        raise InvalidChips(f"{path}: a baseline must not learn from what it is scored on; name other chips by --train")
    return path


def parse_bands(text: str, available: Sequence[str]) -> tuple[str, ...]:
    """Return the bands of a set such as ``rgb+nir``, ``six``, ``all`` or ``blue+green+red+swir16``.

    Raises
    ------
    UnknownBand
        A name is not canonical, given twice, or not among the available ones.
    """
    if text == "all":
        return tuple(available)
    bands = tuple(band for word in text.split("+") for band in _WORDS.get(word, (word,)))
    check_bands(bands)
    missing = [band for band in bands if band not in available]
    if missing:
        raise UnknownBand(f"band set {text!r}: the chips have no {', '.join(missing)}; they have {', '.join(available)}")
    return bands


def default_band_sets(available: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the usual band sets that the chips offer, all bands first."""
    offered = [name for name in BAND_SETS if set(parse_bands(name, TRAINING_BANDS)) <= set(available)]
    whole = [name for name in offered if set(parse_bands(name, available)) == set(available)]
    return tuple(offered) if whole else ("all", *offered)
