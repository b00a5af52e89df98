"""What a model knows and needs, without its weights: bands, words, classes. Reading it takes no PyTorch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from engine.bands import band, in_wavelength_order
from engine.errors import ModelNotFound, UnknownClass
from engine.lexicon import Lexicon
from engine.spie.grammar import canonical_instruction

WINDOW = 320
"""Pixels a side of the windows that large images are cut into."""

UNION = " or "


@dataclass(frozen=True)
class ClassQuery:
    """One class asked for. Only `name` is needed; `ModelDescription.resolve` fills in what is empty."""

    name: str
    """What the map calls it; a word that the model knows, unless `instruction` names the class."""
    title: str = ""
    instruction: str = ""
    """Sentence that asks for it; empty: the canonical one."""
    threshold: float | None = None
    """Probability 0..1 below which a pixel is not given to this class; None: the model's own."""
    color: str = ""
    """``#rrggbb``"""
    target: str = ""
    """The model's own name of the class; of a union the names of its parts, joined by ``or``."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The model's own names of the classes whose union this is; one for a single class."""
        return tuple(self.target.split(UNION))


@dataclass(frozen=True)
class ModelDescription:
    """What a model knows and needs."""

    name: str
    bands: tuple[str, ...]
    """Canonical names of the bands that the weights were trained to use, in wavelength order."""
    required_bands: tuple[str, ...]
    """Bands without which the model refuses."""
    rows: tuple[Mapping[str, Any], ...]
    """Of each class name, title, colour and threshold, as the configuration has them."""
    lexicon: Lexicon
    """The words that it knows."""

    @classmethod
    def of(cls, configuration: Mapping[str, Any], lexicon: Lexicon) -> ModelDescription:
        """Return the description of a model by its configuration, as ``config.json`` holds it."""
        bands, required = configuration["bands"], configuration["required_bands"]
        return cls(configuration["name"], in_wavelength_order(bands), tuple(required), tuple(configuration["classes"]), lexicon)

    @classmethod
    def read(cls, folder: Path) -> ModelDescription:
        """Return the description of the model in a folder; raises `ModelNotFound` where config.json or lexicon.json is damaged."""
        configuration, words = _json(folder / "config.json"), _json(folder / "lexicon.json")
        try:
            return cls.of(configuration, Lexicon.from_list(words))
        except (KeyError, TypeError) as error:
            raise ModelNotFound(f"config.json or lexicon.json in {folder} is not of a SPEX model: {type(error).__name__} {error}") from error

    @property
    def known_classes(self) -> tuple[str, ...]:
        """Names of the classes that the model knows."""
        return tuple(self.lexicon.terms)

    def card(self, fingerprint: str, parameters: int) -> dict[str, Any]:
        """Return the facts for a catalog's model item; `parameters` is how many numbers its weights hold."""
        return {
            "name": self.name,
            "architecture": "SPEX",
            "framework": "pytorch",
            "total_parameters": parameters,
            "tasks": ["semantic-segmentation"],
            "bands": [{"name": each, "center_wavelength": band(each).centre, "full_width_half_max": band(each).width} for each in self.bands],
            "required_bands": list(self.required_bands),
            "classes": list(self.known_classes),
            "data_type": "float32",
            "window": WINDOW,
            "fingerprint": fingerprint,
        }

    def resolve(self, classes: Sequence[str | ClassQuery], disjoint: bool = False) -> tuple[ClassQuery, ...]:
        """Return the classes complete: target, title, instruction, threshold and colour.

        Parameters
        ----------
        classes
            Words that the model knows, unions of them (``trees or water``), or queries.
        disjoint
            Refuse classes of which one holds a part of another, as a map must: a pixel has one class.

        Raises
        ------
        UnknownClass
            A word is unknown (the nearest known ones are named), a class is asked twice, classes overlap that must not, or none is asked.
        """
        asked = tuple(self._resolve(ClassQuery(each) if isinstance(each, str) else each) for each in classes)
        if not asked:
            raise UnknownClass(f"no class asked for; the model knows {', '.join(self.known_classes)}")
        for query in asked:
            same = [each.name for each in asked if set(each.parts) == set(query.parts)]
            if len(same) > 1:
                raise UnknownClass(f"classes {', '.join(map(repr, same))} all mean {query.target}; ask for it once")
        for first, second in combinations(asked if disjoint else (), 2):
            shared = self._leaves(first) & self._leaves(second)
            if shared:
                raise UnknownClass(
                    f"classes {first.name!r} and {second.name!r} overlap ({', '.join(sorted(shared))}); a pixel has one class: leave one out"
                )
        return asked

    def overlaps(self, queries: Sequence[ClassQuery]) -> tuple[frozenset[int], ...]:
        """Return for each of the resolved `queries` the positions of those that share pixels with it."""
        leaves = [self._leaves(query) for query in queries]
        return tuple(frozenset(j for j, mine in enumerate(leaves) if j != k and mine & each) for k, each in enumerate(leaves))

    def _leaves(self, query: ClassQuery) -> set[str]:
        return {leaf for part in query.parts for leaf in (self.lexicon.children(part) or (part,))}

    def _resolve(self, query: ClassQuery) -> ClassQuery:
        if query.target:
            parts = self.lexicon.find_union(query.target)
        else:
            parts = self.lexicon.find_in(query.instruction) if query.instruction else self.lexicon.find_union(query.name)
        rows = {each["name"]: each for each in self.rows}
        known = [rows[part] for part in parts]
        if query.color and not re.fullmatch("#[0-9a-fA-F]{6}", query.color):
            raise UnknownClass(f"class {query.name!r}: color {query.color!r} is not of the form #rrggbb")
        words = UNION.join(self.lexicon.terms[part].phrase for part in parts)
        return replace(
            query,
            name=query.name if query.instruction or query.target else "_or_".join(parts),
            target=UNION.join(parts),
            title=query.title or UNION.join(row["title"] if k == 0 else row["title"].lower() for k, row in enumerate(known)),
            instruction=query.instruction or canonical_instruction(words),
            threshold=min(row["threshold"] for row in known) if query.threshold is None else query.threshold,
            color=query.color.lower() or known[0]["color"],
        )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelNotFound(f"{path} is damaged ({error}); copy the model anew") from error


def count_parameters(path: Path) -> int:
    """Return how many numbers a safetensors file holds, by its header; raises `ModelNotFound` where it is cut off or is no such file."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
            tensors = [entry for name, entry in header.items() if name != "__metadata__"]
            end = 8 + length + max((entry["data_offsets"][1] for entry in tensors), default=0)
            count: int = sum(math.prod(entry["shape"]) for entry in tensors)
        except (ValueError, KeyError, TypeError, AttributeError, MemoryError, OverflowError) as error:
            raise ModelNotFound(f"{path} is no safetensors file or is damaged ({type(error).__name__}); copy the model anew") from error
    if path.stat().st_size != end:
        raise ModelNotFound(f"{path} has {path.stat().st_size} bytes where its header says {end}; copy the model anew")
    return count
