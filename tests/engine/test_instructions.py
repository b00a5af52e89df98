"""What the shipped model makes of words: tested on its real weights and on real chips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine import ClassQuery, Spex
from engine.errors import UnknownClass
from engine.lexicon import DEFAULT_TERMS
from engine.planner import Planner
from engine.processing import Request
from engine.spie.grammar import INSTRUCTIONS, attributes_text
from engine.spie.priors import spectral_prior
from engine.spie.regions import find_regions
from engine.training.data import CLASSES, IGNORE, TRAINING_BANDS, Chips, load_chips

UNSEEN_TEMPLATES = (
    "Please delineate all of the {name} on this satellite picture.",
    "I want a binary mask of the {name}.",
    "Can you draw where the surface is covered by {name}?",
)

UNKNOWN_WORDS = """
watter wate waterfall water_tower hot_water waters_edge watr_bodies vegitation vegetations vegetable vegetarian_food bilding
buildingss built_up_areas_north building_permits builder bare_feet bare_sol bar_ground barrens_creek bear treees tree_house
dead_trees christmas_tree_farm forrest deforestation forest_fire burnt_forest crop_circle irrigated_cropland croplands_and_snow
farm farmyard wheat maize rice_paddies vineyard olive_groves grasss grass shrub lawn golf_course solar_panels snow ice glacier
clouds shadow roads railway airport ship parking_lot swimming_pool oil_spill coral_reef desert sand_dunes wetlnd wet_land_use
mangrove_crabs tundra land
"""


@pytest.fixture(scope="module")
def shipped() -> Spex:
    return Spex.load("models/spex-small", device="cpu")


@pytest.fixture(scope="module")
def val(shared_data: Path) -> Chips:
    return load_chips(shared_data / "chips" / "hls-worldcover" / "val.npz")


def classes_of(planner: torch.nn.Module, chips: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return np.stack([planner(torch.from_numpy(chip)[None])[0].argmax(0).numpy() for chip in chips])


def mean_iou(truth: np.ndarray, guess: np.ndarray) -> float:
    known = truth != IGNORE
    return float(np.mean([iou(known & (truth == k), known & (guess == k)) for k in range(len(CLASSES))]))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_unseen_templates_of_known_words_give_the_same_map(shipped, val):
    assert not set(UNSEEN_TEMPLATES) & set(INSTRUCTIONS)
    canonical = classes_of(shipped.planner(TRAINING_BANDS, CLASSES), val.reflectance)
    known = mean_iou(val.clean, canonical)
    for template in UNSEEN_TEMPLATES:
        phrases = [shipped.processor.lexicon.terms[name].phrase for name in CLASSES]
        asked = [ClassQuery(name, instruction=template.format(name=phrase)) for name, phrase in zip(CLASSES, phrases, strict=True)]
        guess = classes_of(shipped.planner(TRAINING_BANDS, asked), val.reflectance)
        assert mean_iou(val.clean, guess) >= known - 0.01, template
        assert (guess == canonical).mean() > 0.98


def test_every_synonym_of_every_class_gives_the_map_of_its_class(shipped, val):
    """One chip with several classes; the word is inside the instruction, so the language model reads it."""
    chip = val.reflectance[8][None]
    terms = {term.name: term for term in DEFAULT_TERMS}
    canonical = classes_of(shipped.planner(TRAINING_BANDS, CLASSES), chip)
    for name in CLASSES:
        for word in terms[name].words:
            asked = [ClassQuery(each, instruction=f"Segment the {word}." if each == name else "") for each in CLASSES]
            assert (classes_of(shipped.planner(TRAINING_BANDS, asked), chip) == canonical).mean() > 0.93, word


def test_the_class_that_is_named_decides_not_the_attributes_beside_it(shipped, val):
    """The same attributes under two classes give two masks; two attributes under one class give nearly one."""
    agreed, apart = [], []
    for chip in val.reflectance[[8, 22, 39]]:
        told = {}
        for name in ("water", "vegetation"):
            prior = spectral_prior(name, chip, TRAINING_BANDS)
            assert prior is not None and prior.any()
            told[name] = attributes_text(find_regions(prior, longest=1))
        masks = {}
        for source, attributes in told.items():
            requests = [[Request(name, attributes=attributes) for name in CLASSES]]
            guess = classes_of(Planner(shipped.model, shipped.processor.prompts(requests), TRAINING_BANDS), chip[None])[0]
            for name in told:
                masks[name, source] = guess == CLASSES.index(name)
        agreed += [iou(masks[name, "water"], masks[name, "vegetation"]) for name in told]
        apart += [iou(masks["water", source], masks["vegetation", source]) for source in told]
    assert min(agreed) > 0.9 and max(apart) < 0.05


def test_a_union_is_the_union_of_its_parts(shipped, val):
    together, alone, threshold = [], [], 0.5
    for chip in val.reflectance[[2, 8, 22, 39]]:
        union, trees, water = shipped.segment(chip[None], TRAINING_BANDS, ("trees or water", "trees", "water")).probabilities[0]
        together.append(union > threshold)
        alone.append((trees > threshold) | (water > threshold))
    assert iou(np.stack(together), np.stack(alone)) >= 0.9


def test_unknown_words_are_refused_with_the_nearest_known_ones(shipped):
    words = [word.replace("_", " ") for word in UNKNOWN_WORDS.split()]
    assert len(words) >= 60
    for word in words:
        with pytest.raises(UnknownClass, match="nearest: "):
            shipped.resolve([word])


def test_every_listed_synonym_is_accepted(shipped):
    for term in shipped.processor.lexicon.terms.values():
        for word in term.words:
            (query,) = shipped.resolve([word])
            assert query.parts == (term.name,)
