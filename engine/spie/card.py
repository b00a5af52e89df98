"""The data card: what is in a data set, where it comes from, and what it must not be taken for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from engine.spie.chips import TRAIN, VAL, Cutting
from engine.spie.regions import size_cuts_m2
from engine.spie.samples import Sample, Source
from engine.spie.scene import Scene, unseen


@dataclass
class Counts:
    """What was written so far."""

    samples: int = 0
    chips: int = 0
    left_out_chips: int = 0
    """Too few valid pixels."""
    unlabelled_chips: int = 0
    chips_of: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By image and split."""
    places: dict[str, set[int]] = field(default_factory=dict)
    """By split."""
    samples_of: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    """By class, split, source of attributes and source of masks."""
    absent: Counter[str] = field(default_factory=Counter)
    """Samples of a class that is not there."""
    pixels: Counter[str] = field(default_factory=Counter)
    valid_pixels: Counter[str] = field(default_factory=Counter)
    words: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Regions of the masks by class and size word."""

    def count_chip(self, image: str, place: int, split: str) -> None:
        """Count a chip."""
        self.chips += 1
        self.chips_of[image, split] += 1
        self.places.setdefault(split, set()).add(place)

    def count_sample(self, sample: Sample, split: str) -> None:
        """Count a sample."""
        summary = sample.truth.summary
        self.samples += 1
        self.samples_of[sample.target, split, sample.source, sample.truth.source] += 1
        self.absent[sample.target] += summary.pixels == 0
        self.pixels[sample.target] += summary.pixels
        self.valid_pixels[sample.target] += summary.valid_pixels
        self.words.update((sample.target, region.size) for region in summary.regions)


def data_card(title: str, terms: str, source: Source, cutting: Cutting, scenes: Sequence[Scene], counts: Counts) -> str:
    """Return the card as Markdown; it holds no time and no machine, so that equal data have equal cards."""
    places = {split: len(counts.places.get(split, ())) for split in (TRAIN, VAL)}
    sections = [
        f"# {title}",
        f"{counts.samples} samples of {counts.chips} chips: one class and one instruction each, with an answer and a mask. "
        f"Places: {places[TRAIN]} in train, {places[VAL]} in val; chips that overlap on the ground share a place, and a place is in one split only."
        + ("" if places[VAL] else " **There is no val split**: too few places."),
        _sources(source, scenes, counts),
        "## Samples",
        _samples(counts),
        "## Images",
        _images(scenes, counts, cutting),
        *(["## Index rules", _rules(scenes)] if scenes[0].reading.uses_rules else []),
        "## Indices",
        _indices(scenes),
        "## Regions and size words",
        _regions(scenes, cutting, counts),
        "## Terms",
        terms or "**Not stated.** Whoever passes this data set on must find out the terms of the imagery and the labels.",
    ]
    return "\n\n".join(sections) + "\n"


def _sources(source: Source, scenes: Sequence[Scene], counts: Counts) -> str:
    used = sorted({key[2] for key in counts.samples_of})
    labelled = scenes[0].reading.labels is not None
    said = {
        "index": "Attributes in instructions come from spectral indices of the image alone.",
        "labels": "**Attributes in instructions come from the labels.** A model that is given them at test time has seen the answer.",
        "none": "Instructions carry no attributes.",
    }
    masks = (
        "Masks and answers come from the labels."
        if labelled
        else "Masks and answers come from the index rules below: they are pseudo-labels, and a score against them measures agreement with thresholds."
    )
    also = " Samples whose bands have no rule for their class carry none, and say `none`." if source == "index" and "none" in used else ""
    return f"Source of attributes asked for: `{source}`; in the samples: {', '.join(f'`{each}`' for each in used)}. {said[source]}{also} {masks}"


def _samples(counts: Counts) -> str:
    head = ("class", "split", "attributes", "masks", "samples")
    table = _table(head, [(*key, counts.samples_of[key]) for key in sorted(counts.samples_of)])
    shares = [
        (name, counts.absent[name], f"{100 * counts.pixels[name] / max(counts.valid_pixels[name], 1):.2f}") for name in sorted(counts.valid_pixels)
    ]
    return table + "\n\n" + _table(("class", "samples without it", "percent of valid pixels"), shares)


def _images(scenes: Sequence[Scene], counts: Counts, cutting: Cutting) -> str:
    rows = [
        (
            scene.image.name,
            " x ".join(map(str, scene.image.shape)),
            f"{scene.resolution:.4g}",
            "-" if scene.image.crs is None else scene.image.crs.to_string()[:40],
            " ".join(scene.image.bands),
            counts.chips_of[scene.image.name, TRAIN],
            counts.chips_of[scene.image.name, VAL],
            f"{' '.join(scene.picture_bands)}, 255 = {scene.white:.3f}",
        )
        for scene in scenes
    ]
    head = ("image", "pixels", "metres", "CRS", "bands", "train chips", "val chips", "picture")
    said = f"Chips of {cutting.chip} pixels every {cutting.stride}, in blocks of {cutting.block} x {cutting.block}."
    left_out = f"Left out: {counts.left_out_chips} chips for want of valid pixels, {counts.unlabelled_chips} for want of labels."
    return f"{said} {left_out}\n\n{_table(head, rows)}"


def _rules(scenes: Sequence[Scene]) -> str:
    fitted: dict[tuple[str, str], list[float]] = {}
    for scene in scenes:
        for target, thresholds in scene.thresholds.items():
            for rule, value in thresholds.items():
                fitted.setdefault((target, str(rule)), []).append(value)
    rows = [(target, rule, _span(values), len(values)) for (target, rule), values in fitted.items()]
    left_out = [f"- {reason}" for reason in unseen(scenes).values()]
    return (_table(("class", "rule", "threshold used", "images"), rows) if rows else "No class has rules.") + (
        "\n\nLeft out:\n\n" + "\n".join(left_out) if left_out else ""
    )


def _indices(scenes: Sequence[Scene]) -> str:
    used = dict.fromkeys(name for scene in scenes for name in scene.indices.used)
    reasons = dict.fromkeys(reason for scene in scenes for reason in scene.indices.left_out.values())
    return f"Means over each mask: {', '.join(used) or 'none'}." + "".join(f"\n- left out: {reason}" for reason in reasons)


def _regions(scenes: Sequence[Scene], cutting: Cutting, counts: Counts) -> str:
    morphology, reference = scenes[0].reading.morphology, scenes[0].reading.size_reference_m2
    cleaning = (
        f"Index masks were opened with a radius of {morphology.opening_m:g} m and closed with {morphology.closing_m:g} m. "
        f"Regions below {morphology.minimum_m2:g} m2 are dropped from index masks, and from the attributes of label masks."
        if scenes[0].reading.uses_rules
        else f"Regions below {morphology.minimum_m2:g} m2 are dropped from attributes; masks are the labels as they are."
    )
    by = "the valid area of the chip" if reference is None else f"{reference:g} m2"
    cuts = []
    for resolution in sorted({scene.resolution for scene in scenes}):
        radii, pixels = morphology.radii(resolution), cutting.chip**2
        limits = size_cuts_m2(resolution, pixels) if reference is None else size_cuts_m2(1.0, round(reference))
        cuts.append((f"{resolution:.4g}", *radii, morphology.minimum_pixels(resolution), *(f"{limits[w]:.4g}" for w in list(limits)[:-1])))
    words = list(size_cuts_m2(1.0))
    head = ("metres a pixel", "opening px", "closing px", "minimum px", *(f"{word} below m2" for word in words[:-1]))
    regions = [(name, *(counts.words[name, word] for word in words)) for name in sorted(counts.valid_pixels)]
    return f"{cleaning} Size words are shares of {by}; of a whole chip:\n\n{_table(head, cuts)}\n\n{_table(('class', *words), regions)}"


def _span(values: Sequence[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3f}" if low == high else f"{low:.3f} to {high:.3f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines)
