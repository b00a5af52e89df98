"""SPEX under four arms of spectral attributes: what the words about regions are worth, and what a leak of the labels would be worth.

Attributes are text in the prompt. Where they come from is each arm's `source`:

========  ==========  ==============================================================================================
arm       source      attributes
========  ==========  ==============================================================================================
none      none        none; what maps use
index     index       regions that spectral indices of the same chip suggest
labels    labels      regions of the chip's own labels: an oracle, its scores must never be quoted as the model's
shuffled  index       index attributes of the same class on a chip of another place: wrong words about the right class
========  ==========  ==============================================================================================
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from engine.evaluation.errors import InvalidEvaluation
from engine.evaluation.metrics import IGNORE
from engine.evaluation.predictors import padded
from engine.planner import Planner
from engine.processing import Request
from engine.spex import Spex
from engine.spie.grammar import attributes_text, canonical_answer
from engine.spie.priors import spectral_prior
from engine.spie.regions import find_regions
from engine.training.chip_folder import LabelledChips

ARMS = {"none": "none", "index": "index", "labels": "labels", "shuffled": "index"}
"""Source of the attributes of each arm."""

REGIONS = 1
"""Regions told of each class: as many as training tells."""

log = logging.getLogger(__name__)


class SpexPredictor:
    """SPEX on one band set and one list of classes, under one arm; without `offsets`, those of its configuration are left out."""

    calibrated = True

    def __init__(
        self,
        spex: Spex,
        bands: Sequence[str],
        classes: Sequence[str],
        arm: str = "none",
        regions: int = REGIONS,
        seed: int = 0,
        offsets: bool = True,
    ) -> None:
        self.spex, self.arm, self.source, self.regions, self.seed = spex, arm, ARMS[arm], regions, seed
        self.classes = tuple(spex.resolve([name])[0].target for name in classes)
        self.planner = spex.planner(bands, classes)
        self.asked = answered_classes(spex, self.planner)
        self.has_offsets = bool(self.planner.get_buffer("offsets").any())
        self.name = "spex" if offsets else "spex, no offsets"
        if not offsets:
            self.planner.get_buffer("offsets").zero_()

    @torch.inference_mode()
    def __call__(self, chips: LabelledChips, index: int) -> NDArray[np.float32]:
        """Return probabilities (K, H, W); `other` has what is left."""
        chip = padded(chips.reflectance[index], self.spex.config.stride)
        planner = self.planner if self.arm == "none" else self._with_attributes(self.attributes(chips, index))
        height, width = chips.reflectance.shape[2:]
        result: NDArray[np.float32] = planner(torch.from_numpy(chip)[None].to(self.spex.device))[0, :, :height, :width].float().cpu().numpy()
        return result

    def attributes(self, chips: LabelledChips, index: int) -> list[str]:
        """Return the text about each class that the model is asked about; empty where the source says nothing."""
        if self.arm == "labels":
            return [self._of_labels(chips, index, name) for name in self.asked]
        told_in = index if self.arm == "index" else another_place(chips.places, index, self.seed)
        return [self._of_indices(chips, told_in, name) for name in self.asked]

    def _of_indices(self, chips: LabelledChips, index: int, target: str) -> str:
        prior = spectral_prior(target, chips.reflectance[index], chips.bands)
        return "" if prior is None else attributes_text(find_regions(prior, longest=self.regions))

    def _of_labels(self, chips: LabelledChips, index: int, target: str) -> str:
        if target not in self.classes:
            return ""
        labels = (chips.labels if chips.clean is None else chips.clean)[index]
        mask = labels == self.classes.index(target)
        return attributes_text(find_regions(mask, int((labels != IGNORE).sum()), self.regions))

    def _with_attributes(self, texts: Sequence[str]) -> Planner:
        """Return the planner with the same classes, offsets and wording, and attributes after each instruction."""
        requests = [Request(name, attributes=text) for name, text in zip(self.asked, texts, strict=True)]
        offsets = self.planner.get_buffer("offsets").flatten().tolist()
        made = Planner(self.planner.model, self.spex.processor.prompts([requests]), self.planner.bands, offsets, self.planner.queries)
        return made.eval().to(self.spex.device)


def answered_classes(spex: Spex, planner: Planner) -> list[str]:
    """Return which class each query of a planner is about, read from the canonical answer in its prompt."""
    names = {canonical_answer(term.phrase): name for name, term in spex.processor.lexicon.terms.items()}
    tokens, answer = planner.get_buffer("tokens")[0], planner.get_buffer("answer")[0]
    return [names[spex.processor.text(row[where].tolist())] for row, where in zip(tokens, answer, strict=True)]


def another_place(places: Sequence[str], index: int, seed: int) -> int:
    """Return a chip of another place, always the same one for a seed.

    Raises
    ------
    InvalidEvaluation
        There is only one place.
    """
    others = [i for i, place in enumerate(places) if place != places[index]]
    if not others:
        raise InvalidEvaluation(f"the arm shuffled needs chips of two places, all lie at {places[index]!r}; leave the arm out")
    return others[int(np.random.default_rng((seed, index)).integers(len(others)))]


def possible_arms(arms: Sequence[str], places: Sequence[str]) -> tuple[str, ...]:
    """Return the arms that chips of these places offer: where all are of one place there is no other place's text to give."""
    if "shuffled" in arms and len(set(places)) < 2:
        log.warning("arm shuffled left out: its attributes are those of another place, and all chips lie at %s", places[0])
        return tuple(arm for arm in arms if arm != "shuffled")
    return tuple(arms)
