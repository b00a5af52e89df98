"""One image as a data set sees it: which rules look at it, with which thresholds, and the evidence for each class on each chip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from engine.spie.chips import Chip
from engine.spie.imagery import Box, Image, calibration_doubt, check_reflectance, ground_resolution
from engine.spie.indices import IndexChoice, choose_indices, compute_index, mean_over, require_indices
from engine.spie.layers import Clouds, Labels
from engine.spie.morphology import Morphology
from engine.spie.priors import Rule, fitted_thresholds, prior_rules, spectral_prior, why_no_prior
from engine.spie.regions import SizeWords
from engine.spie.samples import Evidence, Sample, Source, from_index, from_labels
from engine.spie.sentences import summarise

OVERVIEW = 1024
"""Thresholds and the stretch of pictures are fitted on at most so many pixels a side, spread evenly."""

WHITE_PERCENTILE = 98
"""The reflectance of the picture's bands at this percentile becomes white."""

PICTURES: tuple[tuple[str, str, str], ...] = (("red", "green", "blue"), ("nir", "red", "green"), ("swir16", "nir", "red"))
"""Bands of the 8-bit pictures in order of preference; where none is complete, the first band is shown in grey."""


@dataclass(frozen=True)
class Reading:
    """How images are read into evidence."""

    targets: tuple[str, ...]
    """Classes, in order."""
    source: Source
    morphology: Morphology
    labels: Labels | None = None
    clouds: Clouds | None = None
    indices: tuple[str, ...] = ()
    """Indices whose means are asked for by name; empty: the common ones that the bands offer."""
    common_indices: tuple[str, ...] = ()
    size_reference_m2: float | None = None
    resolution: float | None = None

    @property
    def uses_rules(self) -> bool:
        """Whether index rules make any mask or attribute."""
        return self.labels is None or self.source == "index"


@dataclass(frozen=True)
class Scene:
    """One image with what was fitted on the whole of it."""

    image: Image
    reading: Reading
    resolution: float
    """Metres a pixel."""
    thresholds: Mapping[str, Mapping[Rule, float]]
    """By class that the band set has rules for."""
    left_out: Mapping[str, str]
    """Why a class has no rules, by class."""
    indices: IndexChoice
    picture_bands: tuple[str, ...]
    white: float
    """Reflectance that is 255 in the pictures."""
    doubt: str = ""
    """Why the reflectance looks wrongly scaled; empty where it does not."""

    def sample(self, chip: Chip, target: str, seen: Sight) -> Sample:
        """Return the sample of one class on a chip."""
        words = SizeWords(self.resolution, self.reading.size_reference_m2)
        least = self.reading.morphology.minimum_pixels(self.resolution)
        prior = self._prior(target, seen, least, words)
        labelled = seen.labels.get(target)
        if labelled is None:
            assert prior is not None
            truth, valid = prior, seen.valid
        else:
            valid = seen.valid & seen.known
            truth = from_labels(labelled & valid, summarise(labelled & valid, int(valid.sum()), self.resolution, least, words))
        carried = {"index": prior, "labels": truth, "none": None}[self.reading.source]
        name = f"{chip.name}__{target}__{'none' if carried is None else carried.source}"
        means = {index: mean_over(values, truth.mask) for index, values in seen.indices.items()}
        return Sample(name, target, carried, truth, valid, means)

    def _prior(self, target: str, seen: Sight, least: int, words: SizeWords) -> Evidence | None:
        mask = seen.priors.get(target)
        return None if mask is None else from_index(mask, summarise(mask, int(seen.valid.sum()), self.resolution, least, words))

    def cleaned_by(self, morphology: Morphology) -> Scene:
        """Return the same scene with another opening, closing and minimum area."""
        return replace(self, reading=replace(self.reading, morphology=morphology))

    def targets(self) -> tuple[str, ...]:
        """Return the classes that this image can give samples of: all where there are labels, else those with rules."""
        return tuple(name for name in self.reading.targets if self.reading.labels is not None or name in self.thresholds)

    def look(self, chip: Chip) -> Sight:
        """Return what there is to see on a chip."""
        morphology, reading, box = self.reading.morphology, self.reading, chip.box
        margin = morphology.halo(self.resolution)
        wide = clear_reflectance(self.image, reading.clouds, box.grown(margin))
        inner = (slice(margin, margin + box.height), slice(margin, margin + box.width))
        reflectance = wide[(slice(None), *inner)]
        around: NDArray[np.bool_] = np.asarray(np.isfinite(wide).all(0), bool)
        priors = {}
        for target, thresholds in self.thresholds.items():
            raw = spectral_prior(target, wide, self.image.bands, thresholds)
            assert raw is not None
            cleaned = morphology.opened_and_closed(raw, self.resolution, around)[inner]
            priors[target] = morphology.without_small(cleaned, self.resolution)
        labels, known = ({}, np.zeros(reflectance.shape[1:], bool)) if reading.labels is None else reading.labels.masks(self.image, box)
        indices = {name: compute_index(name, reflectance, self.image.bands) for name in self.indices.used}
        return Sight(reflectance, around[inner], priors, labels, known, indices)

    def picture(self, reflectance: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Return the 8-bit picture (H, W, 3) of a chip, black where there is no data."""
        channels = [self.image.bands.index(name) for name in self.picture_bands]
        scaled = np.clip(np.nan_to_num(reflectance[channels], nan=0.0) / self.white, 0, 1)
        return np.ascontiguousarray(np.moveaxis(np.rint(scaled * 255).astype(np.uint8), 0, -1))


@dataclass(frozen=True)
class Sight:
    """What there is to see on one chip, (H, W) each."""

    reflectance: NDArray[np.float32]
    """(C, H, W), NaN = no data or cloud."""
    valid: NDArray[np.bool_]
    priors: Mapping[str, NDArray[np.bool_]]
    labels: Mapping[str, NDArray[np.bool_]]
    known: NDArray[np.bool_]
    """Where the labels say anything."""
    indices: Mapping[str, NDArray[np.float32]]


def clear_reflectance(image: Image, clouds: Clouds | None, box: Box, shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
    """Return reflectance (C, h, w), NaN where there is no data or cloud."""
    reflectance = image.reflectance(box, shape)
    return reflectance if clouds is None else np.where(clouds.mask(image, box, shape), np.float32(np.nan), reflectance)


def open_scene(image: Image, reading: Reading) -> Scene:
    """Return an image with its rules, thresholds and stretch, fitted on an even sample of the whole of it.

    Raises
    ------
    UnusableImagery
        No pixel with data, or numbers that are no reflectance.
    IndexUnavailable
        An index that was asked for by name needs a band that the image has not.
    """
    whole = Box(0, 0, *image.shape)
    sampled = clear_reflectance(image, reading.clouds, whole, (min(image.shape[0], OVERVIEW), min(image.shape[1], OVERVIEW)))
    check_reflectance(image, sampled)
    rules = {target: prior_rules(target, image.bands) for target in reading.targets}
    bands = next((bands for bands in PICTURES if set(bands) <= set(image.bands)), (image.bands[0],) * 3)
    shown = sampled[[image.bands.index(name) for name in bands]]
    choice = require_indices(reading.indices, image.bands) if reading.indices else choose_indices(reading.common_indices, image.bands)
    return Scene(
        image,
        reading,
        ground_resolution(image, reading.resolution),
        {target: fitted_thresholds(target, sampled, image.bands) for target in reading.targets if rules[target]},
        {target: why_no_prior(target, image.bands) for target in reading.targets if not rules[target]},
        choice,
        bands,
        max(float(np.nanpercentile(shown, WHITE_PERCENTILE)), 1e-3),
        calibration_doubt(sampled),
    )


def unseen(scenes: Sequence[Scene]) -> dict[str, str]:
    """Return the classes that no scene has rules for, with the reason of the first."""
    return {name: reason for name, reason in scenes[0].left_out.items() if all(name in scene.left_out for scene in scenes)} if scenes else {}
