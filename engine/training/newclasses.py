"""Classes that a user's chips bring: what they are called, which class they are a kind of, and how labels follow from the model's answers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from engine.errors import UnknownClass
from engine.lexicon import Lexicon, Term, plain
from engine.training.chip_folder import InvalidChips

PALETTE = ("#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#1b9e77", "#d95f02", "#8dd3c7", "#bebada", "#fb8072", "#80b1d3", "#fdb462")
"""Colours of new classes that do not name one."""

THRESHOLD = 0.35
"""Of a new class until the held-out chips have chosen one."""


class NewClass(BaseModel):
    """What classes.yaml may say about a class under ``new``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parent: str = ""
    """A root of the model that this class is a kind of; empty: the class is a root itself."""
    phrase: str = ""
    """How the class is named inside a sentence; default its name."""
    synonyms: Annotated[tuple[str, ...], Field(strict=False)] = ()
    title: str = ""
    color: str = Field(default="", pattern=r"^(#[0-9A-Fa-f]{6})?$")


@dataclass(frozen=True)
class Legend:
    """The classes of a user's chips in the model's terms."""

    lexicon: Lexicon
    """The model's lexicon with the new classes in it."""
    rows: tuple[dict[str, Any], ...]
    """Entries of the configuration for the new classes."""
    parts: tuple[tuple[str, ...], ...]
    """For each class of the chips the model's classes whose probabilities add up to it."""
    added: tuple[str, ...]
    """Names of the new classes."""
    names: tuple[str, ...]
    """For each class of the chips its name in the lexicon."""


def read_new_classes(folder: Path) -> dict[str, NewClass]:
    """Return what FOLDER/classes.yaml says under ``new``; raises `InvalidChips` where that is wrong."""
    path = folder / "classes.yaml"
    given = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("new") or {}
    if not isinstance(given, Mapping):
        raise InvalidChips(f"{path}: new must be a mapping of a class to what is said of it, such as {{orchard: {{parent: vegetation}}}}")
    return {str(name): _new_class(path, str(name), about) for name, about in given.items()}


def _new_class(path: Path, name: str, said: Any) -> NewClass:
    try:
        return NewClass.model_validate(said or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise InvalidChips(f"{path}: new: {name}: {key}: {first['msg']}; known: {', '.join(NewClass.model_fields)}") from None


def make_legend(classes: Sequence[str], said: Mapping[str, NewClass], lexicon: Lexicon) -> Legend:
    """Return how a model that knows `lexicon` is to answer for the classes of some chips.

    A class that the lexicon does not know joins it. A root of whose kinds some are labelled stands for its other kinds; where it has none, a
    class ``other_ROOT`` joins as well, for kinds share all that their root gets.

    Raises
    ------
    InvalidChips
        A parent is no root, two classes mean the same, or something is said of a class that is not in the labels.
    """
    stray = sorted(set(said) - set(classes))
    if stray:
        raise InvalidChips(f"classes.yaml: new: {stray[0]} is not among the classes {', '.join(classes)}")
    names = [_known(name, lexicon) or _slug(name) for name in classes]
    for name, word in zip(names, classes, strict=True):
        same = [other for other, its in zip(classes, names, strict=True) if its == name]
        if len(same) > 1:
            raise InvalidChips(f"classes.yaml: {', '.join(map(repr, same))} all mean {name}; give {word!r} another name, or its pixels the same code")
    fresh = [_term(word, said.get(word, NewClass()), lexicon) for word in classes if _known(word, lexicon) is None]
    fresh += _others(names, Lexicon([*lexicon.terms.values(), *fresh]))
    whole = Lexicon([*lexicon.terms.values(), *fresh])
    titles = {_slug(word): said[word] for word in classes if word in said}
    rows = tuple(_row(term, titles.get(term.name, NewClass()), PALETTE[k % len(PALETTE)]) for k, term in enumerate(fresh))
    return Legend(whole, rows, tuple(_parts(name, names, whole) for name in names), tuple(term.name for term in fresh), tuple(names))


def _known(word: str, lexicon: Lexicon) -> str | None:
    try:
        return lexicon.find(word)
    except UnknownClass:
        return None


def _slug(word: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", plain(word)).strip("_")


def _term(word: str, said: NewClass, lexicon: Lexicon) -> Term:
    parent = _known(said.parent, lexicon) if said.parent else ""
    if parent is None or (parent and lexicon.terms[parent].parent):
        raise InvalidChips(f"classes.yaml: new: {word}: parent {said.parent!r} is no root; the roots are {', '.join(lexicon.roots)}")
    synonyms = (plain(word), *said.synonyms)
    taken = [each for each in (said.phrase, *synonyms) if each and _known(each, lexicon)]
    if taken:
        raise InvalidChips(f"classes.yaml: new: {word}: {taken[0]!r} already means {_known(taken[0], lexicon)}")
    phrase = said.phrase or plain(word)
    return Term(_slug(word), phrase, tuple(each for each in dict.fromkeys(synonyms) if each != phrase), parent)


def _others(names: Iterable[str], lexicon: Lexicon) -> list[Term]:
    """Return a term for the rest of each root whose kinds are all labelled though they cannot be all there is."""
    labelled, rest = set(names), []
    for root in lexicon.roots:
        kinds = set(lexicon.children(root))
        if kinds and kinds <= labelled and (root in labelled or len(kinds) == 1):
            rest.append(Term(f"other_{root}", f"other {lexicon.terms[root].phrase}", (), root))
    return rest


def _parts(name: str, names: Sequence[str], lexicon: Lexicon) -> tuple[str, ...]:
    kinds = lexicon.children(name)
    if not set(kinds) & set(names):
        return (name,)
    return tuple(kind for kind in kinds if kind not in names)


def _row(term: Term, said: NewClass, color: str) -> dict[str, Any]:
    title = said.title or term.phrase[:1].upper() + term.phrase[1:]
    row = {"name": term.name, "title": title, "color": (said.color or color).lower(), "threshold": THRESHOLD}
    return row | ({"parent": term.parent} if term.parent else {})


def with_thresholds(classes: Sequence[Mapping[str, Any]], thresholds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return entries of the configuration with some thresholds changed."""
    return [{**each, "threshold": thresholds.get(each["name"], each["threshold"])} for each in classes]


def with_offsets(classes: Sequence[Mapping[str, Any]], parts: Sequence[tuple[str, ...]], offsets: Sequence[float]) -> list[dict[str, Any]]:
    """Return entries of the configuration with an offset added for each class of the chips, that is to all its parts."""
    added = {name: offset for names, offset in zip(parts, offsets, strict=True) for name in names}
    return [{**each, "offset": float(each.get("offset", 0.0)) + added.get(each["name"], 0.0)} for each in classes]


def class_set(legend: Legend, trained: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the entry under `class_sets` of what was trained; offsets of new classes stand in their own entries."""
    was, now = ({row["name"]: float(row.get("offset", 0.0)) for row in rows} for rows in (before, trained))
    offsets = {name: now[name] for name in was if now[name] != was[name]}
    return {"added": list(legend.added), "labelled": list(dict.fromkeys((*legend.names, *legend.added))), "offsets": offsets}
