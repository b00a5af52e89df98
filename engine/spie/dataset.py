"""A data set of instructions: chips, masks and sentences, written whole or not at all."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from engine.spie.card import Counts, data_card
from engine.spie.chips import Chip, Cutting, place_numbers, splits
from engine.spie.errors import InvalidBuild, UnusableImagery
from engine.spie.imagery import Calibration
from engine.spie.indices import DEFAULT_INDICES
from engine.spie.layers import Clouds, RasterLayer, open_labels
from engine.spie.morphology import Morphology
from engine.spie.opening import open_imagery
from engine.spie.priors import PRIORS, require_prior
from engine.spie.progress import shown
from engine.spie.samples import SOURCES, Sample, Source, check_sample
from engine.spie.scene import Reading, Scene, open_scene
from engine.spie.writing import Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """What a data set is built from and how; the options of ``spexmap spie build``."""

    imagery: tuple[str, ...]
    """Paths, folders or patterns."""
    bands: tuple[str, ...] = ()
    calibration: Calibration = field(default_factory=Calibration)
    labels: str | None = None
    label_field: str | None = None
    classes: tuple[str, ...] = ()
    """``CODE=CLASS`` where there are labels, else names of classes that have index rules; empty: all that the bands offer."""
    source: str = "index"
    """What the attributes in instructions come from: index, labels or none."""
    cutting: Cutting = field(default_factory=Cutting)
    resolution: float | None = None
    """Metres a pixel of imagery without a georeference."""
    reference: float | None = None
    """Ground sample distance whose 1, 2 and 50 pixels are opening, closing and minimum area; None: of the coarsest image."""
    size_reference_m2: float | None = None
    """Area of which size words are shares; None: each chip's own valid area."""
    indices: tuple[str, ...] = ()
    """Indices to average over masks; all must be possible. Empty: the common ones that are."""
    clouds: str | None = None
    cloud_values: tuple[int, ...] = ()
    cloud_bits: tuple[int, ...] = ()
    minimum_valid: float = 0.1
    """Chips with a smaller share of valid pixels are left out."""
    val_share: float = 0.2
    seed: int = 0
    reflectance: bool = True
    """Whether chips are written as multi-band GeoTIFFs beside the pictures."""
    title: str = "SPIE data set"
    terms: str = ""
    """Licences and attributions of imagery and labels, for the card."""

    def __post_init__(self) -> None:
        """Refuse options that contradict one another."""
        if self.attribute_source == "labels" and self.labels is None:
            raise InvalidBuild("source labels needs --labels")
        if self.labels is None and any("=" in entry for entry in self.classes):
            raise InvalidBuild("--classes CODE=CLASS needs --labels; without them write class names, such as water,vegetation")
        if self.clouds is not None and not (self.cloud_values or self.cloud_bits):
            raise InvalidBuild(f"--clouds {self.clouds} needs --cloud-values or --cloud-bits: which codes are not to be looked at")
        positive = [value for value in (self.resolution, self.reference, self.size_reference_m2) if value is not None]
        if not (0 <= self.minimum_valid <= 1 and 0 <= self.val_share < 1 and all(value > 0 for value in positive)):
            raise InvalidBuild("--min-valid lies in 0..1, --val-share in 0..1 (below 1), and metres are positive")

    @property
    def targets(self) -> tuple[str, ...]:
        """Names of the classes; raises `InvalidBuild` for one that cannot be part of a file name."""
        names = tuple(dict.fromkeys(self.coded_classes.values())) if self.labels is not None else self.classes or tuple(PRIORS)
        wrong = [name for name in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)]
        if wrong:
            raise InvalidBuild(f"class {', '.join(map(repr, wrong))}: names consist of letters, digits, - and _ (which is read as a space)")
        return names

    @property
    def attribute_source(self) -> Source:
        """The source as one of `SOURCES`; raises `InvalidBuild` for any other word."""
        found = next((each for each in SOURCES if each == self.source), None)
        if found is None:
            raise InvalidBuild(f"source {self.source!r} is none of {', '.join(SOURCES)}")
        return found

    @property
    def coded_classes(self) -> dict[str, str]:
        """Class by code of the labels."""
        pairs = [entry.partition("=") for entry in self.classes]
        wrong = [code for code, sign, name in pairs if not (code and sign and name)]
        if wrong:
            raise InvalidBuild(f"--classes {','.join(self.classes)}: with labels each is CODE=CLASS")
        return {code: name for code, _, name in pairs}


@dataclass(frozen=True)
class Built:
    """What was written."""

    directory: Path
    samples: int
    chips: int
    card: str


def number(text: str) -> float:
    """Return a number written as a decimal or as a fraction such as ``1/255``; raises `InvalidBuild`."""
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError):
        raise InvalidBuild(f"{text!r} is no number such as 0.0001 or 1/255") from None


def build(options: BuildOptions, directory: Path) -> Built:
    """Write a data set to a folder that is not there yet, or empty.

    Parameters
    ----------
    options
        What to build from. The same options and the same input give the same bytes.
    directory
        Written beside itself under another name and renamed at the end.

    Raises
    ------
    InvalidBuild
        The folder holds something, or no chip has enough data.
    UnusableImagery, UnknownBand
        Imagery, labels or clouds are not what the options say.
    IndexUnavailable
        A class or an index that was asked for by name needs a band that is not there.
    """
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise InvalidBuild(f"{directory} is there already and not empty; give --out another folder")
    scenes = open_scenes(options)
    _warn_of_doubts(scenes)
    for scene in scenes:
        log.info("%s: %s, %.4g m, %s", scene.image.name, " x ".join(map(str, scene.image.shape)), scene.resolution, ", ".join(scene.image.bands))
    chips = [(scene, Chip(scene.image, box)) for scene in scenes for box in options.cutting.boxes(scene.image.shape)]
    places = place_numbers([chip for _, chip in chips])
    parts = splits([chip for _, chip in chips], places, options.val_share, options.seed)
    counts = Counts()
    with _whole_or_not_at_all(directory) as partial:
        with Writer(partial, options.reflectance) as writer:
            for (scene, chip), place, split in shown(zip(chips, places, parts, strict=True), len(chips), "chips"):
                _write_chip(writer, scene, chip, place, split, options, counts)
        _check_counts(options, len(chips), counts)
        card = data_card(options.title, options.terms, options.attribute_source, options.cutting, scenes, counts)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return Built(directory, counts.samples, counts.chips, card)


def _warn_of_doubts(scenes: Sequence[Scene]) -> None:
    """Log how many images look wrongly scaled, and why the first of them does."""
    doubtful = [scene for scene in scenes if scene.doubt]
    if doubtful:
        first = doubtful[0]
        log.warning("%d of %d images look wrongly scaled; %s: %s", len(doubtful), len(scenes), first.image.origin, first.doubt)


def _write_chip(writer: Writer, scene: Scene, chip: Chip, place: int, split: str, options: BuildOptions, counts: Counts) -> None:
    sight = scene.look(chip)
    if sight.valid.mean() < options.minimum_valid or not sight.valid.any():
        counts.left_out_chips += 1
        return
    samples = [sample for target in scene.targets() if (sample := scene.sample(chip, target, sight)).valid.any()]
    if not samples:
        counts.unlabelled_chips += 1
        return
    for sample in samples:
        check_sample(sample)
    writer.chip(chip, scene.picture(sight.reflectance), sight.reflectance)
    counts.count_chip(scene.image.name, place, split)
    for sample in samples:
        writer.sample(sample, chip, scene.resolution, place, split, _notes(scene, sample))
        counts.count_sample(sample, split)


def _check_counts(options: BuildOptions, chips: int, counts: Counts) -> None:
    """Refuse a data set that holds nothing, and one whose labels have none of the codes named."""
    if counts.unlabelled_chips and not counts.samples:
        raise UnusableImagery(f"labels {options.labels} say nothing about any of {chips} chips; do they lie on the same ground?")
    if not counts.samples:
        raise InvalidBuild(f"none of {chips} chips has {options.minimum_valid:.0%} of valid pixels; see --min-valid, --nodata and --clouds")
    if options.labels is not None and not any(counts.pixels.values()):
        raise UnusableImagery(f"labels {options.labels} have none of the codes {', '.join(options.coded_classes)} where there is data")


def _notes(scene: Scene, sample: Sample) -> Mapping[str, Any]:
    """Return what else a row says: the thresholds behind an index mask, and the reason where an instruction carries no attributes."""
    asked, got = scene.reading.source, sample.source
    used = scene.thresholds.get(sample.target, {}) if "index" in (got, sample.truth.source) else {}
    return {
        "thresholds": {str(rule): round(value, 4) for rule, value in used.items()},
        "why_none": scene.left_out.get(sample.target, "") if asked == "index" and got == "none" else "",
    }


def open_scenes(options: BuildOptions) -> list[Scene]:
    """Return the images that options name, ready to be looked at; raises as `build` does."""
    images = open_imagery(options.imagery, options.bands, options.calibration)
    labels = None if options.labels is None else open_labels(options.labels, options.label_field, options.coded_classes)
    clouds = None if options.clouds is None else Clouds(RasterLayer(options.clouds), options.cloud_values, options.cloud_bits)
    targets = options.targets
    if labels is None and options.classes:
        for image in images:
            for target in targets:
                require_prior(target, image.bands)
    sizes, metres = options.size_reference_m2, options.resolution
    reading = Reading(targets, options.attribute_source, Morphology(), labels, clouds, options.indices, DEFAULT_INDICES, sizes, metres)
    scenes = [open_scene(image, reading) for image in images]
    if not any(scene.targets() for scene in scenes):
        raise UnusableImagery(f"no class can be seen: {'; '.join(dict.fromkeys(scenes[0].left_out.values()))}")
    reference = options.reference or max(scene.resolution for scene in scenes)
    return [scene.cleaned_by(Morphology.at(reference)) for scene in scenes]


@contextmanager
def _whole_or_not_at_all(directory: Path) -> Iterator[Path]:
    """Yield a folder beside `directory` that takes its place at the end, and is removed where something goes wrong."""
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    for left in directory.parent.glob(f".{directory.name}.partial-*"):
        if not _alive(left.name.rpartition("-")[2]):
            shutil.rmtree(left)
    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    partial.mkdir()
    try:
        yield partial
        if directory.exists():
            directory.rmdir()
        partial.rename(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def words_of(options: Sequence[str] | None) -> tuple[str, ...]:
    """Return the entries of options that may be repeated and may hold commas."""
    return tuple(word.strip() for option in options or () for word in option.split(",") if word.strip())


def codes_of(options: Sequence[str] | None) -> tuple[int, ...]:
    """Return the entries of `words_of` as whole numbers; raises `InvalidBuild`."""
    try:
        return tuple(int(word) for word in words_of(options))
    except ValueError:
        raise InvalidBuild(f"{','.join(options or ())!r} are no whole numbers such as 3,8,9,10") from None


def calibration(scale: str | None, offset: str | None, nodata: float | None) -> Calibration:
    """Return a calibration from the words of the command line."""
    return Calibration(None if scale is None else number(scale), None if offset is None else number(offset), nodata)
