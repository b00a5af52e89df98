"""The words that a model knows: names of classes, their synonyms, unions, and what an instruction may hold beside them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from engine.errors import UnknownClass


@dataclass(frozen=True)
class Term:
    """One land-cover class in words."""

    name: str
    phrase: str
    """How the class is named inside a sentence."""
    synonyms: tuple[str, ...] = ()
    """Words of the same meaning, not of a part of it: `trees` is no synonym of `vegetation`."""
    parent: str = ""
    """Name of the class that this one is a kind of; empty for a root."""

    @property
    def words(self) -> tuple[str, ...]:
        """Every accepted wording."""
        return tuple(dict.fromkeys((self.name, self.phrase, *self.synonyms)))


DEFAULT_TERMS: tuple[Term, ...] = (
    Term("vegetation", "vegetation", ("vegetated land", "vegetated area", "vegetation cover", "plants", "plant cover", "green cover")),
    Term(
        "building",
        "buildings",
        (
            "built",
            "built-up",
            "built-up area",
            "built-up land",
            "buildings",
            "settlement",
            "settlements",
            "urban area",
            "urban land",
            "artificial land",
        ),
    ),
    Term("water", "water", ("waters", "water body", "water bodies", "waterbody", "waterbodies", "open water", "surface water", "inland water")),
    Term("bare", "bare ground", ("bare land", "bare soil", "bare surface", "barren", "barren land", "barren ground", "non-vegetated land")),
    Term(
        "tree_cover",
        "tree cover",
        ("trees", "tree", "forest", "forests", "woodland", "woods", "forest cover", "tree canopy", "canopy", "wooded land"),
        "vegetation",
    ),
    Term("cropland", "cropland", ("crops", "crop", "cropped land", "farmland", "arable land", "crop fields", "cultivated land"), "vegetation"),
    Term(
        "grass_or_shrub",
        "grass or shrub",
        ("grass and shrub", "grassland or shrubland", "low vegetation", "rangeland", "herbaceous or shrub vegetation"),
        "vegetation",
    ),
    Term("wetland", "wetland", ("wetlands", "herbaceous wetland", "marsh", "marshes", "mangroves"), "vegetation"),
)

_EXCLUSIONS = frozenset(("not", "no", "without", "except", "excluding", "but", "nor", "neither"))
_NEUTRAL = frozenset(
    re.findall(
        r"\w+",
        """a all an and any are area areas as at bands basis be binary by can class could cover covered create delineate describe detect do draw
        every extract find for from give here highlight how i identify image in is it its kind land locate map mark mask me nearby of on only or
        outline picture pixel pixels please produce region regions return satellite scene see seen segment show spectral surface tell that the
        their there these this to type us view want what where which with would you""",
    )
)
"""Words that an instruction may hold beside the names of classes."""


def plain(text: str) -> str:
    """Return a wording for comparison: lower case, one space for hyphens, underscores and spaces, no article."""
    words = re.sub(r"[\s_\-]+", " ", text.strip().lower())
    return re.sub(r"^(the|all|any) ", "", words)


class Lexicon:
    """The words that a model knows."""

    def __init__(self, terms: Sequence[Term]) -> None:
        self.terms = {term.name: term for term in terms}
        self._names = {plain(word): term.name for term in terms for word in term.words}

    @property
    def roots(self) -> tuple[str, ...]:
        """Names of the classes that are a kind of nothing else."""
        return tuple(name for name, term in self.terms.items() if not term.parent)

    def children(self, name: str) -> tuple[str, ...]:
        """Return the names of the kinds of a class."""
        return tuple(each for each, term in self.terms.items() if term.parent == name)

    def find(self, word: str) -> str:
        """Return the class that a word names; raises `UnknownClass` naming the nearest known words."""
        found = self._names.get(plain(word))
        if found is None:
            raise UnknownClass(f"class {word!r} is not known to this model; {self._known_beside(word)}")
        return found

    def find_union(self, words: str) -> tuple[str, ...]:
        """Return the classes that ``trees or water`` names, without kinds of a class that is named too; raises `UnknownClass` as `find` does."""
        whole = self._names.get(plain(words))
        if whole is not None:
            return (whole,)
        parts = re.split(r"\s*[,/+;]\s*(?:(?:or|and)\s+)?|\s+(?:or|and)\s+", plain(words))
        names: list[str] = []
        while parts:
            # The longest run of parts that is one wording: "grass or shrub" is a single class.
            taken = next((n for n in range(len(parts), 1, -1) if plain(" or ".join(parts[:n])) in self._names), 1)
            names.append(self.find(" or ".join(parts[:taken])))
            parts = parts[taken:]
        return self._without_kinds(names)

    def _without_kinds(self, names: Sequence[str]) -> tuple[str, ...]:
        kept = dict.fromkeys(names)
        return tuple(name for name in kept if self.terms[name].parent not in kept)

    def find_in(self, sentence: str) -> tuple[str, ...]:
        """Return the classes that an instruction names, their union being what is asked.

        Raises
        ------
        UnknownClass
            It names no class, excludes something, or holds words that the model does not know; the message says which.
        """
        text = plain(sentence)
        found: list[tuple[int, str]] = []
        for words in sorted(self._names, key=len, reverse=True):
            pattern = rf"\b{re.escape(words)}\b"
            place = re.search(pattern, text)
            if place:
                found.append((place.start(), self._names[words]))
                text = re.sub(pattern, lambda match: " " * len(match[0]), text)
        rest = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text)
        excluding = [word for word in rest if word in _EXCLUSIONS]
        unknown = [word for word in rest if word not in _NEUTRAL]
        if excluding:
            raise UnknownClass(
                f"instruction {sentence!r} excludes something ({', '.join(excluding)}), which this model does not understand; name what to map"
            )
        if unknown or not found:
            words = f"holds words that this model does not know ({', '.join(unknown)})" if unknown else "names no class"
            raise UnknownClass(f"instruction {sentence!r} {words}; {self._known_beside(' '.join(unknown))}")
        return self._without_kinds([name for _, name in sorted(found)])

    def nearest(self, word: str) -> str:
        """Return the known words most like this one, as text."""
        near = difflib.get_close_matches(plain(word), list(self._names), n=3, cutoff=0.5)
        return ", ".join(f"{each} ({self._names[each]})" if each != self._names[each] else each for each in near) or ", ".join(self.terms)

    def _known_beside(self, word: str) -> str:
        return f"nearest: {self.nearest(word)}; it knows {', '.join(self.terms)}"

    def to_list(self) -> list[dict[str, object]]:
        """Return JSON-ready data; `Lexicon.from_list` undoes it."""
        return [
            {"name": term.name, "phrase": term.phrase, "synonyms": list(term.synonyms), **({"parent": term.parent} if term.parent else {})}
            for term in self.terms.values()
        ]

    @classmethod
    def from_list(cls, rows: Iterable[Mapping[str, object]]) -> Lexicon:
        """Return the lexicon that `to_list` wrote."""
        return cls([Term(str(row["name"]), str(row["phrase"]), tuple(row["synonyms"]), str(row.get("parent", ""))) for row in rows])  # type: ignore[arg-type]
