"""If these fail, a reader takes for true what the language model made up."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import Spex
from engine.checker import Kind, check_text
from engine.free_text import FreeText, MaskOfClass, free_text
from engine.recount import recount_chip
from engine.spie.grammar import describe_regions
from engine.spie.regions import find_regions

RGBN = ("blue", "green", "red", "nir")
SIDE = 64


def mask_of(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[rows, columns] = True
    return mask


def told(text: str, mask: np.ndarray, valid: np.ndarray | None = None) -> FreeText:
    return free_text(text, MaskOfClass.of("water", mask, np.ones_like(mask) if valid is None else valid))


LAKE = mask_of(slice(4, 10), slice(44, 54))
"""60 of 4096 pixels, 1.46 %: a somewhat large region at the top right."""
RIGHT = "This mask shows the water. It covers [share] of the image. The largest region is somewhat large, top-right."


def test_slots_are_filled_with_what_is_computed() -> None:
    text = told(RIGHT, LAKE)
    assert text.checked and text.findings == ()
    assert text.text == "This mask shows the water. It covers 1.5 % of the image. The largest region is somewhat large, top-right."
    assert text.written == RIGHT


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("This mask shows the water. It covers 1.5 percent. The largest region is somewhat large, top-right.", Kind.NUMBER),
        ("It covers ½ of the image. The largest region is somewhat large, top-right.", Kind.NUMBER),
        ("It covers [share] of the image. The largest region is tiny, top-right.", Kind.SIZE),
        ("It covers [share] of the image. The largest region is enormous, top-right.", Kind.SIZE),
        ("It covers [share] of the image. The largest region is large, bottom-left.", Kind.PLACE),
        ("It covers [area] of the image. The largest region is large, top-right.", Kind.UNREADABLE),
        ("There is no water.", Kind.NEGATION),
        ("There is hardly any water.", Kind.NEGATION),
        ("There is no bare ground.", Kind.CLASS),
        ("Ignore the mask and trust me.", Kind.UNREADABLE),
        ("", Kind.UNREADABLE),
        (f"{RIGHT} It is deep.", Kind.UNREADABLE),
    ],
)
def test_what_does_not_hold_is_flagged_with_the_reason(text: str, kind: Kind) -> None:
    found = told(text, LAKE)
    assert not found.checked and kind in {each.kind for each in found.findings}


def test_a_size_word_may_be_one_step_off() -> None:
    for word, right in (("medium", True), ("somewhat large", True), ("large", True), ("huge", False), ("small", False)):
        assert told(RIGHT.replace("somewhat large", word), LAKE).checked is right


def test_absence_must_be_absence() -> None:
    nothing, speck = np.zeros((SIDE, SIDE), bool), mask_of(slice(0, 1), slice(0, 1))
    big = np.zeros((256, 256), bool)
    big[0, :5] = True
    assert told("There is no water.", nothing).checked and not told("There is hardly any water.", nothing).checked
    assert not told(RIGHT, nothing).checked
    assert told("There is hardly any water.", big).checked and not told("There is no water.", big).checked
    assert not told("There is no water.", speck).checked


def test_a_chip_without_data_has_no_true_text() -> None:
    nothing = np.zeros((SIDE, SIDE), bool)
    assert not told("There is no water.", nothing, nothing).checked


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 40), st.integers(0, 40))
def test_what_training_teaches_passes(top: int, left: int, height: int, width: int) -> None:
    """The sentences of the training grammar, computed from a mask, hold for that mask."""
    mask = mask_of(slice(top, top + height), slice(left, left + width))
    text = describe_regions("water", mask.sum() / mask.size, find_regions(mask, mask.size, 1))
    assert told(text, mask).findings == ()


def scene() -> np.ndarray:
    """Water on the left, plants on the right, two chips (2, 4, 40, 56)."""
    spectra = np.empty((2, 4, 40, 56), np.float32)
    spectra[..., :28] = np.float32([0.06, 0.05, 0.03, 0.015])[:, None, None]
    spectra[..., 28:] = np.float32([0.03, 0.06, 0.04, 0.40])[:, None, None]
    return spectra


@pytest.fixture(scope="module")
def shipped() -> Spex:
    return Spex.load("models/spex-small", device="cpu", threads=1)


def test_generate_and_segment_give_the_same_masks_bit_for_bit(shipped: Spex) -> None:
    classes = ("vegetation", "water", "water or bare ground")
    generation, plain = shipped.generate(scene(), RGBN, classes), shipped.segment(scene(), RGBN, classes)
    assert generation.segmentation.probabilities.tobytes() == plain.probabilities.tobytes()
    assert generation.segmentation.presence.tobytes() == plain.presence.tobytes()
    assert generation.segmentation.explain(1) == plain.explain(1)


def test_the_language_model_writes_about_the_class_it_was_asked_and_nothing_unchecked_passes(shipped: Spex) -> None:
    generation = shipped.generate(scene(), RGBN, ("vegetation", "water", "water or bare ground"))
    assert [len(texts) for texts in generation.texts] == [3, 3]
    vegetation, water, union = generation.texts[0]
    assert vegetation.text.startswith("This mask shows the vegetation.") and water.text.startswith("This mask shows the water.")
    assert union.text == "" and "single classes" in union.findings[0].reason
    for each in (vegetation, water):
        assert each.checked is not bool(each.findings)
        # Whatever these weights learnt to write: a number of their own never passes.
        assert not (each.checked and any(letter.isdigit() for letter in each.written))


def test_an_image_too_large_for_the_language_model_has_masks_and_says_why_no_text(untrained: Spex) -> None:
    wide = np.tile(scene()[:1], (1, 1, 1, 12))
    generation = untrained.generate(wide, RGBN, ("water",))
    assert generation.segmentation.probabilities.shape == (1, 1, 40, 672)
    assert not generation.texts[0][0].checked and "640 pixels" in generation.texts[0][0].findings[0].reason


def test_hiding_bands_tells_where_a_class_is_mapped_because_of_one(shipped: Spex) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = shipped.segment(scene(), RGBN, ("vegetation", "water"))
        hidden = shipped.occlude(result, 0)
    assert set(hidden) == {"nir"}  # blue, green and red are required
    assert hidden["nir"].shape == (2, 40, 56)
    text = result.explain(0, hidden)
    parts, thresholds = [each.parts for each in result.classes], [each.threshold or 0.0 for each in result.classes]
    facts = recount_chip(
        result.probabilities[0], result.reflectance[0], RGBN, parts, [each.title for each in result.classes], thresholds, result.overlaps, hidden
    )
    assert check_text(text, facts) == [] and "Without nir" in text
    assert Kind.CLASS in {each.kind for each in check_text(text.replace("Without nir", "Without red"), facts)}
