"""From a training file to what is trained: the model to begin with, and the work of each stage."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from engine.class_sets import rows_of_set
from engine.configuration import SpexConfig
from engine.lexicon import DEFAULT_TERMS, Lexicon
from engine.modeling import SpexForLandCover, fuse_attention
from engine.models import find_model
from engine.processing import SpexProcessor, train_tokenizer
from engine.spex import Spex
from engine.training.alignment import AlignmentBatches, Instructed
from engine.training.augment import TEN
from engine.training.batches import BatchMaker, corpus
from engine.training.checkpoint import write_model
from engine.training.chip_folder import LabelledChips, load_chip_folder
from engine.training.config import PaintedSpec, StagesSpec, TrainingSpec
from engine.training.data import load_chips
from engine.training.distillation import DistillationBatches, Distilled
from engine.training.errors import TrainingDataError
from engine.training.finetuning import KNOWN, ChipBatches, KeptAndNew, pixel_weights
from engine.training.heldout import WORTH, Holdout, split_chips
from engine.training.imagery import files_of, load_imagery
from engine.training.newclasses import Legend, class_set, make_legend, read_new_classes, with_offsets, with_thresholds
from engine.training.offsets import best_offsets, labelled_logits
from engine.training.pretraining import VISION, HiddenBatches, Reconstruction
from engine.training.rededge import fit_red_edge
from engine.training.runner import Work
from engine.training.survey import load_survey

T = TypeVar("T")


@dataclass
class Workshop:
    """The model of a training and how the work of its stages is made."""

    spec: TrainingSpec
    model: SpexForLandCover
    processor: SpexProcessor
    legend: Legend | None = None
    """Of the user's classes, in fine-tuning."""
    start: Sequence[SpexForLandCover] = ()
    """The starting model and those of its class sets, in fine-tuning; the last of them is what a copy of is trained."""
    old: Lexicon | None = None
    before: SpexConfig | None = None
    """The starting model's configuration, in fine-tuning."""

    def work(self, name: str) -> Work:
        """Return the work of a stage; what is random in it depends on the seed and the stage."""
        stage = self.spec.stages.chosen[name]
        if stage.size % self.model.config.stride:
            raise TrainingDataError(f"stages.{name}.size is {stage.size}, no multiple of {self.model.config.stride}, the model's stride")
        torch.manual_seed(self.spec.seed + 1)
        self.model.train()
        fuse_attention(self.model)
        works = (self._pretraining, self._alignment, self._instruction, self._distillation, self._finetuning)
        return dict(zip(StagesSpec.model_fields, works, strict=True))[name]()

    def _pretraining(self) -> Work:
        stage = _given(self.spec.stages.pretraining)
        imagery = load_imagery(self.spec.data.unlabelled, Path(self.spec.data.root), stage.size)
        freeze(self.model, [name for name, _ in self.model.named_children() if name not in VISION])
        batches = HiddenBatches(imagery, stage, tuple(self.model.config.bands), self.spec.seed)
        return Work("pretraining", stage, Reconstruction(self.model, stage), batches, unused=False)

    def _alignment(self) -> Work:
        stage = _given(self.spec.stages.alignment)
        freeze(self.model, stage.freeze)
        return Work("alignment", stage, Instructed(self.model, stage), AlignmentBatches(self._batches(stage)))

    def _instruction(self) -> Work:
        stage = _given(self.spec.stages.instruction)
        freeze(self.model, stage.freeze)
        return Work("instruction", stage, Instructed(self.model), self._batches(stage))

    def _distillation(self) -> Work:
        stage, data = _given(self.spec.stages.distillation), self.spec.data
        freeze(self.model, stage.freeze)
        labelled = data.path("chips").resolve()
        others = [each for each in data.unlabelled if labelled not in (path.resolve() for path in files_of(each, Path(data.root)))]
        imagery = load_imagery(others, Path(data.root), stage.size) if stage.unlabelled else ()
        batches = DistillationBatches(self._batches(stage), imagery, self.model.config.bands, stage)
        distilled = Distilled(self.model, stage.weight)

        def finish() -> dict[str, float]:
            distilled.average(stage.start_share)
            return {}

        return Work("distillation", stage, distilled, batches, finish=finish)

    def _batches(self, stage: PaintedSpec) -> BatchMaker:
        data = self.spec.data
        for name in ("chips", "red_edge", "spectra"):
            if not data.path(name).is_file():
                raise TrainingDataError(f"data.{name}: there is no file {data.path(name)}")
        red_edge = fit_red_edge(data.path("red_edge"), data.path("spectra"))
        survey = load_survey(data.path("spectra")) if stage.surveyed else None
        return BatchMaker(load_chips(data.path("chips")), self.processor, red_edge, survey, stage.batch, stage.size, self.spec.seed)

    def _finetuning(self) -> Work:
        stage, legend = _given(self.spec.stages.finetuning), _given(self.legend)
        chips = usable_chips(self.spec, self.model)
        freeze(self.model, stage.freeze)
        kept, held = split_chips(chips, stage.held_out, self.spec.seed)
        known = np.array([not set(parts) & set(legend.added) for parts in legend.parts])
        weights = pixel_weights(kept.labels, len(kept.classes)) * np.where(known, KNOWN, 1.0)
        start = self.start[-1]
        start.to(self.model.device)  # type: ignore[arg-type]
        objective = KeptAndNew(self.model, start, self.processor.lexicon, _given(self.old), legend.parts, weights.tolist(), stage)
        batches = ChipBatches(kept, legend.parts, self.processor, stage, tuple(self.model.config.required_bands), self.spec.seed)
        worth = 0.0 if legend.added else WORTH
        holdout = Holdout(held, legend.parts, self.model, self.processor, start.state_dict(), stage.check_steps, stage.patience, worth)

        def finish() -> dict[str, float]:
            holdout.restore()
            offsets = best_offsets(labelled_logits(self.model, self.processor, chips, legend.parts))
            self.model.config.classes = with_offsets(self.model.config.classes, legend.parts, offsets)
            thresholds = holdout.thresholds(legend.added)
            self.model.config.classes = with_thresholds(self.model.config.classes, thresholds)
            told = {f"offset_{name}": value for name, value in zip(legend.names, offsets, strict=True)}
            told |= {f"threshold_{name}": value for name, value in thresholds.items()}
            return {"held_out_at_start": holdout.start, "best_held_out": holdout.best, **told}

        def look(step: int) -> dict[str, float]:
            return holdout.look(step, stage.steps)

        return Work("finetuning", stage, objective, batches, True, look, holdout.state, holdout.set_state, finish, self._write_beside)

    def _write_beside(self, folder: Path, model: SpexForLandCover, processor: SpexProcessor) -> None:
        """Write the starting model as it was, with what was trained as one more class set."""
        first, *others = self.start
        config: Any = copy.deepcopy(_given(self.before))
        config.name = model.config.name
        config.class_sets = [*config.class_sets, class_set(_given(self.legend), model.config.classes, config.classes)]
        config.classes = [*config.classes, *model.config.classes[len(config.classes) :]]
        first.config = config
        write_model(folder, first, processor, (*others, model))


def open_workshop(spec: TrainingSpec) -> Workshop:
    """Return the model that a training begins with, its words, and what makes the stages; the same every time.

    Raises
    ------
    ModelNotFound, InvalidConfiguration
        There is no such model or preset.
    InvalidChips, TrainingDataError
        The user's chips are wrong.
    """
    torch.manual_seed(spec.seed)
    if spec.model.start is None:
        config = new_config(spec)
        return Workshop(spec, SpexForLandCover(config), new_processor(config))
    folder = find_model(spec.model.start)
    loaded = Spex.load(folder, "cpu")
    if spec.stages.finetuning is not None:
        return _with_new_classes(spec, loaded)
    if loaded.taught:
        raise TrainingDataError(f"{folder} was fine-tuned: only stage finetuning goes on from it; start from the model that it was fine-tuned from")
    loaded.model.config.name = spec.name or loaded.model.config.name
    return Workshop(spec, loaded.model.requires_grad_(True), loaded.processor)


def _with_new_classes(spec: TrainingSpec, loaded: Spex) -> Workshop:
    start, old, before = (loaded.model, *loaded.taught), loaded.processor.lexicon, copy.deepcopy(loaded.config)
    latest = start[-1]
    latest.config.classes = rows_of_set(before.classes, before.class_sets, len(loaded.taught) - 1 if loaded.taught else None)
    latest.config.class_sets = []
    model = copy.deepcopy(latest).requires_grad_(True)
    chips = usable_chips(spec, model)
    legend = make_legend(chips.classes, read_new_classes(spec.data.path("chips")), old)
    model.config.name, model.config.classes = spec.name or model.config.name, [*latest.config.classes, *legend.rows]
    return Workshop(spec, model, SpexProcessor(loaded.processor.tokenizer, legend.lexicon), legend, start, old, before)


def usable_chips(spec: TrainingSpec, model: SpexForLandCover) -> LabelledChips:
    """Return the user's chips in the bands that the model uses.

    Raises
    ------
    InvalidChips
        The folder is wrong, or a class has no pixel in it.
    TrainingDataError
        A band that the model requires is missing.
    """
    chips = load_chip_folder(spec.data.path("chips"), every_class=True)
    missing = [name for name in model.config.required_bands if name not in chips.bands]
    if missing:
        raise TrainingDataError(f"{spec.data.path('chips')}: the model requires {', '.join(missing)}; classes.yaml names {', '.join(chips.bands)}")
    used = [k for k, name in enumerate(chips.bands) if name in model.config.bands]
    bands = tuple(chips.bands[k] for k in used)
    return LabelledChips(chips.reflectance[:, used], bands, chips.labels, chips.classes, chips.places, chips.names)


def freeze(model: SpexForLandCover, names: Iterable[str]) -> None:
    """Let all parts of a model train but those named; ``vision`` is backbone, aggregator and fine branch.

    Raises
    ------
    TrainingDataError
        A name is no part of the model.
    """
    parts: dict[str, nn.Module] = dict(model.named_children())
    wanted = {part for name in names for part in (VISION if name == "vision" else (name,))}
    unknown = sorted(wanted - set(parts) - set(VISION))
    if unknown:
        raise TrainingDataError(f"freeze: the model has no part {unknown[0]!r}; it has vision, {', '.join(parts)}")
    for name, part in parts.items():
        part.requires_grad_(name not in wanted)


def new_config(spec: TrainingSpec) -> SpexConfig:
    """Return the configuration of a new model; one with a wavelength stem is made for the ten bands that training simulates."""
    config = SpexConfig.preset(str(spec.model.preset), **spec.model.changes)
    if config.stem == "wavelength" and "bands" not in spec.model.changes:
        config.bands = list(TEN)
    config.name = spec.name or config.name
    return config


def new_processor(config: SpexConfig) -> SpexProcessor:
    """Return the processor of a new model: the default lexicon and a tokenizer trained on the grammar."""
    return SpexProcessor(train_tokenizer(corpus(DEFAULT_TERMS), config.language["vocab_size"]), Lexicon(DEFAULT_TERMS))


def _given(value: T | None) -> T:
    assert value is not None
    return value
