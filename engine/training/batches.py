"""Batches of SPEX's training: chips, the classes asked about them, and the words. Batch k of a seed is always the same batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.lexicon import Term
from engine.modeling import Prompts
from engine.processing import Request, SpexProcessor
from engine.spie.grammar import attributes_text, canonical_answer, describe_regions, training_instruction
from engine.spie.priors import spectral_prior
from engine.spie.regions import Region, find_regions
from engine.training.augment import SENSORS, Sample, as_sensor, draw_sample, other_light, pick, with_gaps
from engine.training.data import CLASSES, IGNORE, KINDS, LEAVES, ROOT_OF, Chips, sampling_weights
from engine.training.rededge import RedEdge
from engine.training.survey import Survey

CLASS_WEIGHTS = np.array([1.0, 2.0, 1.0, 2.5] + [0.0] * 252, np.float32)
"""Weight of a pixel by label; intersection over union asks for more recall of rare classes than likelihood does."""

ASKED = ((0.08, 1), (0.12, 2), (0.80, 4))
"""How often training asks how many roots at once; with all of them, at times, the kinds of vegetation."""
KINDS_CHANCE = 0.5

TOKENS_MULTIPLE = 32
"""Texts are padded to a multiple of this: kernels are compiled for every new length."""

ATTRIBUTE_CHANCE, DESCRIPTION_CHANCE, REGIONS_IN_TEXT = 0.15, 0.25, 1
FOREIGN_ATTRIBUTES = 0.4
"""How often given attributes are those of another class or another window: the class that is named decides, not what is said beside it."""


@dataclass(frozen=True)
class Batch:
    """One step's input."""

    reflectance: Tensor
    """(n, C, h, w) float32"""
    target: Tensor
    """(n, h, w) int64: position of the pixel's class among those asked, K where it was not asked, 255 ignored."""
    weight: Tensor
    """(n, h, w) float32: weight of each pixel by its class, asked or not."""
    prompts: Prompts
    bands: tuple[str, ...]
    roots: int
    """How many of the classes asked are roots; they come first."""
    kinds: Tensor | None = None
    """(n, h, w) int64: position of the pixel's kind of vegetation among the kinds asked, 255 where it has none; None where none is asked."""
    kind_order: Tensor | None = None
    """(n, kinds) int64: index into `KINDS` of each kind asked."""


class BatchMaker:
    """Makes batch after batch of a set of chips."""

    def __init__(
        self, chips: Chips, processor: SpexProcessor, red_edge: RedEdge, survey: Survey | None = None, batch: int = 8, size: int = 128, seed: int = 0
    ) -> None:
        self.chips, self.processor, self.red_edge, self.survey = chips, processor, red_edge, survey
        self.batch, self.size, self.seed = batch, size, seed
        self.weights = sampling_weights(chips)

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step."""
        generator = np.random.default_rng((self.seed, step))
        bands: tuple[str, ...] = pick(generator, SENSORS)  # type: ignore[assignment]
        count = int(pick(generator, ASKED))  # type: ignore[call-overload]
        return self.about([self.sample(bands, generator) for _ in range(self.batch)], bands, count, generator)[0]

    def about(self, samples: Sequence[Sample], bands: tuple[str, ...], count: int, generator: np.random.Generator) -> tuple[Batch, NDArray[np.intp]]:
        """Return a batch that asks about `count` roots of windows in some bands, and which: (n, count) index into `CLASSES`."""
        asked = np.stack([generator.permutation(len(CLASSES))[:count] for _ in samples])
        with_kinds = count == len(CLASSES) and generator.random() < KINDS_CHANCE
        order = np.stack([generator.permutation(len(KINDS)) for _ in samples])
        everything = np.concatenate([asked, order + len(CLASSES)], 1) if with_kinds else asked
        with_attributes, with_description = generator.random(2) < (ATTRIBUTE_CHANCE, DESCRIPTION_CHANCE)
        told = (bands, with_attributes, with_description, generator)
        requests = [[self._ask(int(leaf), samples, i, *told) for leaf in row] for i, row in enumerate(everything)]
        roots = np.stack([ROOT_OF[sample.labels] for sample in samples])
        kinds = np.stack([kind_positions(sample.labels, row) for sample, row in zip(samples, order, strict=True)])
        batch = Batch(
            torch.from_numpy(np.stack([sample.reflectance for sample in samples])),
            torch.from_numpy(np.stack([positions(labels, row) for labels, row in zip(roots, asked, strict=True)])),
            torch.from_numpy(CLASS_WEIGHTS[roots]),
            self.processor.prompts(requests, TOKENS_MULTIPLE),
            bands,
            count,
            torch.from_numpy(kinds) if with_kinds else None,
            torch.from_numpy(order) if with_kinds else None,
        )
        return batch, asked

    def _ask(
        self,
        leaf: int,
        samples: Sequence[Sample],
        own: int,
        bands: tuple[str, ...],
        with_attributes: bool,
        with_description: bool,
        generator: np.random.Generator,
    ) -> Request:
        """Return the request about one class of window `own`; at times with attributes that are another class's or another window's."""
        told_of, told_in = LEAVES[leaf], samples[own]
        if with_attributes and generator.random() < FOREIGN_ATTRIBUTES:
            told_of, told_in = str(generator.choice(CLASSES)), samples[int(generator.integers(len(samples)))]
        attributes = prior_text(told_of, told_in, bands) if with_attributes else ""
        return ask(LEAVES[leaf], samples[own], self.processor, attributes, with_description, generator)

    def windows(self, step: int) -> tuple[list[Sample], tuple[str, ...]]:
        """Return a batch's windows with their labels, and their bands, without any words."""
        generator = np.random.default_rng((self.seed, step))
        bands: tuple[str, ...] = pick(generator, SENSORS)  # type: ignore[assignment]
        return [self.sample(bands, generator) for _ in range(self.batch)], bands

    def sample(self, bands: tuple[str, ...], generator: np.random.Generator) -> Sample:
        """Return a window as a sensor sees it, with detailed labels."""
        sample = draw_sample(self.chips, self.weights, self.chips.leaves, self.size, generator)
        if self.survey is not None:
            sample = self.survey.paint(sample, generator)
        return with_gaps(other_light(as_sensor(sample, bands, self.red_edge, generator), bands, generator), generator)


def positions(labels: NDArray[np.uint8], asked: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return labels (h, w) as positions among the classes asked: K for a class that was not asked, 255 ignored; int64."""
    lookup = np.full(256, len(asked), np.int64)
    lookup[asked], lookup[IGNORE] = np.arange(len(asked)), IGNORE
    return np.asarray(lookup[labels])


def kind_positions(labels: NDArray[np.uint8], order: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return detailed labels (h, w) as positions among the kinds asked, 255 for pixels of no known kind; int64."""
    lookup = np.full(256, IGNORE, np.int64)
    lookup[order + len(CLASSES)] = np.arange(len(order))
    return np.asarray(lookup[labels])


def prior_text(target: str, sample: Sample, bands: tuple[str, ...]) -> str:
    """Return the attributes that spectral indices give a class, as text; empty where no index speaks about it."""
    prior = spectral_prior(target, sample.reflectance, bands)
    return "" if prior is None else attributes_text(find_regions(prior, longest=REGIONS_IN_TEXT))


def ask(target: str, sample: Sample, processor: SpexProcessor, attributes: str, with_description: bool, generator: np.random.Generator) -> Request:
    """Return a request about a class in varied words. The label shows in the description only."""
    term = processor.lexicon.terms[target]
    instruction = training_instruction(str(generator.choice(term.words)), generator)
    description = described(target, sample.labels, term.phrase) if with_description else None
    return Request(target, instruction, attributes, description)


def described(target: str, labels: NDArray[np.uint8], phrase: str) -> str:
    """Return what the detailed labels (h, w) say of a class."""
    leaf = LEAVES.index(target)
    mask, known = (labels if leaf >= len(CLASSES) else ROOT_OF[labels]) == leaf, int((labels != IGNORE).sum())
    return describe_regions(phrase, mask.sum() / max(known, 1), find_regions(mask, known, 1))


def corpus(terms: Sequence[Term], seed: int = 0) -> list[str]:
    """Return sentences of the grammar with made-up regions: what the tokenizer is trained on."""
    generator = np.random.default_rng(seed)
    lines: list[str] = []
    for term in terms:
        lines += [training_instruction(word, generator) for word in term.words for _ in range(12)] + [canonical_answer(term.phrase)] * 10
        lines += [describe_regions(term.phrase, share, []) for share in (0.0, 0.001) for _ in range(10)]
        for _ in range(60):
            regions = _made_up_regions(generator)
            lines += [attributes_text(regions), describe_regions(term.phrase, generator.random(), regions)]
    return lines


def _made_up_regions(generator: np.random.Generator) -> list[Region]:
    mask = np.zeros((64, 64), bool)
    for top, left, side in generator.integers(0, 56, (3, 3)):
        mask[top : top + side // 3 + 1, left : left + side // 2 + 1] = True
    return find_regions(mask)
