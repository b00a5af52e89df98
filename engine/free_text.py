"""What the language model itself writes about a mask: slots filled by code, every statement held against the mask, flagged where it fails.

The model writes one of three sentences and no number: where one belongs stands a slot. A text is never corrected, only checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.checker import Finding, Kind
from engine.explanation import percent
from engine.spie.grammar import SHARE_SLOT, canonical_answer
from engine.spie.regions import SIZE_WORDS, Region, find_regions

_SIZES = [word for _, word in SIZE_WORDS]
_FORMS = (
    re.compile(r"There is (?P<absence>no|hardly any) (?P<phrase>.+)\."),
    re.compile(rf"It covers {re.escape(SHARE_SLOT)} of the image\. The largest region is (?P<size>[a-z ]+), (?P<location>[a-z-]+)\."),
)
_SLOT = re.compile(r"\[[^\]]*\]")
SIZE_STEPS = 1
"""A size word may be this many steps from the right one."""


@dataclass(frozen=True)
class FreeText:
    """A text of the language model about one class on one chip."""

    text: str
    """As a person reads it: slots filled."""
    checked: bool
    """Whether every statement in it holds for the mask; do not show a text as true that is not."""
    findings: tuple[Finding, ...]
    """What does not hold; empty where `checked`."""
    written: str
    """What the language model wrote, slots and all."""


@dataclass(frozen=True)
class MaskOfClass:
    """What a text is held against."""

    phrase: str
    """How the class is named inside a sentence."""
    pixels: int
    valid_pixels: int
    """Pixels with data."""
    largest: Region | None
    """None where no region is large enough to be described."""

    @classmethod
    def of(cls, phrase: str, mask: NDArray[np.bool_], valid: NDArray[np.bool_]) -> MaskOfClass:
        """Return the facts of a mask (H, W) among the pixels with data (H, W)."""
        pixels = int(valid.sum())
        regions = find_regions(mask, pixels, 1)
        return cls(phrase, int(mask.sum()), pixels, regions[0] if regions else None)

    @property
    def share(self) -> float:
        """Share of the pixels with data, 0..1."""
        return self.pixels / self.valid_pixels if self.valid_pixels else 0.0


def free_text(written: str, mask: MaskOfClass) -> FreeText:
    """Return what the language model wrote, from its canonical answer on, filled and checked."""
    told = written.strip().removeprefix(canonical_answer(mask.phrase)).strip()
    findings = tuple(Finding(kind, told, reason) for kind, reason in _findings(told, mask))
    return FreeText(written.strip().replace(SHARE_SLOT, percent(mask.share)), not findings, findings, written.strip())


def unwritten(reason: str) -> FreeText:
    """Return the flagged empty text of a case for which the language model is not asked."""
    return FreeText("", False, (Finding(Kind.MISSING, "", reason),), "")


def _findings(told: str, mask: MaskOfClass) -> Iterator[tuple[Kind, str]]:
    if not mask.valid_pixels:
        yield Kind.MISSING, "there are no pixels with data, so nothing can be said"
    outside = _SLOT.sub("", told)
    if any(letter.isnumeric() for letter in outside):
        yield Kind.NUMBER, "holds digits outside slots; numbers are computed, not written"
    strange = [slot for slot in _SLOT.findall(told) if slot != SHARE_SLOT]
    if strange:
        yield Kind.UNREADABLE, f"holds the unknown slot {strange[0]}"
    match = next((match for form in _FORMS if (match := form.fullmatch(told))), None)
    if match is None:
        yield Kind.UNREADABLE, "is none of the sentences that the language model was taught"
    else:
        yield from _contradictions(match.groupdict(), mask)


def _contradictions(said: Mapping[str, str], mask: MaskOfClass) -> Iterator[tuple[Kind, str]]:
    if "absence" in said:
        if said["phrase"] != mask.phrase:
            yield Kind.CLASS, f"speaks of {said['phrase']}, not of {mask.phrase}"
        amount = "none" if not mask.pixels else "hardly any" if mask.largest is None else f"a region of {mask.largest.area} pixels"
        if amount != ("none" if said["absence"] == "no" else "hardly any"):
            yield Kind.NEGATION, f"says there is {said['absence']} {mask.phrase}, the mask shows {amount}"
    elif mask.largest is None:
        yield Kind.NEGATION, f"describes a region, the mask shows {'hardly any' if mask.pixels else 'none'}"
    else:
        yield from _misplaced(said, mask.largest)


def _misplaced(said: Mapping[str, str], largest: Region) -> Iterator[tuple[Kind, str]]:
    if said["size"] not in _SIZES or abs(_SIZES.index(said["size"]) - _SIZES.index(largest.size)) > SIZE_STEPS:
        yield Kind.SIZE, f"calls the largest region {said['size']}, it is {largest.size}"
    if said["location"] != largest.location:
        yield Kind.PLACE, f"puts the largest region at {said['location']}, its centroid lies at {largest.location}"
