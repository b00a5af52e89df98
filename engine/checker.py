"""Reads the sentences of an explanation with a grammar of its own and holds every statement against what was counted again.

Written apart from the writer and sharing nothing with it; see `engine.recount` for what the statements are held against.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from engine.checker_grammar import patterns_of, quantity, small
from engine.recount import ABOVE, BELOW, TOLD, ClassFacts, Facts, Sides

SLACK = 0.01
"""Percent points (or hundredths of an index's last digit) that two ways of counting may differ by."""
HIDDEN_WORTH_TELLING = 1.0
"""Percent of a class that a hidden band must change."""


class Kind(StrEnum):
    """What is wrong with a statement."""

    NUMBER = "number"
    UNIT = "unit"
    DIRECTION = "direction"
    CLASS = "class"
    NEGATION = "negation"
    SIZE = "size"
    PLACE = "place"
    MISSING = "missing"
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Finding:
    """One contradiction between a text and what it is about."""

    kind: Kind
    sentence: str
    """The sentence; of something missing, the title of the class."""
    reason: str

    def __str__(self) -> str:
        """Return the finding in one line."""
        return f"{self.kind}: {self.reason} ({self.sentence})"


def check_text(text: str, facts: Facts) -> list[Finding]:
    """Return every contradiction between a whole text (all classes, then the scene) and the facts; empty where there is none."""
    return _Reading(facts).of(text)


Groups = Mapping[str, str | None]


class _Reading:
    """One text under examination; the class that sentences are about is the one whose first sentence came last."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._patterns = patterns_of([each.title for each in facts.classes])
        self._position = -1
        self._told: list[set[str]] = [set() for _ in facts.classes]
        self._scene: set[str] = set()

    def of(self, text: str) -> list[Finding]:
        found = [finding for name, groups, sentence in self._sentences(text) for finding in self._sentence(name, groups, sentence)]
        return [*found, *self._left_out()]

    def _sentences(self, text: str) -> Iterator[tuple[str, Groups, str]]:
        at = 0
        while at < len(text):
            matches = ((name, pattern.match(text, at)) for name, pattern in self._patterns.items())
            name, match = next(((name, match) for name, match in matches if match), ("", None))
            end = match.end() if match else text.find(". ", at) + 1 or len(text)
            yield name, match.groupdict() if match else {}, text[at:end]
            at = end + 1

    def _sentence(self, name: str, groups: Groups, sentence: str) -> Iterator[Finding]:
        if not name:
            yield Finding(Kind.UNREADABLE, sentence, "no sentence that an explanation may hold")
            return
        if name in ("empty", "absent", "area"):
            self._position += 1
        scene = name in ("nothing", "scene", "missing")
        if not scene and not 0 <= self._position < len(self._facts.classes):
            yield Finding(Kind.CLASS, sentence, "belongs to no class that was asked")
            return
        (self._scene if scene else self._told[self._position]).add(self._topic(name, groups))
        facts = None if scene else self._facts.classes[self._position]
        for kind, reason in _CHECKS[name](groups, self._facts, facts):
            yield Finding(kind, sentence, reason)

    @staticmethod
    def _topic(name: str, groups: Groups) -> str:
        return f"evidence {groups['index']}" if name == "evidence" else f"because {groups['band']}" if name == "because" else name

    def _left_out(self) -> Iterator[Finding]:
        for each, told in zip(self._facts.classes, self._told, strict=True):
            for topic in sorted(_topics(each, self._facts) ^ told):
                yield Finding(Kind.MISSING, each.title, f"{topic} is {'there but has no ground' if topic in told else 'left out'}")
        empty = {"missing"} if self._facts.all_pixels > self._facts.valid_pixels else set()
        wanted = {"scene"} | empty if self._facts.valid_pixels else {"nothing"}
        for topic in sorted(wanted ^ self._scene):
            yield Finding(Kind.MISSING, "scene", f"{topic} is {'there but has no ground' if topic in self._scene else 'left out'}")


def _topics(s: ClassFacts, facts: Facts) -> set[str]:
    """Return what has to be told of a class."""
    if not facts.valid_pixels:
        return {"empty"}
    elsewhere = {"elsewhere"} if s.missed and s.missed[0] in s.elsewhere else set()
    if not s.pixels:
        return {"absent"} | elsewhere
    evidence = [f"evidence {index}" for index, _, _ in s.expected if index in s.indices][:TOLD]
    hidden = {band: sum(becomes.values()) for band, becomes in s.hidden.items()}
    return (
        {"area", *(evidence or ["silent"])}
        | elsewhere
        | ({"second"} if s.seconds else set())
        | ({"border"} if s.borders else set())
        | {f"because {band}" for band, changed in hidden.items() if changed >= HIDDEN_WORTH_TELLING}
        | ({"quiet"} if any(changed < HIDDEN_WORTH_TELLING for changed in hidden.values()) else set())
    )


Problems = Iterator[tuple[Kind, str]]


def _number(groups: Groups, name: str, value: float, unit: str | None = "%", slack: float = SLACK) -> Problems:
    """Yield whether a stated quantity is not the value in its unit, to the digits stated."""
    stated, written = groups[name], groups[f"{name}_unit"]
    if stated is None:
        return
    if written != unit:
        yield Kind.UNIT, f"{stated} is in {written or 'no unit'}, not in {unit or 'no unit'}"
    digits = stated.split()[-1].replace(",", "")
    bound, half = float(digits), 0.5 * 10.0 ** -len(digits.partition(".")[2])
    if stated.lower().startswith("less"):
        fits = bound == 0.1 and 0 < value < 0.1 + slack
    elif stated.lower().startswith("more"):
        fits = bound == 99.9 and 99.9 - slack < value < 100
    elif unit == "%" and half == 0.5 and bound in (0, 100):  # none and all are never rounded to
        fits = abs(value - bound) <= slack
    else:
        fits = abs(value - bound) <= half + slack
    if not fits:
        yield Kind.NUMBER, f"says {stated}, counted {value:.6g}"


def _exact(groups: Groups, name: str, value: float, unit: str | None) -> Problems:
    yield from _number(groups, name, value, unit, 1e-9)


def _is(groups: Groups, name: str, wanted: str | None, kind: Kind = Kind.NEGATION) -> Problems:
    found = groups[name]
    if (found or "").strip().lower() != (wanted or ""):
        yield kind, f"says {(found or 'nothing').strip()!r}, not {wanted or 'nothing'!r}"


def _title(groups: Groups, name: str, wanted: str) -> Problems:
    if groups[name] not in (wanted, small(wanted)):
        yield Kind.CLASS, f"speaks of {groups[name]}, not of {small(wanted)}"


def _most(groups: Groups, shares: Mapping[str, float]) -> tuple[str, Problems]:
    """Return the title a sentence names, and a problem if it is unknown or not the one with the largest share."""
    named = next((title for title in shares if groups["title"] in (title, small(title))), None)
    largest = max(shares, key=lambda title: shares[title]) if shares else "nothing"
    if named is None or shares[named] < shares[largest] - SLACK:
        return largest, iter([(Kind.CLASS, f"speaks of {groups['title']}, most is {small(largest)}")])
    return named, iter(())


def _check_empty(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    yield from _title(groups, "title", s.title)
    yield from _is(groups, "not", "no")


def _check_absent(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    yield from _title(groups, "title", s.title)
    yield from _is(groups, "not", "was not")
    if s.pixels:
        yield Kind.NEGATION, f"says it was not found, {s.pixels} pixels are"
    yield from _exact(groups, "valid", facts.valid_pixels, "pixels")
    possible = s.high if s.hectares is None else 0.0
    if groups["high"] is None:
        if possible > SLACK:
            yield Kind.MISSING, f"{possible:.6g} % reach the lower probability"
    else:
        yield from _number(groups, "high", possible)
        yield from _is(groups, "reach", "have")
        yield from _is(groups, "side_high", ABOVE, Kind.DIRECTION)
        yield from _exact(groups, "possible", 30, "%")


def _check_area(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    yield from _title(groups, "title", s.title)
    yield from _is(groups, "not", "covers")
    yield from _is(groups, "with", "with")
    if not s.pixels:
        yield Kind.NEGATION, "says it is there, no pixel is"
    unit, slack = ("%", SLACK) if s.hectares is None else ("ha", 1e-4)
    yield from _is(groups, "whole", "pixels with data" if s.hectares is None else "mapped area", Kind.CLASS)
    yield from _number(groups, "share", s.share)
    if (groups["hectares"] is None) is not (s.hectares is None):
        yield Kind.UNIT, "hectares belong to a map and only there"
    yield from _number(groups, "hectares", s.hectares or 0.0, "ha", 1e-4)
    yield from _number(groups, "low", s.low, unit, slack)
    yield from _number(groups, "high", s.high, unit, slack)
    for bound, probability in (("low", "certain"), ("high", "possible")):
        yield from _is(groups, f"side_{bound}", ABOVE, Kind.DIRECTION)
        yield from _exact(groups, probability, 70 if bound == "low" else 30, "%")
    yield from _number(groups, "confidence", s.confidence)


def _check_second(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    named, wrong = _most(groups, s.seconds or {})
    yield from wrong
    yield from _is(groups, "not", None)
    yield from _is(groups, "comes", "comes")
    yield from _number(groups, "share", (s.seconds or {}).get(named, 0.0))
    yield from _number(groups, "close", s.close)
    yield from _exact(groups, "points", 20, "points")


def _check_evidence(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    expected = next((each for each in s.expected if each[0] == groups["index"]), None)
    if expected is None or expected[0] not in s.indices:
        yield Kind.CLASS, f"nothing is known of {groups['index']} for {s.title}"
        return
    sides = s.indices[expected[0]]
    usual, unusual = sides.on(expected[1]), sides.on(BELOW if expected[1] == ABOVE else ABOVE)
    first_is_usual = usual > 0
    yield from _one_side(groups, "", s, expected, sides, first_is_usual)
    if groups["share2"] is None:
        if first_is_usual and unusual > SLACK:
            yield Kind.MISSING, f"{unusual:.6g} % lie on the unusual side"
    else:
        yield from _is(groups, "index2", expected[0].lower(), Kind.CLASS)
        yield from _one_side(groups, "2", s, expected, sides, False)
    if groups["mean"] is None:
        yield Kind.MISSING, "the mean is left out"
    yield from _number(groups, "mean", sides.mean, None, 2e-4)


def _one_side(groups: Groups, which: str, s: ClassFacts, expected: tuple[str, str, float], sides: Sides, usual: bool) -> Problems:
    side = expected[1] if usual else BELOW if expected[1] == ABOVE else ABOVE
    yield from _title(groups, f"title{which}", s.title)
    yield from _is(groups, f"has{which}", "has")
    yield from _is(groups, f"side{which}", side, Kind.DIRECTION)
    yield from _is(groups, f"verdict{which}", "consistent with" if usual else "unusual for")
    if float(groups[f"limit{which}"] or "nan") != expected[2]:
        yield Kind.NUMBER, f"the limit is {expected[2]:g}"
    yield from _number(groups, f"share{which}", sides.on(side))


def _check_silent(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    yield from _title(groups, "title", s.title)
    yield from _is(groups, "not", "no")


def _check_elsewhere(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    if s.missed is None or s.missed[0] != groups["index"] or s.missed[0] not in s.elsewhere:
        yield Kind.CLASS, f"nothing is to be said of {groups['index']} elsewhere for {s.title}"
        return
    yield from _title(groups, "title", s.title)
    yield from _is(groups, "other", "other" if s.pixels else None, Kind.CLASS)
    yield from _is(groups, "has", "have")
    yield from _is(groups, "side", s.missed[1], Kind.DIRECTION)
    yield from _is(groups, "verdict", "usual")
    if float(groups["limit"] or "nan") != s.missed[2]:
        yield Kind.NUMBER, f"the limit is {s.missed[2]:g}"
    yield from _number(groups, "share", s.elsewhere[s.missed[0]].on(s.missed[1]))


def _check_border(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    named, wrong = _most(groups, s.borders)
    yield from wrong
    yield from _is(groups, "not", None)
    yield from _number(groups, "share", s.borders.get(named, 0.0))


def _check_because(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    band = groups["band"] or ""
    if band not in s.hidden:
        yield Kind.CLASS, f"{band} was not hidden"
        return
    _, wrong = _most(groups, s.hidden[band])
    yield from wrong
    yield from _title(groups, "title2", s.title)
    yield from _is(groups, "band2", band, Kind.CLASS)
    yield from _is(groups, "not", "would")
    yield from _is(groups, "not2", None)
    yield from _number(groups, "share", sum(s.hidden[band].values()))


def _check_quiet(groups: Groups, facts: Facts, s: ClassFacts) -> Problems:
    quiet = {band for band, becomes in s.hidden.items() if sum(becomes.values()) < HIDDEN_WORTH_TELLING}
    if set((groups["bands"] or "").split(" or ")) != quiet:
        yield Kind.CLASS, f"the bands are {', '.join(sorted(quiet))}"
    yield from _is(groups, "not", "would")
    yield from _is(groups, "share_unit", "%", Kind.UNIT)
    if groups["share"] not in ("less than 1", "less than 1.0"):
        yield Kind.NUMBER, f"says {groups['share']}, not less than 1"


def _check_nothing(groups: Groups, facts: Facts, s: ClassFacts | None) -> Problems:
    yield from _is(groups, "not", "no")


def _check_scene(groups: Groups, facts: Facts, s: ClassFacts | None) -> Problems:
    if facts.hectares is None:
        yield from _exact(groups, "valid", facts.valid_pixels, "pixels")
    else:
        yield from _number(groups, "valid", facts.hectares, "ha", 1e-4)
    rows = {each.title: each.share for each in facts.classes}
    yield from _listed(groups, {**rows, "none of these": facts.other})


def _check_missing(groups: Groups, facts: Facts, s: ClassFacts | None) -> Problems:
    yield from _is(groups, "not", "have no")
    yield from _number(groups, "share", 100 * (facts.all_pixels - facts.valid_pixels) / facts.all_pixels)
    yield from _exact(groups, "all", facts.all_pixels, "pixels")
    if facts.reasons or groups["list"]:
        yield from _listed(groups, {reason: share for reason, share in facts.reasons.items() if share})


def _listed(groups: Groups, rows: Mapping[str, float]) -> Problems:
    """Yield what is wrong with a list of shares: each of `rows` once, with its share."""
    names = "|".join(re.escape(each) for row in sorted(rows, key=len, reverse=True) for each in {row, small(row)})
    entries = list(re.finditer(rf"{quantity('share')} (?P<title>{names}|[^,]+)(?:, |$)", groups["list"] or ""))
    if "".join(each[0] for each in entries) != groups["list"]:
        yield Kind.UNREADABLE, "the list of shares cannot be read"
    left = dict(rows)
    for entry in entries:
        row = next((each for each in left if entry["title"] in (each, small(each))), None)
        if row is None:
            yield Kind.CLASS, f"lists {entry['title']}, which is not among {', '.join(left)}"
        else:
            yield from _number(entry.groupdict(), "share", left.pop(row))
    for row in left:
        yield Kind.MISSING, f"{row} is left out"


_CHECKS: Mapping[str, Callable[..., Problems]] = {
    "empty": _check_empty,
    "absent": _check_absent,
    "area": _check_area,
    "second": _check_second,
    "evidence": _check_evidence,
    "silent": _check_silent,
    "elsewhere": _check_elsewhere,
    "border": _check_border,
    "because": _check_because,
    "quiet": _check_quiet,
    "nothing": _check_nothing,
    "scene": _check_scene,
    "missing": _check_missing,
}
