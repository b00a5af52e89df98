"""Instructions and answers: a small grammar, so that every sentence is right by construction."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from engine.spie.regions import Region

INSTRUCTIONS = (
    "Segment the {name}.",
    "Segment all {name} in this image.",
    "Show the {name}.",
    "Map the {name}.",
    "Where is {name}?",
    "Mark every pixel of {name}.",
    "Extract the {name} from this scene.",
    "Find {name}.",
    "Outline the {name} on the basis of the spectral bands.",
    "Describe the {name} regions and show their mask.",
)


def canonical_instruction(phrase: str) -> str:
    """Return the one instruction that maps use."""
    return INSTRUCTIONS[0].format(name=phrase)


def training_instruction(phrase: str, generator: np.random.Generator) -> str:
    """Return one of the instructions at random."""
    return str(generator.choice(INSTRUCTIONS)).format(name=phrase)


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


def describe_regions(phrase: str, share: float, regions: Sequence[Region]) -> str:
    """Return the description that follows a canonical answer: how much there is (share 0..1 of the valid pixels) and where the largest lies."""
    if not regions:
        return f" There is hardly any {phrase}." if share else f" There is no {phrase}."
    largest = regions[0]
    percent = "less than 1" if share < 0.01 else str(round(100 * share))
    return f" It covers {percent} percent. The largest region is {largest.size}, {largest.location}."
