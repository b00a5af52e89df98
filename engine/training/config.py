"""What a training file may say: model, data and stages, with every setting that the result depends on.

The stages run in the order in which `StagesSpec` lists them; those that are left out are skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError


def _number(value: Any) -> Any:
    """Return a number that YAML took for text: 7e-4 is one, but YAML 1.1 wants 7.0e-4."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Number = Annotated[float, BeforeValidator(_number)]
Positive = Annotated[float, BeforeValidator(_number), Field(gt=0)]
Share = Annotated[float, BeforeValidator(_number), Field(ge=0, le=1)]
NotNegative = Annotated[float, BeforeValidator(_number), Field(ge=0)]
Names = Annotated[tuple[str, ...], Field(strict=False)]


def _error(message: str) -> PydanticCustomError:
    return PydanticCustomError("training", "{message}", {"message": message})


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ModelSpec(_Section):
    """The model that training begins with: exactly one of `preset` and `start`."""

    preset: str | None = None
    """Sizes of a new model with random weights: ``spex-small``, ``spex-1.8b``."""
    start: str | None = None
    """A trained model: folder, URL, or the name of one that is shipped."""
    changes: dict[str, Any] = {}
    """Fields of the model's configuration to change; with `preset` only."""

    @field_validator("changes")
    @classmethod
    def _are_fields(cls, changes: dict[str, Any]) -> dict[str, Any]:
        """Refuse what is no field, each at its own place in the file."""
        if changes:
            # Here, so that reading a training file does not wait for transformers.
            from engine.configuration import InvalidConfiguration, check_field

            for name in changes:
                try:
                    check_field(name)
                except InvalidConfiguration as error:
                    wrong = InitErrorDetails(type=_error(str(error)), loc=(name,), input=name)
                    raise ValidationError.from_exception_data(cls.__name__, [wrong]) from None
        return changes

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.preset is None) == (self.start is None):
            raise _error("name one of preset (a new model) and start (a trained one)")
        if self.changes and self.preset is None:
            raise _error("changes are for a new model (preset); the sizes of a trained one are fixed")
        return self


class ImagerySpec(_Section):
    """Imagery without labels, for masked reconstruction and for distillation."""

    path: str = Field(min_length=1)
    """Pattern of files (``*``, ``**``): .npz, or GeoTIFF; ``{band}`` in it stands for what `bands` says, one file for each band."""
    bands: dict[str, int | str]
    """Canonical band name to the number of its channel, from 1, or to the text that ``{band}`` stands for."""
    array: str | None = None
    """Name of the array in .npz files, (N, C, H, W) or (C, H, W)."""
    channels_last: bool = False
    """Whether the array is (H, W, C)."""
    scale: Positive = 1.0
    """Factor from stored values to reflectance."""
    offset: Number = 0.0
    """Added after scaling."""
    nodata: Number | None = None
    """Stored value that means no data."""
    weight: Positive = 1.0
    """How often windows are drawn here, against the other entries."""


class DataSpec(_Section):
    """Where the data lie; paths are seen from `root`."""

    root: str = "."
    """Folder that the other paths begin at."""
    chips: str | None = None
    """Labelled chips: an .npz file for alignment and instruction, a folder of GeoTIFF pairs for finetuning."""
    red_edge: str | None = None
    """Unlabelled twelve-band chips (.npz) that the simulated red-edge bands are fitted on."""
    spectra: str | None = None
    """Surveyed spectra (.npz): painted into the chips, and used for the red edge."""
    unlabelled: Annotated[tuple[ImagerySpec, ...], Field(strict=False)] = ()
    """Imagery for pretraining and distillation."""

    def path(self, name: str) -> Path:
        """Return the path of ``chips``, ``red_edge`` or ``spectra``; it must be given."""
        return Path(self.root, str(getattr(self, name)))


class StageSpec(_Section):
    """What every stage has."""

    steps: int = Field(gt=0)
    """Optimizer steps; the learning rate falls to zero at the last one."""
    batch: int = Field(default=8, gt=0)
    """Windows of a step over all workers."""
    micro_batch: int | None = Field(default=None, gt=0)
    """Windows that a worker computes at once; gradients of the rest are added up. Null: all of its part."""
    size: int = Field(default=96, ge=16)
    """Side of the windows in pixels, a multiple of the model's stride."""
    rate: Positive = 7e-4
    """Peak learning rate."""
    warm_up: int = Field(default=100, ge=0)
    """Steps of linear warm-up."""
    weight_decay: NotNegative = 0.05
    """Of matrices; vectors have none."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""


class PretrainingSpec(StageSpec):
    """Masked reconstruction of unlabelled imagery by the vision part."""

    mask_ratio: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)] = 0.5
    """Share of the patches that are hidden."""
    mask_patch: int = Field(default=8, gt=0)
    """Side of a hidden patch in pixels."""
    hide_bands: Share = 0.3
    """How often the window is given in the bands of a lesser sensor, and the others are to be reconstructed as well."""
    decoder_width: int = Field(default=64, gt=0)
    """Channels of the decoder, which is thrown away after the stage."""


class WordsSpec(StageSpec):
    """A stage that trains on instructions."""

    freeze: Names = ()
    """Parts of the model that stay as they are; `vision` is backbone, aggregator and fine_branch."""


class PaintedSpec(WordsSpec):
    """A stage on labelled chips."""

    surveyed: bool = True
    """Whether patches of surveyed spectra (data.spectra) are painted into the chips."""


class AlignmentSpec(PaintedSpec):
    """Language learns to read the visual tokens; seeing stays as it is."""

    freeze: Names = ("vision", "neck", "decoder")
    """Parts of the model that stay as they are; `vision` is backbone, aggregator and fine_branch."""
    text: NotNegative = 1.0
    """Weight of the descriptions' cross-entropy."""
    presence: NotNegative = 0.5
    """Weight of whether the class is there at all."""
    masks: NotNegative = 0.25
    """Weight of the mask losses, which alone reach the condenser; they pass through the decoder as it stands."""


class InstructionSpec(PaintedSpec):
    """Instruction tuning with mask losses."""


class DistillationSpec(PaintedSpec):
    """With the bands of a lesser sensor the model learns to answer as it did at the start of the stage with all bands."""

    unlabelled: Share = 0.5
    """How often a step is on imagery without labels; that of data.chips is left out there."""
    weight: Positive = 1.0
    """Weight of the distance to the answers with all bands, beside the losses of labelled windows."""
    start_share: Share = 0.5
    """Share that the weights of the stage's start have in its result; 0 takes what was trained as it is."""


class FinetuningSpec(WordsSpec):
    """A user's own classes from few chips, the model's old classes kept."""

    keep: NotNegative = 1.0
    """Weight of the distance to the starting model's own probabilities of its classes."""
    rehearsal: Annotated[float, BeforeValidator(_number), Field(ge=0, lt=0.5)] = 0.33
    """Share of a batch that are made-up scenes, on which the starting model's answers are held; there is no label on them."""
    pull: NotNegative = 1e-3
    """Weight of the squared distance of the weights to the starting model's."""
    held_out: Annotated[float, BeforeValidator(_number), Field(gt=0, lt=1)] = 0.2
    """Share of the chips that are held out: they choose when to stop, and the thresholds."""
    check_steps: int = Field(default=40, gt=0)
    """Steps between two looks at the held-out chips."""
    patience: int = Field(default=5, gt=0)
    """Looks without a better one before stopping."""


class StagesSpec(_Section):
    """The stages, in the order in which they run."""

    pretraining: PretrainingSpec | None = None
    """A: masked reconstruction; needs data.unlabelled."""
    alignment: AlignmentSpec | None = None
    """B: text and presence; needs data.chips, data.red_edge and data.spectra."""
    instruction: InstructionSpec | None = None
    """C: masks, text and presence; needs data.chips, data.red_edge and data.spectra."""
    distillation: DistillationSpec | None = None
    """D: few bands answer as all do; needs data.chips, data.red_edge, data.spectra and data.unlabelled."""
    finetuning: FinetuningSpec | None = None
    """A user's chips; needs data.chips and model.start, and stands alone."""

    @property
    def chosen(self) -> dict[str, StageSpec]:
        """The stages that are there, by name, in order."""
        return {name: each for name in type(self).model_fields if (each := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        if not self.chosen:
            raise _error(f"no stage is there; name at least one of {', '.join(type(self).model_fields)}")
        if self.finetuning is not None and len(self.chosen) > 1:
            raise _error("finetuning stands alone; train the other stages by another file")
        return self


class TrainingSpec(_Section):
    """A training: a model, data, and the stages that it goes through."""

    model: ModelSpec
    """The model that training begins with."""
    data: DataSpec = DataSpec()
    """Where the data lie."""
    stages: StagesSpec
    """The stages, in the order in which they run."""
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the trained model; default the preset's or the starting model's."""
    seed: int = Field(default=0, ge=0)
    """Of the new weights and of every batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes CUDA where there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 is autocast where it is safe; auto is bf16 where the device computes in it."""
    threads: int | None = Field(default=None, gt=0)
    """Threads of PyTorch in each worker; null leaves them."""
    save_seconds: NotNegative = 240.0
    """Seconds between two states on disk."""
    log_steps: int = Field(default=50, gt=0)
    """Steps between two lines of the log."""
    bad_steps: int = Field(default=20, gt=0)
    """Steps in a row without a finite loss after which training stops."""

    @staticmethod
    def needs(stage: str) -> tuple[str, ...]:
        """Return which keys of `data` a stage reads."""
        labelled = ("chips", "red_edge", "spectra")
        return {"pretraining": ("unlabelled",), "distillation": (*labelled, "unlabelled"), "finetuning": ("chips",)}.get(stage, labelled)

    @model_validator(mode="after")
    def _have_their_data(self) -> Self:
        for stage in self.stages.chosen:
            missing = [f"data.{key}" for key in self.needs(stage) if not getattr(self.data, key)]
            if missing:
                raise _error(f"stage {stage} needs {', '.join(missing)}")
        if self.stages.finetuning is not None and self.model.start is None:
            raise _error("finetuning needs a trained model: model.start")
        return self
