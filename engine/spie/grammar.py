"""Instructions and answers: a small grammar, so that every sentence is right by construction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from engine.spie.regions import Region

VERBS = ("Segment", "Map", "Show", "Find", "Mark", "Extract", "Outline", "Identify", "Highlight", "Locate")
OBJECTS = ("the {name}", "all {name}", "{name}", "every pixel of {name}", "all areas of {name}", "the {name} regions")
PLACES = ("", " in this image", " in this scene", " here", " on the basis of the spectral bands", " and show their mask")
QUESTIONS = ("Where is {name}?", "Is there any {name}?", "Which pixels are {name}?", "Describe the {name} regions and show their mask.")
INSTRUCTIONS = (*(f"{verb} {what}{where}." for verb in VERBS for what in OBJECTS for where in PLACES), *QUESTIONS)
"""Every instruction of the grammar; the first is the canonical one."""


def canonical_instruction(phrase: str) -> str:
    """Return the one instruction that maps use."""
    return INSTRUCTIONS[0].format(name=phrase)


def training_instruction(phrase: str, generator: np.random.Generator, canonical: float = 0.3) -> str:
    """Return the canonical instruction with a chance, else one of all at random."""
    if generator.random() < canonical:
        return canonical_instruction(phrase)
    return str(INSTRUCTIONS[int(generator.integers(len(INSTRUCTIONS)))]).format(name=phrase)


def canonical_answer(phrase: str) -> str:
    """Return the answer whose hidden states become the mask: the same words in training, maps and generation, whatever the image shows."""
    return f"This mask shows the {phrase}."


def attributes_text(regions: Sequence[Region]) -> str:
    """Return regions as JSON with SPIE's keys in SPIE's order, three decimals; an empty text for no region."""
    if not regions:
        return ""
    rows = [
        {
            "Size of area": region.size,
            "Centroid": _rounded(region.centroid),
            "Location": region.location,
            "Bounding box": [_rounded(corner) for corner in region.box],
        }
        for region in regions
    ]
    return " Attributes: " + json.dumps(rows)


def _rounded(point: Sequence[float]) -> list[float]:
    return [round(value, 3) for value in point]


SHARE_SLOT = "[share]"
"""Stands where code writes the computed share; the language model itself never writes a number."""


def describe_regions(phrase: str, share: float, regions: Sequence[Region]) -> str:
    """Return the description that follows a canonical answer: whether there is any (share 0..1 of the valid pixels) and where the largest lies."""
    if not regions:
        return f" There is hardly any {phrase}." if share else f" There is no {phrase}."
    largest = regions[0]
    return f" It covers {SHARE_SLOT} of the image. The largest region is {largest.size}, {largest.location}."
