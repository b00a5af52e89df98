"""The stage that makes few bands answer as all of them do: the model learns from itself as it was, which sees every band of the same window.

Distillation (Hinton et al., Distilling the Knowledge in a Neural Network, 2015) with the bands that a sensor lacks as privileged information
(Lopez-Paz et al., Unifying distillation and privileged information, 2016). The teacher needs no label, so imagery without labels teaches as well.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.modeling import SpexForLandCover
from engine.processing import Request
from engine.training.augment import SIX, TEN, Sample, pick, turn
from engine.training.batches import ASKED, TOKENS_MULTIPLE, Batch, BatchMaker
from engine.training.config import DistillationSpec
from engine.training.data import CLASSES, IGNORE
from engine.training.errors import TrainingDataError
from engine.training.imagery import Imagery
from engine.training.losses import spex_loss

RGB, RGB_NIR = SIX[:3], SIX[:4]

STUDENTS: tuple[tuple[float, tuple[str, ...]], ...] = (
    (0.42, RGB),
    (0.28, RGB_NIR),
    (0.12, SIX),
    (0.06, (*RGB_NIR, "swir16")),
    (0.02, (*RGB, "nir08", "swir16", "swir22")),
    (0.10, TEN),
)
"""How often the student sees the band set of each kind of sensor in a labelled window; with all bands it holds on to what it knew."""

UNLABELLED_STUDENTS: tuple[tuple[float, tuple[str, ...]], ...] = ((0.6, RGB), (0.4, RGB_NIR))
"""The same in a window without labels, among the sets that are smaller than the imagery's own."""

RARE = 2.0
"""Weight of a pixel that the teacher calls building, water or bare; vegetation and other weigh 1."""

GAIN = 0.05
"""Standard deviation of the brightness of a window without labels."""


@dataclass(frozen=True)
class DistillationBatch:
    """One step's input: the same windows as the student and as the teacher see them."""

    seen: Batch
    """What the student sees, with labels where there are any."""
    whole: Tensor
    """(n, C, h, w) float32: what the teacher sees."""
    bands: tuple[str, ...]
    """Names of the teacher's channels."""
    rarity: Tensor
    """(n, K + 1) float32: weight of a pixel that the teacher gives to each of the roots asked, or to `other`."""
    labelled: bool

    @property
    def reflectance(self) -> Tensor:
        """What the student sees (n, c, h, w)."""
        return self.seen.reflectance


class DistillationBatches:
    """Makes the batch of a step: labelled windows, or at times windows of imagery without labels.

    Raises
    ------
    TrainingDataError
        No imagery has more bands than a student's.
    """

    def __init__(self, maker: BatchMaker, imagery: Sequence[Imagery], known: Sequence[str], spec: DistillationSpec) -> None:
        self.maker, self.spec, self.known = maker, spec, tuple(known)
        self.imagery = [each for each in imagery if self._students(self._bands(each))]
        if spec.unlabelled and not self.imagery:
            raise TrainingDataError(
                f"data.unlabelled: stage distillation needs imagery beside the labelled chips with more bands than {', '.join(RGB)}; "
                "add some, or set stages.distillation.unlabelled to 0"
            )
        self.weights = np.array([each.spec.weight for each in self.imagery], np.float64)

    def __call__(self, step: int) -> DistillationBatch:
        """Return the batch of a step."""
        generator = np.random.default_rng((self.maker.seed, step, 3))
        return self._unlabelled(generator) if generator.random() < self.spec.unlabelled else self._labelled(generator)

    def _labelled(self, generator: np.random.Generator) -> DistillationBatch:
        bands: tuple[str, ...] = pick(generator, STUDENTS)  # type: ignore[assignment]
        count = int(pick(generator, ASKED))  # type: ignore[call-overload]
        wholes = [self.maker.sample(TEN, generator) for _ in range(self.spec.batch)]
        channels = [TEN.index(name) for name in bands]
        samples = [Sample(whole.reflectance[channels], whole.labels) for whole in wholes]
        seen, asked = self.maker.about(samples, bands, count, generator)
        return DistillationBatch(seen, torch.from_numpy(np.stack([whole.reflectance for whole in wholes])), TEN, rarity(asked), True)

    def _unlabelled(self, generator: np.random.Generator) -> DistillationBatch:
        source = self.imagery[int(generator.choice(len(self.imagery), p=self.weights / self.weights.sum()))]
        whole_bands = self._bands(source)
        bands: tuple[str, ...] = pick(generator, self._students(whole_bands))  # type: ignore[assignment]
        wholes = torch.from_numpy(np.stack([self._window(source, whole_bands, generator) for _ in range(self.spec.batch)]))
        asked = np.stack([generator.permutation(len(CLASSES)) for _ in range(self.spec.batch)])
        requests = [[Request(CLASSES[root]) for root in row] for row in asked]
        unknown = torch.full((self.spec.batch, *wholes.shape[-2:]), IGNORE)
        seen = Batch(
            wholes[:, [whole_bands.index(name) for name in bands]],
            unknown,
            torch.zeros(unknown.shape),
            self.maker.processor.prompts(requests, TOKENS_MULTIPLE),
            bands,
            len(CLASSES),
        )
        return DistillationBatch(seen, wholes, whole_bands, rarity(asked), False)

    def _window(self, source: Imagery, bands: tuple[str, ...], generator: np.random.Generator) -> np.ndarray:
        window = source.window(self.spec.size, generator)[[source.bands.index(name) for name in bands]]
        turned = turn(Sample(window, np.zeros(window.shape[1:], np.uint8)), generator).reflectance
        return (turned * generator.normal(1.0, GAIN)).astype(np.float32)

    def _bands(self, source: Imagery) -> tuple[str, ...]:
        """Return the bands of imagery that the model uses."""
        return tuple(name for name in source.bands if name in self.known)

    @staticmethod
    def _students(bands: tuple[str, ...]) -> tuple[tuple[float, tuple[str, ...]], ...]:
        return tuple(each for each in UNLABELLED_STUDENTS if set(each[1]) < set(bands))


def rarity(asked: np.ndarray) -> Tensor:
    """Return the weights (n, K + 1) of roots asked (n, K), indices into `CLASSES`, and of `other`."""
    of_class = np.where(np.arange(len(CLASSES)) == CLASSES.index("vegetation"), 1.0, RARE)
    return torch.from_numpy(np.concatenate([of_class[asked], np.ones((len(asked), 1))], 1).astype(np.float32))


class Distilled(nn.Module):
    """What the stage minimises: stage C's loss where there are labels, and the distance to what the model as it was answers with all bands."""

    def __init__(self, model: SpexForLandCover, weight: float) -> None:
        super().__init__()
        self.model, self.weight = model, weight
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def average(self, share: float) -> None:
        """Give the model the mean of its weights and those of its start, which weigh `share`.

        Between the two, answers are often better than at either end, above all on what was not trained on (Wortsman et al., Robust fine-tuning of
        zero-shot models, 2022).
        """
        for value, begun in zip(self.model.parameters(), self.teacher.parameters(), strict=True):
            value.lerp_(begun, share)

    def forward(self, batch: DistillationBatch) -> dict[str, Tensor]:
        """Return the loss and its parts."""
        seen = batch.seen
        with torch.no_grad():
            taught = self.teacher(batch.whole, seen.prompts, batch.bands).logits
        with_text = batch.labelled and bool((seen.prompts.labels >= 0).any())
        output = self.model(seen.reflectance, seen.prompts, seen.bands, with_text=with_text)
        there = torch.isfinite(batch.whole).all(1)
        distance = answers_distance(output.logits[:, : seen.roots].float(), taught[:, : seen.roots].float(), there, batch.rarity)
        if not batch.labelled:
            return {"distance": distance, "loss": self.weight * distance}
        labelled = spex_loss(output, seen)["loss"]
        return {"labelled": labelled, "distance": distance, "loss": labelled + self.weight * distance}


def answers_distance(logits: Tensor, taught: Tensor, there: Tensor, rarity: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of answers from the teacher's, over the roots asked and `other` (logit 0), in nats.

    Parameters
    ----------
    logits, taught
        (n, K, h, w) of the student and of the teacher.
    there
        (n, h, w) bool: pixels with data.
    rarity
        (n, K + 1) weight of a pixel by the teacher's answer.
    """
    student, teacher = (F.log_softmax(torch.cat([each, torch.zeros_like(each[:, :1])], 1), 1) for each in (logits, taught))
    shares = teacher.exp()
    weight = torch.einsum("nkhw,nk->nhw", shares, rarity) * there
    each = (shares * (teacher - student)).sum(1)
    return (each * weight).sum() / weight.sum().clamp(min=1.0)
