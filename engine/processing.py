"""Words in, token tensors out: lexicon, tokenizer and prompts of SPEX."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from engine.errors import InvalidPrompt, ModelNotFound, UnknownClass
from engine.modeling import Prompts
from engine.spie.grammar import canonical_answer, canonical_instruction

PAD, USER, ASSISTANT, END = "<pad>", "<user>", "<assistant>", "<end>"


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


@dataclass(frozen=True)
class Request:
    """One class asked about one image, in words."""

    target: str
    instruction: str = ""
    """Empty: the canonical one."""
    attributes: str = ""
    """Spectral priors as text, appended to the instruction."""
    description: str | None = None
    """What follows the canonical answer in training; it is causally unable to reach the mask."""


class SpexProcessor:
    """Turns requests into the tensors that the model reads, and token ids back into words."""

    def __init__(self, tokenizer: Tokenizer, lexicon: Lexicon, longest: int = 1024) -> None:
        self.tokenizer, self.lexicon, self.longest = tokenizer, lexicon, longest
        # Text that spells "<end>" must stay text: instructions come from job files.
        self.tokenizer.encode_special_tokens = True
        self.pad, self.user, self.assistant, self.end = (_identifier(tokenizer, each) for each in (PAD, USER, ASSISTANT, END))

    def prompts(self, requests: Sequence[Sequence[Request]], multiple: int = 1) -> Prompts:
        """Return the packed prompts of n images with K requests each, padded to the longest, or on to a multiple of a length.

        Raises
        ------
        InvalidPrompt
            No request, images that ask different numbers of classes, or a prompt longer than the model takes.
        """
        rows = [self._encode(request) for image in requests for request in image]
        n, classes = len(requests), len(requests[0]) if requests else 0
        if not rows or any(len(image) != classes for image in requests):
            raise InvalidPrompt("every image needs the same number of requests, at least one")
        shape = (n, classes, -1)
        spare = (0, -max((len(row.tokens) for row in rows), default=0) % multiple)
        fills: dict[str, float] = {"tokens": self.pad, "attention": False, "answer": False, "labels": -100}
        stacked = {
            name: F.pad(pad_sequence([getattr(row, name) for row in rows], batch_first=True, padding_value=fill), spare, value=fill).reshape(shape)
            for name, fill in fills.items()
        }
        presence = torch.cat([row.presence for row in rows]).reshape(n, classes)
        return Prompts(presence=presence, **stacked)

    def _encode(self, request: Request) -> Prompts:
        """Return one row: user text, end, assistant, canonical answer, then the description where there is one."""
        phrase = self.lexicon.terms[request.target].phrase
        asked = [self.user, *self._ids(request.instruction or canonical_instruction(phrase), request.attributes), self.end, self.assistant]
        answer = self._ids(canonical_answer(phrase))
        told = [] if request.description is None else [*self._ids(request.description), self.end]
        tokens = torch.tensor([*asked, *answer, *told])
        if len(tokens) > self.longest:
            raise InvalidPrompt(f"prompt of {len(tokens)} tokens is longer than {self.longest}; shorten the instruction or its attributes")
        position = torch.arange(len(tokens))
        start, stop = len(asked), len(asked) + len(answer)
        return Prompts(
            tokens=tokens,
            attention=torch.ones(len(tokens), dtype=torch.bool),
            answer=(position >= start) & (position < stop),
            presence=torch.tensor([start - 1]),
            labels=torch.where(position >= stop, tokens, -100),
        )

    def _ids(self, *texts: str) -> list[int]:
        return [token for text in texts for token in self.tokenizer.encode(text, add_special_tokens=False).ids]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the words of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def save_pretrained(self, folder: Path | str) -> None:
        """Write tokenizer.json and lexicon.json."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "lexicon.json").write_text(json.dumps(self.lexicon.to_list(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: Path | str) -> SpexProcessor:
        """Read what `save_pretrained` wrote; raises `ModelNotFound` where a file is missing."""
        folder = Path(folder)
        for name in ("tokenizer.json", "lexicon.json"):
            if not (folder / name).is_file():
                raise ModelNotFound(f"{folder} has no {name}; a model folder holds config.json, model.safetensors, tokenizer.json and lexicon.json")
        lexicon = Lexicon.from_list(json.loads((folder / "lexicon.json").read_text(encoding="utf-8")))
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), lexicon)


def _identifier(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise InvalidPrompt(f"the tokenizer has no {token}; it is not one of SPEX")
    return int(found)


def train_tokenizer(corpus: Iterable[str], vocabulary: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer with every digit a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    digits, rest = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, rest])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[PAD, USER, ASSISTANT, END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer
