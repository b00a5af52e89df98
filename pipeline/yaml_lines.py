"""YAML read safely, with the line of every key, so that an error can name both."""

from __future__ import annotations

from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.errors import JobError

Path = tuple[str | int, ...]


def load_with_lines(text: str, name: str) -> tuple[Any, dict[Path, int]]:
    """Return the content of a YAML document and the line, counted from 1, of every key and list item.

    Parameters
    ----------
    text
        One YAML document.
    name
        What error messages call it.

    Raises
    ------
    JobError
        It is not YAML, holds tags that safe YAML has not, or has a key twice; the message names the line.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        lines = _lines(node, name)
        return (None if node is None else loader.construct_document(node)), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" line {mark.line + 1}" if mark else ""
        raise JobError(f"{name}{where}: this is not YAML: {error.problem}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise JobError(f"{name}: this is not YAML: {' '.join(str(error).split())}") from None


def _lines(root: Node | None, name: str) -> dict[Path, int]:
    """Return the lines of all keys; an alias is followed only where it first occurs, so that no document can make this long."""
    lines: dict[Path, int] = {}
    seen: set[int] = set()
    waiting: list[tuple[Path, Node]] = [] if root is None else [((), root)]
    while waiting:
        path, node = waiting.pop()
        lines.setdefault(path, node.start_mark.line + 1)
        _check_text(path, node, name)
        if id(node) in seen or isinstance(node, ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, MappingNode):
            _check_unique(path, node, name)
            for key, value in node.value:
                lines[(*path, str(key.value))] = key.start_mark.line + 1
                waiting.append(((*path, str(key.value)), value))
        elif isinstance(node, SequenceNode):
            waiting += [((*path, index), value) for index, value in enumerate(node.value)]
    return lines


def _check_text(path: Path, node: Node, name: str) -> None:
    keys = [key for key, _ in node.value] if isinstance(node, MappingNode) else []
    for scalar in (node, *keys):
        if isinstance(scalar, ScalarNode) and any("\ud800" <= letter <= "\udfff" for letter in scalar.value):
            where = f"{name} line {scalar.start_mark.line + 1}: {'.'.join(map(str, path))}"
            raise JobError(f"{where}: this is not text, it has half a character (\\uD800 to \\uDFFF)")


def _check_unique(path: Path, node: MappingNode, name: str) -> None:
    found: dict[str, int] = {}
    for key, _ in node.value:
        text, line = str(key.value), key.start_mark.line + 1
        if text in found:
            raise JobError(
                f"{name} line {line}: {'.'.join(map(str, (*path, text)))}: this key is there twice, first on line {found[text]}; delete one"
            )
        found[text] = line
