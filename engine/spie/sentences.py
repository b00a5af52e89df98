"""Instructions and answers of the data set: every statement is computed from a mask, and can be read back from the text and compared with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.spie.errors import InconsistentSample
from engine.spie.grammar import attributes_text, canonical_answer, training_instruction
from engine.spie.regions import LARGEST, Region, SizeWords, count_regions, find_regions

PHRASES = {"building": "buildings", "bare": "bare ground"}
"""How a class is named inside a sentence, where its name does not do."""

DESCRIBED = 3
"""So many regions are described one by one in an answer."""

_ORDINALS = ("largest", "second largest", "third largest")
_ATTRIBUTES = " Attributes: "
_COVER = re.compile(r"covers ([\d.]+) percent of the pixels with data, ([\d.]+) hectares")
_COUNT = re.compile(r"hectares, in (one|\d+) regions?\.")
_REGION = re.compile(r"The (only region|largest|second largest|third largest) is ([a-z ]+) and lies in the ([a-z-]+), around \(([\d.]+), ([\d.]+)\)")


@dataclass(frozen=True)
class MaskSummary:
    """What an answer may say of a mask."""

    pixels: int
    """Pixels of the class."""
    valid_pixels: int
    """Pixels with data and, where the mask comes from labels, with a label."""
    resolution: float
    """Metres a pixel."""
    count: int
    """Regions of at least the minimum area."""
    regions: tuple[Region, ...]
    """The largest ten of them, largest first."""

    @property
    def percent(self) -> float:
        """Share of the valid pixels in percent."""
        return 100 * self.pixels / self.valid_pixels if self.valid_pixels else 0.0

    @property
    def hectares(self) -> float:
        """Area on the ground."""
        return self.pixels * self.resolution**2 / 10_000


def summarise(mask: NDArray[np.bool_], valid_pixels: int, resolution: float, minimum_pixels: int, words: SizeWords | None = None) -> MaskSummary:
    """Return what can be said of a mask (H, W)."""
    regions = find_regions(mask, valid_pixels, minimum_pixels=minimum_pixels, size_words=words)
    return MaskSummary(int(mask.sum()), valid_pixels, resolution, count_regions(mask, minimum_pixels), tuple(regions))


def phrase_of(target: str) -> str:
    """Return how a class is named inside a sentence."""
    return PHRASES.get(target, target.replace("_", " "))


def attributes_json(regions: Sequence[Region]) -> str:
    """Return regions as JSON with SPIE's keys in SPIE's order and three decimals; ``[]`` for none."""
    return attributes_text(regions).removeprefix(_ATTRIBUTES) or "[]"


def instruction_of(phrase: str, attributes: str | None, seed: str) -> str:
    """Return an instruction; `attributes` (JSON) follow unless None. The same `seed` gives the same words."""
    generator = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    return training_instruction(phrase, generator) + ("" if attributes is None else _ATTRIBUTES + attributes)


def attributes_of(instruction: str) -> str | None:
    """Return the attributes (JSON) that an instruction carries, None where it carries none."""
    _, found, attributes = instruction.partition(_ATTRIBUTES)
    return attributes if found else None


def answer_of(phrase: str, summary: MaskSummary) -> str:
    """Return the answer: the canonical one, how much there is, and where the largest regions lie."""
    return f"{canonical_answer(phrase)} {_how_much(phrase, summary)}{_where(summary)}"


def _how_much(phrase: str, summary: MaskSummary) -> str:
    if not summary.pixels:
        return _absent(phrase)
    cover = f"It covers {_percent(summary)} percent of the pixels with data, {_hectares(summary)} hectares"
    if not summary.count:
        return f"{cover}, scattered in specks too small to be regions."
    return f"{cover}, in {'one region' if summary.count == 1 else f'{summary.count} regions'}."


def _absent(phrase: str) -> str:
    return f"It is empty: this image has no {phrase}."


def _percent(summary: MaskSummary) -> str:
    return f"{summary.percent:.2f}"


def _hectares(summary: MaskSummary) -> str:
    return f"{summary.hectares:.2f}"


def _where(summary: MaskSummary) -> str:
    names = ("only region",) if summary.count == 1 else _ORDINALS
    return "".join(
        f" The {name} is {region.size} and lies in the {region.location}, around ({region.centroid[0]:.3f}, {region.centroid[1]:.3f})."
        for name, region in zip(names, summary.regions[:DESCRIBED], strict=False)
    )


def check_answer(answer: str, phrase: str, summary: MaskSummary, attributes: str) -> None:
    """Raise `InconsistentSample` where an answer says anything else than its mask and the mask's attributes (JSON) do.

    The text is read back by its own patterns, so that this does not repeat how it was written.
    """
    rows = json.loads(attributes)
    claims = [answer.startswith(canonical_answer(phrase)), len(rows) == min(summary.count, LARGEST)]
    claims.append((_absent(phrase) in answer) == (summary.pixels == 0))
    cover, count, told = _COVER.search(answer), _COUNT.search(answer), _REGION.findall(answer)
    if summary.pixels:
        claims.append(cover is not None and (cover[1], cover[2]) == (_percent(summary), _hectares(summary)))
    if rows:
        claims.append(count is not None and (1 if count[1] == "one" else int(count[1])) == summary.count)
    claims.append(len(told) == min(len(rows), DESCRIBED))
    for (_, size, location, x, y), row in zip(told, rows, strict=False):
        claims.append((size, location, [float(x), float(y)]) == (row["Size of area"], row["Location"], row["Centroid"]))
    if not all(claims):
        raise InconsistentSample(f"the answer {answer!r} does not agree with a mask of {summary.pixels} pixels and the attributes {attributes}")
