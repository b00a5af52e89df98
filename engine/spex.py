"""The way in: load a model, ask it about reflectance, get probabilities and sentences."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine.bands import channel_of, check_bands
from engine.class_sets import answering_set, known_to_set, rows_of_set
from engine.configuration import SpexConfig
from engine.description import WINDOW, ClassQuery, ModelDescription
from engine.errors import UnknownBand
from engine.explanation import describe, describe_scene
from engine.free_text import FreeText, MaskOfClass, free_text, unwritten
from engine.lexicon import Lexicon
from engine.modeling import SpexForLandCover
from engine.models import find_model, fingerprint
from engine.planner import Planner, Queries
from engine.processing import Request, SpexProcessor
from engine.reflectance import as_chips, check_reflectance
from engine.statistics import ChipStatistics
from engine.weights import distinct_tensors, load_models
from engine.windows import blend_total, blend_weights, window_starts

STRIDE, LARGEST_CHIP = 256, 640
"""Chips with a side above `LARGEST_CHIP` are segmented in blended windows of `WINDOW` pixels; a side up to `WINDOW` is not cut."""

MARGIN = 64
"""Pixels without data after the short side of a strip; with none, strips of val chips lose up to 0.3 % accuracy to the shape of the visual tokens."""

PIXELS_TOGETHER = 2 * LARGEST_CHIP**2
"""Chips that a GPU takes in one pass hold at most so many pixels."""


class UnusedBand(UserWarning):
    """A channel that these weights were not trained on is left out."""


@dataclass(frozen=True)
class Segmentation:
    """What `Spex.segment` gives for N chips and K classes."""

    probabilities: NDArray[np.float32]
    """(N, K, H, W) in 0..1, NaN where there is no data."""
    presence: NDArray[np.float32]
    """(N, K) in 0..1: that the class is there at all, as the language model says before its answer; of a chip with a side above `LARGEST_CHIP` the
    maximum over its windows; NaN for chips without data."""
    classes: tuple[ClassQuery, ...]
    reflectance: NDArray[np.float32]
    """(N, C, H, W) as the model saw it: the bands used, NaN in all of them where one has no data."""
    bands: tuple[str, ...]

    overlaps: tuple[frozenset[int], ...] = ()
    """For each class the positions of those that share pixels with it: its kinds and parts, or what it is a kind or part of."""

    def statistics(self, index: int, hidden: Mapping[str, NDArray[np.float32]] | None = None) -> ChipStatistics:
        """Return what is counted over chip `index`; `hidden` as for `explain`."""
        return ChipStatistics(
            self.probabilities[index],
            self.reflectance[index],
            self.bands,
            [each.parts for each in self.classes],
            [each.title for each in self.classes],
            [each.threshold or 0.0 for each in self.classes],
            self.overlaps,
            hidden,
        )

    def explain(self, index: int, hidden: Mapping[str, NDArray[np.float32]] | None = None) -> str:
        """Return a text about chip `index`: a sentence or few per class, then one of the whole; every number is computed from the mask and the bands.

        Parameters
        ----------
        index
            0..N-1.
        hidden
            What `Spex.occlude` gives; with it, the text says where a class is mapped because of a band.
        """
        statistics = self.statistics(index, hidden)
        return " ".join([*describe(statistics.classes()), describe_scene(statistics.scene())])


@dataclass(frozen=True)
class Generation:
    """What `Spex.generate` gives: the masks of `Spex.segment`, and texts."""

    segmentation: Segmentation
    texts: tuple[tuple[FreeText, ...], ...]
    """For each of the N chips the texts of the K classes."""


@dataclass(frozen=True)
class _Answering:
    """What answers a list of classes: the model as it was before fine-tuning, or that of a class set."""

    model: SpexForLandCover
    lexicon: Lexicon
    """The words that it was trained on."""
    offsets: Mapping[str, float]
    """What is added to the logit of each class."""


class Spex:
    """A trained SPEX, ready to map.

    `taught` are the models of the class sets that fine-tuning has added, oldest first: see `engine.class_sets`.
    """

    def __init__(
        self,
        model: SpexForLandCover,
        processor: SpexProcessor,
        folder: Path | None = None,
        device: str = "cpu",
        taught: Sequence[SpexForLandCover] = (),
    ) -> None:
        self.model, self.taught = model, tuple(taught)
        for each in (model, *self.taught):
            still: Any = each.requires_grad_(False).train(False)
            still.to(device=device, memory_format=torch.channels_last)
        self.processor, self.folder, self.device = processor, folder, device

    @classmethod
    def load(cls, path_or_id: str | Path, device: str = "auto", threads: int | None = None) -> Spex:
        """Return the model of a folder, URL, shipped name or Hugging Face id.

        Parameters
        ----------
        path_or_id
            See `engine.models.find_model`.
        device
            ``auto`` takes CUDA where there is one, else the CPU; or any PyTorch device.
        threads
            Intra-op threads of PyTorch, process-wide; part of the numerical identity. None leaves them.

        Raises
        ------
        ModelNotFound
            There is no complete model there.
        """
        folder = find_model(path_or_id)
        if threads is not None:
            torch.set_num_threads(threads)
        chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        model, *taught = load_models(folder)
        return cls(model, SpexProcessor.from_pretrained(folder), folder, chosen, taught)

    @property
    def config(self) -> SpexConfig:
        """The model's configuration."""
        return self.model.config  # type: ignore[return-value]

    @property
    def description(self) -> ModelDescription:
        """What the model knows and needs."""
        return ModelDescription.of(vars(self.config), self.processor.lexicon)

    @property
    def bands(self) -> tuple[str, ...]:
        """Canonical names of the bands that the weights were trained to use, in wavelength order."""
        return self.description.bands

    @property
    def required_bands(self) -> tuple[str, ...]:
        """Bands without which `segment` and `planner` refuse."""
        return self.description.required_bands

    @property
    def known_classes(self) -> tuple[str, ...]:
        """Names of the classes that the model knows."""
        return self.description.known_classes

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the model's files in canonical order, hex; of a model in memory only, empty."""
        return "" if self.folder is None else fingerprint(self.folder)

    @property
    def model_card(self) -> dict[str, Any]:
        """Facts for a catalog's model item; see `ModelDescription.card`."""
        parameters = sum(tensor.numel() for tensor in distinct_tensors((self.model, *self.taught)).values())
        return self.description.card(self.fingerprint, parameters)

    def resolve(self, classes: Sequence[str | ClassQuery], disjoint: bool = False) -> tuple[ClassQuery, ...]:
        """Return the classes complete; see `ModelDescription.resolve`."""
        return self.description.resolve(classes, disjoint)

    def planner(self, bands: Sequence[str], classes: Sequence[str | ClassQuery]) -> Planner:
        """Return the fixed graph of a band set and a list of classes.

        The module maps reflectance (n, C, h, w) float32 with NaN = no data to probabilities (n, K, h, w) float32; h and w must be
        multiples of `config.stride`.

        Raises
        ------
        UnknownBand, UnknownClass
            As `segment` does; here a band that the weights were not trained on is refused as well.
        """
        check_bands(bands, self.required_bands)
        unused = [name for name in bands if name not in self.bands]
        if unused:
            raise UnknownBand(f"these weights do not use {', '.join(unused)}; leave out those channels; used: {', '.join(self.bands)}")
        asked = self.resolve(classes)
        answering = self._answering(asked)
        names = _answered(answering.lexicon, {part for query in asked for part in query.parts})
        wordings = {query.target: query.instruction for query in asked if len(query.parts) == 1}
        prompts = self.processor.prompts([[Request(name, wordings.get(name, "")) for name in names]])
        terms = self.processor.lexicon.terms
        queries = Queries(
            tuple(names.index(terms[name].parent) if terms[name].parent else None for name in names),
            tuple(tuple(names.index(part) for part in query.parts) for query in asked),
        )
        return Planner(answering.model, prompts, bands, [answering.offsets[name] for name in names], queries).eval().to(self.device)

    def _answering(self, queries: Sequence[ClassQuery]) -> _Answering:
        """Return what answers a list of classes."""
        terms, sets = self.processor.lexicon.terms, self.config.class_sets if self.taught else ()
        position = answering_set({part for query in queries for part in query.parts}, sets)
        lexicon = Lexicon([terms[name] for name in known_to_set(tuple(terms), sets, position)])
        offsets = {row["name"]: row["offset"] for row in rows_of_set(self.config.classes, sets, position)}
        return _Answering(self.model if position is None else self.taught[position], lexicon, offsets)

    def segment(self, reflectance: NDArray[np.floating], bands: Sequence[str], classes: Sequence[str | ClassQuery]) -> Segmentation:
        """Return what the model sees.

        Parameters
        ----------
        reflectance
            (N, C, H, W) surface reflectance, 0..1, slightly negative allowed, NaN = no data; any height and width. A pixel that is NaN in any of the
            bands used is no data, as in a map: the model sees it as NaN in all of them, and the result is NaN there.
        bands
            Canonical names of the C channels in their order. Channels that the weights were not trained on are left out with a warning.
        classes
            Names or queries of K classes.

        Returns
        -------
        Segmentation
            Chips with a side above `LARGEST_CHIP` are blended from windows of `WINDOW` pixels; their other side is not cut where it fits one. On the
            CPU a chip gets the same bits alone and among others; on a GPU chips share passes, and the last digits may differ.

        Raises
        ------
        UnknownBand, UnknownClass, InvalidReflectance
            A wrong band set, a word that the model does not know, or an array that cannot be reflectance of these bands.
        """
        values = as_chips(reflectance, bands)
        check_bands(bands, self.required_bands)
        used = [i for i, name in enumerate(bands) if name in self.bands]
        if len(used) < len(bands):
            left = ", ".join(name for name in bands if name not in self.bands)
            warnings.warn(f"these weights do not use {left}; left out", UnusedBand, stacklevel=2)
        values, names = values[:, used], tuple(bands[i] for i in used)
        check_reflectance(values, names)
        return self._segment(values, names, self.resolve(classes))

    @torch.inference_mode()
    def _segment(self, values: NDArray[np.float32], bands: tuple[str, ...], queries: tuple[ClassQuery, ...]) -> Segmentation:
        """Return what `segment` does of reflectance (N, C, H, W) that was checked."""
        missing = np.isnan(values.sum(1, keepdims=True))  # in any band
        values = np.where(missing, np.float32(np.nan), values)
        probabilities, presence = self._answer(self.planner(bands, queries), values)
        presence[missing.reshape(len(missing), -1).all(1)] = np.nan
        probabilities = np.where(missing, np.float32(np.nan), probabilities)
        return Segmentation(probabilities, presence, queries, values, bands, self.description.overlaps(queries))

    def generate(self, reflectance: NDArray[np.floating], bands: Sequence[str], classes: Sequence[str | ClassQuery]) -> Generation:
        """Return what `segment` returns, and what the language model itself writes about each chip and class, checked against the mask.

        Takes and raises what `segment` does. Numbers in the texts are computed; a text of which a statement does not hold comes back flagged. For
        texts that are computed throughout, use `Segmentation.explain`.
        """
        result = self.segment(reflectance, bands, classes)
        return Generation(result, tuple(self._texts(result, index) for index in range(len(result.probabilities))))

    def _texts(self, result: Segmentation, index: int) -> tuple[FreeText, ...]:
        chip, counted = result.reflectance[index], result.statistics(index)
        if max(chip.shape[1:]) > LARGEST_CHIP:
            reason = f"the language model reads chips of up to {LARGEST_CHIP} pixels a side; cut the image, or use Segmentation.explain"
            return (unwritten(reason),) * len(result.classes)
        model = self._answering(result.classes).model
        return tuple(self._tell(model, chip, result.bands, query, counted, k) for k, query in enumerate(result.classes))

    @torch.inference_mode()
    def _tell(
        self, model: SpexForLandCover, chip: NDArray[np.float32], bands: Sequence[str], query: ClassQuery, counted: ChipStatistics, k: int
    ) -> FreeText:
        if len(query.parts) > 1:
            return unwritten(f"the language model writes about single classes; ask for {' and '.join(query.parts)}")
        prompts = self.processor.prompts([[Request(query.target, query.instruction)]]).to(self.device)
        written = model.generate_text(self._padded(chip[None]), prompts, bands, self.processor.end)[0][0]
        mask = MaskOfClass.of(self.processor.lexicon.terms[query.target].phrase, counted.mask(k), counted.valid)
        return free_text(self.processor.text([*prompts.tokens[prompts.answer].tolist(), *written]), mask)

    def occlude(self, result: Segmentation, index: int) -> dict[str, NDArray[np.float32]]:
        """Return, by band, the probabilities (K, H, W) of chip `index` when that band is hidden; bands that the weights require are left out.

        It costs a `segment` a band. `Segmentation.explain` says with it where a class is mapped because of a band.
        """
        hidden = {}
        for band_name in result.bands:
            rest = tuple(each for each in result.bands if each != band_name)
            if rest and all(channel_of(each, rest) is not None for each in self.required_bands):
                chip = result.reflectance[index][None, [result.bands.index(each) for each in rest]]
                hidden[band_name] = self._segment(chip, rest, result.classes).probabilities[0]
        return hidden

    def _answer(self, planner: Planner, chips: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return probabilities (N, K, H, W), of no meaning where there is no data, and presence (N, K) of chips (N, C, H, W)."""
        height, width = chips.shape[2:]
        if max(height, width) > LARGEST_CHIP:
            parts = [self._in_windows(planner, chip) for chip in chips]
        else:
            together = self._together(height, width)
            parts = [self._pass(planner, chips[first : first + together]) for first in range(0, len(chips), together)]
        return np.concatenate([p for p, _ in parts]), np.concatenate([s for _, s in parts])

    def _together(self, height: int, width: int) -> int:
        """Return how many chips of that size share a pass."""
        # On the CPU, kernels chosen by batch size change the last bits, and a chip must not depend on its neighbours; nor is a batch faster there.
        if torch.device(self.device).type != "cuda":
            return 1
        return max(1, PIXELS_TOGETHER // (self._multiple(height) * self._multiple(width)))

    def _pass(self, planner: Planner, chips: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what `_answer` does, in one pass of the model."""
        height, width = chips.shape[2:]
        probabilities, presence = planner.predict(self._padded(chips))
        return probabilities[..., :height, :width].cpu().numpy(), presence.cpu().numpy()

    def _in_windows(self, planner: Planner, chip: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return what `_answer` does of one large chip (C, H, W): probabilities blended over the lattice of windows, the maximum of presence."""
        rows, columns = (self._windows_along(side) for side in chip.shape[1:])
        # Pixels beyond the chip are no data; the first windows may start before it.
        (above, below), (before, after) = ((-next(iter(axis)), WINDOW) for axis in (rows, columns))
        padded = np.pad(chip, ((0, 0), (above, below), (before, after)), constant_values=np.nan)[None]
        total = np.zeros((1, planner.classes, *padded.shape[2:]), np.float32)
        largest = np.zeros((1, planner.classes), np.float32)
        for (top, down), (left, across) in product(rows.items(), columns.items()):
            where = np.s_[..., above + top : above + top + len(down), before + left : before + left + len(across)]
            if not np.isnan(padded[where]).all():
                probabilities, presence = self._pass(planner, padded[where])
                total[where] += probabilities * np.outer(down, across)
                largest = np.maximum(largest, presence)
        return total[..., above : above + chip.shape[1], before : before + chip.shape[2]], largest

    def _windows_along(self, side: int) -> dict[int, NDArray[np.float32]]:
        """Return the first pixel of each window along a side, perhaps negative, and the weights of its pixels, which sum to 1 at every pixel."""
        if side <= WINDOW:
            return {0: np.ones(min(self._multiple(side + MARGIN), WINDOW), np.float32)}
        share = (blend_weights(WINDOW, STRIDE) / blend_total(WINDOW, STRIDE)).astype(np.float32)
        return dict.fromkeys(window_starts(0, side, WINDOW, STRIDE), share)

    def _multiple(self, side: int) -> int:
        return -(-side // self.config.stride) * self.config.stride

    def _padded(self, chips: NDArray[np.float32]) -> torch.Tensor:
        """Return chips (N, C, H, W) with sides that are multiples of the model's stride; what is added is no data."""
        padding = ((0, 0), (0, 0), *((0, self._multiple(side) - side) for side in chips.shape[2:]))
        return torch.from_numpy(np.pad(chips, padding, constant_values=np.nan)).to(self.device)


def _answered(lexicon: Lexicon, parts: set[str]) -> list[str]:
    """Return what has to be answered for some classes: all roots, and all kinds of each root of which a kind is asked."""
    split = {lexicon.terms[part].parent for part in parts} - {""}
    return [*lexicon.roots, *(child for root in lexicon.roots if root in split for child in lexicon.children(root))]
