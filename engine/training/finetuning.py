"""Fine-tuning on a user's own chips: new classes are learnt, the old ones kept, without the data that the model was trained on.

The weights that are trained lie beside the starting model's, which go on answering lists of old classes (`engine.class_sets`). Asked beside new
ones, old classes are kept by distillation (Li and Hoiem, Learning without Forgetting, 2016): on the user's chips and on made-up scenes the model is
held near the starting model's own probabilities; by a pull of the weights to where they started (Li et al., Explicit Inductive Bias for Transfer
Learning, 2018); and by stopping when the held-out chips get no better.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from engine.lexicon import Lexicon
from engine.modeling import Prompts, SpexForLandCover, SpexOutput
from engine.processing import Request, SpexProcessor
from engine.spie.grammar import describe_regions, training_instruction
from engine.spie.regions import find_regions
from engine.training.augment import SENSORS, Sample, other_light, resample, turn, with_gaps
from engine.training.batches import TOKENS_MULTIPLE
from engine.training.chip_folder import IGNORE, LabelledChips
from engine.training.config import FinetuningSpec
from engine.training.losses import text_loss
from engine.training.rehearsal import made_up_scene

DICE, PRESENCE, TEXT = 0.5, 0.05, 0.1
"""Weights beside the cross-entropy."""

KNOWN = 0.3
"""Weight of a pixel of a class that the starting model knows, against one of a new class: it has seen more of them than the chips show."""

FINER, LESSER_SENSOR, DESCRIPTIONS = 0.2, 0.3, 0.15
"""How often windows are enlarged, are given in the bands of a lesser sensor, and are described in words."""


@dataclass(frozen=True)
class ChipBatch:
    """Windows of a user's chips and made-up ones, and every class that the model will know asked about them."""

    reflectance: Tensor
    """(n, C, h, w) float32, NaN = no data"""
    labels: Tensor
    """(n, h, w) int64: index into the classes of the chips, 255 ignored, as all of a made-up window is."""
    prompts: Prompts
    bands: tuple[str, ...]


class ChipBatches:
    """Makes the batch of a step; every class of the chips is drawn equally often, and made-up scenes are spread evenly among the windows."""

    def __init__(
        self,
        chips: LabelledChips,
        parts: Sequence[tuple[str, ...]],
        processor: SpexProcessor,
        spec: FinetuningSpec,
        required: Sequence[str],
        seed: int,
    ) -> None:
        self.chips, self.parts, self.processor, self.spec, self.seed = chips, tuple(parts), processor, spec, seed
        self.required = frozenset(required)
        pixels = np.stack([(chips.labels == k).sum((1, 2)) for k in range(len(chips.classes))])
        self.chances = np.sqrt(pixels) / np.maximum(np.sqrt(pixels).sum(1, keepdims=True), 1e-9)
        self.there = np.flatnonzero(pixels.sum(1))

    def __call__(self, step: int) -> ChipBatch:
        """Return the batch of a step."""
        generator = np.random.default_rng((self.seed, step, 3))
        bands = self._bands(generator)
        made_up = np.diff(np.floor(np.arange(self.spec.batch + 1) * self.spec.rehearsal + 0.5)) > 0
        samples = [self._made_up(bands, generator) if each else self._sample(bands, generator) for each in made_up]
        described = bool(generator.random() < DESCRIPTIONS)
        requests = [[self._request(name, sample.labels, described, generator) for name in self.processor.lexicon.terms] for sample in samples]
        return ChipBatch(
            torch.from_numpy(np.stack([sample.reflectance for sample in samples])),
            torch.from_numpy(np.stack([sample.labels for sample in samples]).astype(np.int64)),
            self.processor.prompts(requests, TOKENS_MULTIPLE),
            bands,
        )

    def _bands(self, generator: np.random.Generator) -> tuple[str, ...]:
        lesser = [subset for _, subset in SENSORS if self.required <= set(subset) < set(self.chips.bands)]
        if lesser and generator.random() < LESSER_SENSOR:
            return lesser[int(generator.integers(len(lesser)))]
        return self.chips.bands

    def _made_up(self, bands: tuple[str, ...], generator: np.random.Generator) -> Sample:
        unlabelled = np.full((self.spec.size, self.spec.size), IGNORE, np.uint8)
        return other_light(Sample(made_up_scene(bands, self.spec.size, generator), unlabelled), bands, generator)

    def _sample(self, bands: tuple[str, ...], generator: np.random.Generator) -> Sample:
        wanted = int(generator.choice(self.there))
        index = int(generator.choice(len(self.chips), p=self.chances[wanted]))
        scale = 2.0 if generator.random() < FINER else 1.0
        channels = [self.chips.bands.index(name) for name in bands]
        reflectance, labels = self._around(index, wanted, round(self.spec.size / scale), generator)
        piece = resample(reflectance[channels], labels, scale, self.spec.size, generator)
        return with_gaps(other_light(turn(piece, generator), bands, generator), generator)

    def _around(self, index: int, wanted: int, side: int, generator: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """Return a window with a pixel of a class somewhere in it, padded where the chip is smaller."""
        reflectance, labels = self.chips.reflectance[index], self.chips.labels[index]
        rows, columns = np.nonzero(labels == wanted)
        chosen = int(generator.integers(len(rows)))
        top, left = (
            int(np.clip(at - generator.integers(side), 0, max(length - side, 0)))
            for at, length in zip((rows[chosen], columns[chosen]), labels.shape, strict=True)
        )
        window, target = reflectance[:, top : top + side, left : left + side], labels[top : top + side, left : left + side]
        missing = tuple((0, side - length) for length in target.shape)
        return np.pad(window, ((0, 0), *missing), constant_values=np.nan), np.pad(target, missing, constant_values=IGNORE)

    def _request(self, name: str, labels: NDArray[np.uint8], described: bool, generator: np.random.Generator) -> Request:
        term = self.processor.lexicon.terms[name]
        instruction = training_instruction(str(generator.choice(term.words)), generator, canonical=0.5)
        description = None
        known = int((labels != IGNORE).sum())
        if described and known and (name,) in self.parts:
            mask = labels == self.parts.index((name,))
            description = describe_regions(term.phrase, mask.sum() / known, find_regions(mask, known, 1))
        return Request(name, instruction, "", description)


class Family:
    """Positions of classes among queries: roots, and the kinds of each root."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.names = tuple(lexicon.terms)
        self.roots = tuple(self.names.index(name) for name in lexicon.roots)
        kinds = {self.names.index(root): tuple(map(self.names.index, lexicon.children(root))) for root in lexicon.roots}
        self.kinds = {root: children for root, children in kinds.items() if children}

    def log_probabilities(self, logits: Tensor, settled: Tensor | None = None, of: Collection[int] = ()) -> Tensor:
        """Return the logarithm of what `engine.planner.probabilities` gives, (n, Q, h, w).

        Where `settled` (n, h, w) is true, gradients of kinds do not reach their roots, if these are among the queries `of`.
        """
        roots = _with_other(logits[:, list(self.roots)]).log_softmax(1)
        planes = {query: roots[:, k] for k, query in enumerate(self.roots)}
        for root, children in self.kinds.items():
            shares = logits[:, list(children)].log_softmax(1)
            above = planes[root]
            if settled is not None and root in of:
                above = torch.where(settled, above.detach(), above)
            planes |= {query: above + shares[:, k] for k, query in enumerate(children)}
        return torch.stack([planes[query] for query in range(len(self.names))], 1)

    def root_of(self, query: int) -> int:
        """Return the position of a class's root."""
        return next((root for root, children in self.kinds.items() if query in children), query)


class KeptAndNew(nn.Module):
    """What fine-tuning minimises: the chips' labels, the distance to the starting model's answers, the distance to its weights.

    Parameters
    ----------
    model
        What is trained; `lexicon` is the one with the new classes.
    start
        The starting model, frozen, which knows the classes `old`.
    parts
        For each class of the chips the classes whose probabilities add up to it.
    weights
        Weight of a pixel by its label.
    """

    def __init__(
        self,
        model: SpexForLandCover,
        start: SpexForLandCover,
        lexicon: Lexicon,
        old: Lexicon,
        parts: Sequence[tuple[str, ...]],
        weights: Sequence[float],
        spec: FinetuningSpec,
    ) -> None:
        super().__init__()
        self.model, self.spec = model, spec
        # In a tuple, so that the starting model is no part of what is trained or saved.
        self.start = (start,)
        self.family, self.old_family = Family(lexicon), Family(old)
        self.old = [self.family.names.index(name) for name in self.old_family.names]
        self.weights: Tensor
        self.offsets: Tensor
        self.old_offsets: Tensor
        self.parts = [[self.family.names.index(name) for name in each] for each in parts]
        self.register_buffer("weights", torch.tensor(list(weights), dtype=torch.float32), persistent=False)
        self.register_buffer("offsets", offsets_of(model, self.family.names), persistent=False)
        self.register_buffer("old_offsets", offsets_of(model, self.old_family.names), persistent=False)

    def forward(self, batch: ChipBatch) -> dict[str, Tensor]:
        """Return the parts of the loss, and their sum."""
        with_text = bool((batch.prompts.labels >= 0).any())
        output = self.model(batch.reflectance, batch.prompts, batch.bands, with_text=with_text)
        with torch.no_grad():
            before = self.start[0](batch.reflectance, self._old_prompts(batch.prompts), batch.bands)
        logits = output.logits.float() + self.offsets
        was = before.logits.float() + self.old_offsets
        contradicted = self._contradicted(_with_other(was[:, list(self.old_family.roots)]).argmax(1), batch.labels)
        parts = self._label_losses(self.family.log_probabilities(logits, ~contradicted, self.old), batch.labels)
        parts["kept"] = self._kept(logits[:, self.old], was, ~torch.isnan(batch.reflectance).all(1) & ~contradicted)
        parts["pull"] = self._pull()
        total = parts["classes"] + DICE * parts["dice"] + self.spec.keep * parts["kept"] + self.spec.pull * parts["pull"]
        if self.model.config.presence_head:
            parts["presence"] = self._presence_loss(output, before, batch.labels)
            total = total + PRESENCE * parts["presence"]
        if output.text is not None:
            parts["text"] = text_loss(output.text.float(), batch.prompts.labels)
            total = total + TEXT * parts["text"]
        return {**parts, "loss": total}

    def _old_prompts(self, prompts: Prompts) -> Prompts:
        names = ("tokens", "attention", "answer", "presence", "labels")
        return Prompts(**{name: getattr(prompts, name)[:, self.old] for name in names})

    def _label_losses(self, logs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Return weighted cross-entropy and Dice of the chips' classes."""
        of_classes = torch.stack([logs[:, parts].logsumexp(1) for parts in self.parts], 1)
        known = labels != IGNORE
        index = torch.where(known, labels, 0)
        weight = self.weights[index] * known
        classes = -(of_classes.gather(1, index.unsqueeze(1)).squeeze(1) * weight).sum() / weight.sum().clamp(min=1.0)
        guess = of_classes.exp() * known.unsqueeze(1)
        truth = F.one_hot(index, len(self.parts)).permute(0, 3, 1, 2) * known.unsqueeze(1)
        there = truth.sum((0, 2, 3)) > 0
        overlap, size = (guess * truth).sum((0, 2, 3)), guess.square().sum((0, 2, 3)) + truth.sum((0, 2, 3))
        share = there * self.weights.clamp(max=1.0)
        dice = (1.0 - (2.0 * overlap + 1.0) / (size + 1.0)) * share
        return {"classes": classes, "dice": dice.sum() / share.sum().clamp(min=1e-6)}

    def _kept(self, logits: Tensor, before: Tensor, counted: Tensor) -> Tensor:
        """Return the divergence from the starting model's probabilities in the pixels that count; new classes are left out of both."""
        family = self.old_family
        was = _with_other(before[:, list(family.roots)])
        mine = _with_other(logits[:, list(family.roots)])
        divergence = _divergence(was, mine)
        shares = was.softmax(1)
        for root, children in family.kinds.items():
            kinds = _divergence(before[:, list(children)], logits[:, list(children)])
            divergence = divergence + shares[:, family.roots.index(root)] * kinds
        return (divergence * counted).sum() / counted.sum().clamp(min=1)

    def _contradicted(self, guessed: Tensor, labels: Tensor) -> Tensor:
        """Return where the label is of an old root that is not the one (n, h, w) that the starting model guesses."""
        roots = [self.family.names[self.family.root_of(parts[0])] for parts in self.parts]
        old = [self.old_family.names[k] for k in self.old_family.roots]
        lookup = torch.full((IGNORE + 1,), -1, device=labels.device)
        for k, name in enumerate(roots):
            if name in old:
                lookup[k] = old.index(name)
        expected = lookup[labels]
        return (expected >= 0) & (expected != guessed)

    def _pull(self) -> Tensor:
        start = dict(self.start[0].named_parameters())
        squares = [(mine - start[name]).square().sum() for name, mine in self.model.named_parameters() if mine.requires_grad]
        return torch.stack(squares).sum()

    def _presence_loss(self, output: SpexOutput, before: SpexOutput, labels: Tensor) -> Tensor:
        """Return binary cross-entropy of what is in the windows: by the labels where a class has them, else by the starting model."""
        presence = output.presence.float()
        truth = torch.full_like(presence, -1.0)
        truth[:, self.old] = before.presence.float().sigmoid()
        labelled = (labels != IGNORE).flatten(1).any(1)
        for k, parts in enumerate(self.parts):
            if len(parts) == 1:
                truth[:, parts[0]] = torch.where(labelled, (labels == k).flatten(1).any(1).float(), truth[:, parts[0]])
        each = F.binary_cross_entropy_with_logits(presence, truth.clamp(min=0), reduction="none")
        return (each * (truth >= 0)).sum() / (truth >= 0).sum().clamp(min=1)


def offsets_of(model: SpexForLandCover, names: Sequence[str]) -> Tensor:
    """Return what the configuration adds to the logits of some classes, (classes, 1, 1)."""
    rows = {each["name"]: float(each.get("offset", 0.0)) for each in model.config.classes}
    return torch.tensor([rows[name] for name in names])[:, None, None]


def pixel_weights(labels: NDArray[np.uint8], classes: int) -> NDArray[np.float64]:
    """Return the weight of a pixel by its label: one over the root of the class's share, 1 on average over the labelled pixels."""
    counts = np.bincount(labels[labels != IGNORE].ravel(), minlength=classes)[:classes].astype(np.float64)
    weights = np.where(counts > 0, 1.0 / np.sqrt(np.maximum(counts, 1.0)), 0.0)
    return np.asarray(weights * counts.sum() / max((weights * counts).sum(), 1e-9))


def _with_other(logits: Tensor) -> Tensor:
    return torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)


def _divergence(was: Tensor, mine: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence (n, h, w) of two sets of logits (n, K, h, w)."""
    return (was.softmax(1) * (was.log_softmax(1) - mine.log_softmax(1))).sum(1)
