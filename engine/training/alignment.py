"""Stage B, alignment, and stage C, instruction tuning: what they minimise, and the batches of stage B."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from engine.modeling import SpexForLandCover
from engine.processing import Request
from engine.training.augment import Sample
from engine.training.batches import CLASS_WEIGHTS, TOKENS_MULTIPLE, Batch, BatchMaker, ask, kind_positions, positions, prior_text
from engine.training.config import AlignmentSpec
from engine.training.data import CLASSES, KINDS, LEAVES, ROOT_OF
from engine.training.losses import spex_loss

ATTRIBUTES = 0.5
"""How often an instruction of stage B carries attributes: the language model is to read them as well as the image."""


class Instructed(nn.Module):
    """What stage C minimises, `spex_loss`; in stage B with other weights."""

    def __init__(self, model: SpexForLandCover, weights: AlignmentSpec | None = None) -> None:
        super().__init__()
        self.model, self.weights = model, weights

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss, and their sum."""
        with_text = bool((batch.prompts.labels >= 0).any())
        output = self.model(batch.reflectance, batch.prompts, batch.bands, with_text=with_text)
        parts = spex_loss(output, batch)
        return parts if self.weights is None else aligned(parts, self.weights)


def aligned(parts: dict[str, Tensor], weights: AlignmentSpec) -> dict[str, Tensor]:
    """Return the parts of stage B's loss from those of `spex_loss`: text and presence, and as much of the masks as the condenser needs."""
    masks = parts["classes"] + parts["dice"] + parts.get("kinds", 0.0)
    text = parts.get("text", torch.zeros_like(parts["classes"]))
    total = weights.text * text + weights.presence * parts["presence"] + weights.masks * masks
    return {"text": text, "presence": parts["presence"], "masks": masks, "loss": total}


class AlignmentBatches:
    """Makes the batches of stage B: every instruction is answered with a description."""

    def __init__(self, maker: BatchMaker) -> None:
        self.maker = maker

    def __call__(self, step: int) -> Batch:
        """Return the batch of a step: two roots, and two kinds of vegetation, asked about each window."""
        samples, bands = self.maker.windows(step)
        generator = np.random.default_rng((self.maker.seed, step, 2))
        roots, kinds = (np.stack([generator.permutation(len(names))[:2] for _ in samples]) for names in (CLASSES, KINDS))
        asked = np.concatenate([roots, kinds + len(CLASSES)], 1)
        requests = [[self._request(LEAVES[leaf], sample, bands, generator) for leaf in row] for sample, row in zip(samples, asked, strict=True)]
        labels = np.stack([ROOT_OF[sample.labels] for sample in samples])
        return Batch(
            torch.from_numpy(np.stack([sample.reflectance for sample in samples])),
            torch.from_numpy(np.stack([positions(each, row) for each, row in zip(labels, roots, strict=True)])),
            torch.from_numpy(CLASS_WEIGHTS[labels]),
            self.maker.processor.prompts(requests, TOKENS_MULTIPLE),
            bands,
            roots.shape[1],
            torch.from_numpy(np.stack([kind_positions(sample.labels, row) for sample, row in zip(samples, kinds, strict=True)])),
            torch.from_numpy(kinds),
        )

    def _request(self, name: str, sample: Sample, bands: tuple[str, ...], generator: np.random.Generator) -> Request:
        attributes = prior_text(name, sample, bands) if generator.random() < ATTRIBUTES else ""
        return ask(name, sample, self.maker.processor, attributes, True, generator)
