"""The sentences that an explanation may hold, as the checker reads them: wide enough to recognise a wrong word as a wrong word."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def quantity(name: str) -> str:
    """Return the pattern of a number and its unit, in the groups `name` and `name`_unit."""
    number, unit = r"(?:(?:less|more) than )?-?\d[\d,]*(?:\.\d+)?", r"%|[a-zA-Z]+"
    return rf"(?P<{name}>{number})(?: (?P<{name}_unit>{unit}))?"


_INDEX, _SIDE, _LIMIT = r"(?P<index{0}>[A-Z]+)", r"(?P<side{0}>[a-z]+)", r"(?P<limit{0}>-?[\d.]+)"
_VERDICT = r"(?P<verdict{0}>(?:not )?(?:in)?consistent with|(?:not )?(?:un)?usual for)"
_HAS = r"(?P<has{0}>has|does not have|lacks|have|do not have)"


def _comparison(number: str) -> str:
    return " ".join(each.format(number) for each in (_HAS, _INDEX, _SIDE, _LIMIT))


_GRAMMAR: Mapping[str, str] = {
    "nothing": r"Scene: there are(?P<not> no)? pixels with data\.",
    "empty": r"@CLASS: there are(?P<not> no)? pixels with data\.",
    "absent": rf"@CLASS (?P<not>was not|was|is not|is) found in {quantity('valid')} with data"
    rf"(?:, though {quantity('high')} of them (?P<reach>have|do not have) a probability {_SIDE.format('_high')} {quantity('possible')})?\.",
    "area": rf"@CLASS (?P<not>covers|does not cover) {quantity('share')} of the (?P<whole>pixels with data|mapped area)"
    rf"(?:, {quantity('hectares')})? \({quantity('low')} (?:at a probability|with a confidence) {_SIDE.format('_low')} {quantity('certain')},"
    rf" {quantity('high')} {_SIDE.format('_high')} {quantity('possible')}\),"
    rf" (?P<with>with|without) a mean confidence of {quantity('confidence')}\.",
    "second": rf"Second is(?P<not> not)? @CLASS on {quantity('share')} of it;"
    rf" on {quantity('close')} of it the second (?P<comes>comes|does not come) within {quantity('points')}\.",
    "evidence": rf"{quantity('share')} of it {_comparison('')}(?: \(mean {quantity('mean')}\))?, {_VERDICT.format('')} @CLASS"
    rf"(?:; {quantity('share2')} of it {_comparison('2')}, {_VERDICT.format('2')} @2CLASS)?\.",
    "silent": r"(?P<not>No|A) spectral index of these bands speaks for or against @CLASS\.",
    "elsewhere": rf"{quantity('share')} of the (?P<other>other )?pixels with data {_comparison('')},"
    rf" which is (?P<verdict>(?:not )?(?:un)?usual) for @CLASS\.",
    "border": rf"{quantity('share')} of its border is(?P<not> not)? with @CLASS\.",
    "because": rf"Without (?P<band>\w+) {quantity('share')} of it (?P<not>would not|would) be mapped otherwise, mostly as @CLASS:"
    r" that much is(?P<not2> not)? @2CLASS because of (?P<band2>\w+)\.",
    "quiet": rf"Without (?P<bands>\w+(?: or \w+)*) {quantity('share')} of it (?P<not>would not|would) be mapped otherwise\.",
    "scene": rf"Scene of {quantity('valid')} with data: (?P<list>.+? none of these)\.",
    "missing": rf"{quantity('share')} of all {quantity('all')} (?P<not>have no|have) data(?:: (?P<list>[^.]*(?:\.\d[^.]*)*))?\.",
}


def patterns_of(titles: Sequence[str]) -> dict[str, re.Pattern[str]]:
    """Return the pattern of every sentence by name, with words for these classes; a word that is none of them is read as one and named as wrong."""
    known = "|".join(re.escape(each) for title in sorted([*titles, "other"], key=len, reverse=True) for each in {title, small(title)})
    patterns = {}
    for name, pattern in _GRAMMAR.items():
        text = pattern.replace("@CLASS", rf"(?P<title>{known}|[^.,;:()%]+?)").replace("@2CLASS", rf"(?P<title2>{known}|[^.,;:()%]+?)")
        patterns[name] = re.compile(text + r"(?= |$)", re.IGNORECASE if name in ("evidence", "elsewhere", "border", "missing") else 0)
    return patterns


def small(title: str) -> str:
    """Return a title as it stands inside a sentence."""
    return title[0].lower() + title[1:] if len(title) > 1 and title[1].islower() else title
