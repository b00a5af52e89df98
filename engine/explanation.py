"""Sentences about a land-cover map. Every number in a sentence is one of the statistics given; nothing is invented.

What the bands show is called consistent with a class or unusual for it. A class is said to be mapped *because* of a band only where hiding that band
from the model changes the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.evidence import SpectralRule
from engine.statistics import CERTAIN, CLOSE, POSSIBLE, ClassStatistics, SceneStatistics

RULES_IN_TEXT = 2
TELLING = 0.01
"""A hidden band that changes a smaller share of a class is not worth a sentence."""


def describe(statistics: Sequence[ClassStatistics]) -> list[str]:
    """Return the sentences about each class, one text a class, in the order given."""
    return [_describe(each) for each in statistics]


def _describe(s: ClassStatistics) -> str:
    if not s.valid_pixels:
        return f"{s.title}: there are no pixels with data."
    told = [_absence(s), _elsewhere(s)] if not s.pixels else [_area(s), _second(s), *_evidence(s), _elsewhere(s), _border(s), *_occlusion(s)]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in told if sentence)


def _absence(s: ClassStatistics) -> str:
    found = f"{s.title} was not found in {s.valid_pixels:,} pixels with data"
    if not s.possible_pixels:
        return f"{found}."
    return f"{found}, though {percent(s.possible_pixels / s.valid_pixels)} of them have a probability above {percent(POSSIBLE)}."


def _area(s: ClassStatistics) -> str:
    text = f"{s.title} covers {percent(s.share)} of the "
    if s.hectares is not None and s.certain_hectares is not None and s.possible_hectares is not None:
        low, high = f"{s.certain_hectares:,.1f} ha", f"{s.possible_hectares:,.1f} ha"
        text += f"mapped area, {s.hectares:,.1f} ha ({low} with a confidence above {percent(CERTAIN)}, {high} above {percent(POSSIBLE)})"
    else:
        text += "pixels with data"
        if s.certain_pixels is not None and s.possible_pixels is not None:
            low, high = percent(s.certain_pixels / s.valid_pixels), percent(s.possible_pixels / s.valid_pixels)
            text += f" ({low} at a probability above {percent(CERTAIN)}, {high} above {percent(POSSIBLE)})"
    return text + ("." if s.mean_confidence is None else f", with a mean confidence of {percent(s.mean_confidence)}.")


def _second(s: ClassStatistics) -> str:
    if s.runner_up is None:
        return ""
    second = f"Second is {lower(s.runner_up.title)} on {percent(s.runner_up.share)} of it"
    return f"{second}; on {percent(s.runner_up.close)} of it the second comes within {round(100 * CLOSE)} points."


def _evidence(s: ClassStatistics) -> list[str]:
    """Return what the indices of its pixels say for and against the class, one sentence an index."""
    rules = [rule for rule in s.rules if rule.index in s.indices and s.indices[rule.index].pixels][:RULES_IN_TEXT]
    if not rules:
        return [f"No spectral index of these bands speaks for or against {lower(s.title)}."]
    return [_sides(s, rule) for rule in rules]


def _sides(s: ClassStatistics, rule: SpectralRule) -> str:
    counts = s.indices[rule.index]
    usual, unusual = counts.split(rule)
    mean = f" (mean {number(counts.mean)})"
    against = f"{percent(unusual)} of it has {rule.index} {side(not rule.above)} {limit(rule)}"
    if not usual:
        return f"{against}{mean}, unusual for {lower(s.title)}."
    told = f"{percent(usual)} of it has {rule.index} {side(rule.above)} {limit(rule)}{mean}, consistent with {lower(s.title)}"
    return f"{told}; {against}, unusual for {lower(s.title)}." if unusual else f"{told}."


def _elsewhere(s: ClassStatistics) -> str:
    """Return how many pixels that were not given to the class look like it."""
    rule = next((rule for rule in s.rules if rule.specific and rule.index in s.elsewhere), None)
    if rule is None or not s.elsewhere[rule.index].pixels:
        return ""
    usual, _ = s.elsewhere[rule.index].split(rule)
    whose = "the other pixels with data" if s.pixels else "the pixels with data"
    return f"{percent(usual)} of {whose} have {rule.index} {side(rule.above)} {limit(rule)}, which is usual for {lower(s.title)}."


def _border(s: ClassStatistics) -> str:
    if not s.neighbours:
        return ""
    title, share = max(s.neighbours.items(), key=lambda item: (item[1], item[0]))
    return f"{percent(share)} of its border is with {lower(title)}."


def _occlusion(s: ClassStatistics) -> list[str]:
    """Return what hiding a band changes: the only place where a sentence says because."""
    told = [
        f"Without {each.band} {percent(each.changed)} of it would be mapped otherwise, mostly as {lower(each.title)}:"
        f" that much is {lower(s.title)} because of {each.band}."
        for each in s.occlusions
        if each.changed >= TELLING
    ]
    quiet = [each.band for each in s.occlusions if each.changed < TELLING]
    return [*told, f"Without {' or '.join(quiet)} less than {100 * TELLING:.0f} % of it would be mapped otherwise."] if quiet else told


def describe_scene(s: SceneStatistics) -> str:
    """Return the sentences about a whole chip or map."""
    if not s.valid_pixels:
        return "Scene: there are no pixels with data."
    whole = f"{s.valid_pixels:,} pixels with data" if s.hectares is None else f"{s.hectares:,.1f} ha with data"
    ordered = sorted(s.shares.items(), key=lambda item: -item[1])
    listed = [f"{percent(share)} {lower(title)}" for title, share in ordered] + [f"{percent(s.other)} none of these"]
    text = f"Scene of {whole}: {', '.join(listed)}."
    missing = s.all_pixels - s.valid_pixels
    if not missing:
        return text
    reasons = [f"{percent(pixels / s.all_pixels)} {lower(reason)}" for reason, pixels in s.reasons.items() if pixels]
    share = percent(missing / s.all_pixels)
    return f"{text} {share[0].upper() + share[1:]} of all {s.all_pixels:,} pixels have no data{': ' + ', '.join(reasons) if reasons else ''}."


def lower(title: str) -> str:
    """Return a title as it stands inside a sentence: a first word in plain capitalisation starts small."""
    return title[:1].lower() + title[1:] if title[1:2].islower() else title


def side(above: bool) -> str:
    """Return the word for a side of a limit."""
    return "above" if above else "below"


def limit(rule: SpectralRule) -> str:
    """Return a rule's limit as text."""
    return f"{rule.limit:g}"


def number(value: float) -> str:
    """Return an index as text, two decimals, no negative zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def percent(share: float) -> str:
    """Return a share 0..1 as text in percent: one decimal below 10 % and above 99 %, so that neither nothing nor everything is rounded to."""
    value = 100 * share
    if 0 < value < 0.05:
        return "less than 0.1 %"
    if 99.95 <= value < 100:
        return "more than 99.9 %"
    return f"{value:.1f} %" if 0 < value < 9.95 or 99 < value < 100 else f"{value:.0f} %"
