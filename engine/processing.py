"""Words in, token tensors out: tokenizer and prompts of SPEX."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from engine.errors import InvalidPrompt, ModelNotFound
from engine.lexicon import Lexicon
from engine.modeling import Prompts
from engine.spie.grammar import canonical_answer, canonical_instruction

PAD, USER, ASSISTANT, END = "<pad>", "<user>", "<assistant>", "<end>"


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
