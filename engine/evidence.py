"""What each class usually looks like in the spectral indices: the rules by which a sentence calls a band consistent or unusual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SpectralRule:
    """A class usually has an index above (or below) a limit."""

    index: str
    """spyndex's name."""
    above: bool
    limit: float
    specific: bool = False
    """Whether little else has it, so that pixels elsewhere that have it are worth a word."""

    @property
    def number(self) -> int:
        """The limit in ten-thousandths."""
        return round(self.limit * 10_000)


_DRY = SpectralRule("MNDWI", False, 0.0)

RULES: Mapping[str, tuple[SpectralRule, ...]] = {
    "water": (SpectralRule("MNDWI", True, 0.0, True), SpectralRule("NDWI", True, 0.0, True), SpectralRule("NDVI", False, 0.2)),
    "vegetation": (SpectralRule("NDVI", True, 0.2), _DRY),
    "tree_cover": (SpectralRule("NDVI", True, 0.35), _DRY),
    "cropland": (SpectralRule("NDVI", True, 0.2), _DRY),
    "grass_or_shrub": (SpectralRule("NDVI", True, 0.2), _DRY),
    "wetland": (SpectralRule("NDVI", True, 0.2), SpectralRule("NDMI", True, 0.0)),
    "building": (SpectralRule("NDVI", False, 0.5), _DRY, SpectralRule("NGRDI", False, 0.05)),
    "bare": (SpectralRule("NDVI", False, 0.25), _DRY, SpectralRule("NGRDI", False, 0.0)),
}
"""By the model's name of the class, the most telling first. The children of vegetation have its rules with what can be said beyond them; each rule
holds on at least three quarters of the labelled pixels of its class where the labels are trusted (tested on the chips)."""


def _limits() -> dict[str, list[int]]:
    limits: dict[str, set[int]] = {}
    for rules in RULES.values():
        for rule in rules:
            limits.setdefault(rule.index, set()).add(rule.number)
    return {index: sorted(numbers) for index, numbers in sorted(limits.items())}


LIMITS: Mapping[str, list[int]] = _limits()
"""Every index of a rule with its limits in ten-thousandths: what has to be counted."""


def rules_of(parts: Sequence[str]) -> tuple[SpectralRule, ...]:
    """Return the rules of a class by the model's name; of a union of several what all of them have, at the laxest limit.

    Empty where nothing is known of a part, or the parts have nothing in common.
    """
    first, *others = [RULES.get(part, ()) for part in parts]
    shared = []
    for rule in first:
        alike = [next((each for each in rules if (each.index, each.above) == (rule.index, rule.above)), None) for rules in others]
        if None not in alike:
            shared.append((min if rule.above else max)([rule, *filter(None, alike)], key=lambda each: each.limit))
    return tuple(shared)
