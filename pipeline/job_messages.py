"""What is wrong with a job, in one sentence that names file, line and key."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

Location = tuple[str | int, ...]

_PATTERNS = {
    "name": "must be letters, digits and hyphens (the series: lower case; a class: also _); words go into title and instruction",
    "color": 'must be written "#rrggbb", in quotes',
}


@dataclass(frozen=True)
class Written:
    """Where each key of a job was written."""

    name: str
    """The job file, as the user calls it."""
    lines: Mapping[Location, int]
    """Line, counted from 1, of each key and list item in it."""
    overridden: frozenset[tuple[str, ...]]
    """Keys that came from ``--set`` instead."""

    def place(self, location: Location) -> tuple[int, str]:
        """Return the line (0 for an override) and the words for a key: ``job.yaml line 7: source.max_cloud`` or ``--set source.max_cloud``."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.overridden:
                return 0, f"--set {dotted(location)}"
        line = next(self.lines[location[:end]] for end in range(len(location), -1, -1) if location[:end] in self.lines)
        key = f": {dotted(location)}" if location else ""
        return line, f"{self.name} line {line}{key}"

    def prefixes(self) -> dict[str, str]:
        """Return what to write before a message about each dotted key; under "" what to write before one about a key that is not written."""
        places = {dotted(path): f"{self.name} line {line}: " for path, line in self.lines.items()}
        return places | {dotted(path): "--set " for path in self.overridden} | {"": f"{self.name}: "}


def first_error(error: ValidationError, written: Written, root: type[BaseModel]) -> str:
    """Return one sentence about the first error (in the order of lines) in a document of model `root`, and how many more there are."""
    errors = error.errors(include_url=False, include_input=False)
    (_, where), number = min((written.place(entry["loc"]), number) for number, entry in enumerate(errors))
    more = f" ({len(errors) - 1} more of such)" if len(errors) > 1 else ""
    return f"{where}: {_sentence(errors[number], root)}{more}"


def dotted(location: Sequence[str | int]) -> str:
    """Return a place in a document as people write it: ``classes[0].code``."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")


def _sentence(error: ErrorDetails, root: type[BaseModel]) -> str:
    """Return what is wrong with a key and what to do."""
    kind, location = error["type"], error["loc"]
    if kind == "extra_forbidden":
        return f"unknown key; {_suggestion(str(location[-1]), location[:-1], root)}"
    if kind == "missing":
        return "this key is missing, and it has no default"
    if kind in ("model_type", "dict_type"):
        return f"must be a mapping of {', '.join(_keys(location, root))}" if kind == "model_type" else "must be a mapping of names to values"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(str(location[-1]), error["msg"])
    if kind == "invalid_key":
        return "a key must be a word"
    if kind == "tuple_type":
        return "must be a list, written [a, b]"
    message = error["msg"]
    return message.replace("Input should be a valid", "must be a").replace("Input should be", "must be").replace("a integer", "an integer")


def _suggestion(key: str, location: Location, root: type[BaseModel]) -> str:
    """Return the nearest valid key, one of another section if that is nearer."""
    valid = _keys(location, root)
    sections = [name for name, field in root.model_fields.items() if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)]
    elsewhere = {inner: f"{outer}.{inner}" for outer in sections for inner in _keys((outer,), root)}
    near = difflib.get_close_matches(key, [*valid, *elsewhere], 1, 0.55)
    if not near:
        return f"there are {', '.join(valid)}"
    return f"did you mean {near[0] if near[0] in valid else elsewhere[near[0]]}?"


def _keys(location: Location, root: type[BaseModel]) -> list[str]:
    """Return the keys that are valid at `location`."""
    section = root
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section that a field's type is or holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)
