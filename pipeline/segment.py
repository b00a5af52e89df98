"""The segmenting actor's work as a plain class: read a block, ask the model, clip to the region, stage.

Reading and computing overlap because two units are given to an actor at a time: both read in their own threads, one of them computes. Where blocks
are read by tasks elsewhere (`read_unit`), they come with the unit.
"""

from __future__ import annotations

import gc
import logging
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine import ClassQuery
from engine.blocks import BlockExecutor, Planes
from engine.runtimes import Windows, open_planner
from engine.runtimes.calibration import calibrated_batch
from engine.stored import StoredModel
from engine.windows import padded_span
from pipeline.areas import PixelAreas
from pipeline.errors import RunInterrupted
from pipeline.explanations import count_block
from pipeline.failures import Failure, failure_of
from pipeline.faults import reason
from pipeline.grid import PixelBox
from pipeline.read import Block
from pipeline.region import Region
from pipeline.series import MapClass
from pipeline.snap import region_mask
from pipeline.staging import StagedBlock, stage
from pipeline.storage import Storage
from pipeline.units import ReadUnit, SegmenterSettings, Unit, UnitOutcome, UnitReader
from stac.records import CONFIDENCE_NO_DATA, NO_DATA, OTHER, OUTSIDE_REGION, READ_FAILED, SOURCE_NO_DATA

log = logging.getLogger(__name__)


class Segmenter:
    """Holds the model on its device; `run` may be called from two threads at a time."""

    def __init__(self, settings: SegmenterSettings) -> None:
        """Load the model; raises RunInterrupted where the files are not those of the series."""
        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._storage = Storage(settings.output, settings.fence)
        model = StoredModel(settings.model, "cuda" if torch.cuda.is_available() else "cpu")
        if model.fingerprint != settings.series.model:
            raise RunInterrupted(f"the model at {settings.model} is not the one that the run was planned with; give every node the same files")
        queries = model.resolve([as_query(entry) for entry in settings.series.classes])
        windows = Windows(settings.window, len(settings.bands), self._batch(model, queries))
        opened = open_planner(model, settings.bands, queries, windows, settings.runtime, settings.threads)
        self._runtime = opened.identity
        self._executor = BlockExecutor(
            opened.planner,
            len(queries),
            [entry.threshold for entry in settings.series.classes],
            window=settings.window,
            stride=settings.stride,
            batch=windows.batch,
            device=opened.device,
        )
        self._codes = _code_table([entry.code for entry in settings.series.classes])
        self._reader = UnitReader(settings)
        self._areas = PixelAreas(settings.series.grid)

    def _batch(self, model: StoredModel, queries: tuple[ClassQuery, ...]) -> int:
        """Return the batch of the run where it counts for this device, else what fits beside a block."""
        settings = self._settings
        if settings.batch is not None and settings.batch_device in ("", _device()):
            return settings.batch
        top, bottom = padded_span(0, settings.block, settings.window, settings.stride)
        return calibrated_batch(model, settings.bands, queries, settings.window, settings.stride, bottom - top)

    def identity(self) -> dict[str, Any]:
        """Return the numerical identity: within one, the same plan gives the same bytes."""
        return {
            "weights": self._settings.series.model,
            **self._runtime,
            "numpy": np.__version__,
            "rasterio": version("rasterio"),
            "spexmap": version("spexmap"),
            "device": _device(),
            "batch": [self._executor.batch, len(self._settings.bands), self._settings.window, self._settings.window],
            "threads": self._settings.threads,
        }

    def run(self, unit: Unit, read: ReadUnit | None = None) -> UnitOutcome:
        """Segment and stage the blocks of `unit`, which were read elsewhere or are read here; an exception comes back as `UnitOutcome.error`.

        Where memory runs out, what is kept is let go and the unit is tried once more.
        """
        outcome = self._attempt(unit, read)
        if outcome.failure is Failure.MEMORY:
            log.warning("%s: %s; trying again with empty caches", unit, outcome.error)
            self._clear()
            outcome = self._attempt(unit, read)
        return outcome

    def _attempt(self, unit: Unit, read: ReadUnit | None) -> UnitOutcome:
        if read is not None and read.error:
            return UnitOutcome(unit, error=read.error, failure=read.failure, read_seconds=read.seconds)
        read_seconds, segment_seconds = 0.0 if read is None else read.seconds, 0.0
        try:
            for place, box in enumerate(unit.boxes):
                started = time.perf_counter()
                block = self._reader.read(unit, box) if read is None else read.blocks[place]
                read_seconds += time.perf_counter() - started
                if block.failures:
                    return UnitOutcome(unit, failures=tuple(block.failures), read_seconds=read_seconds, segment_seconds=segment_seconds)
                started = time.perf_counter()
                stage(self._storage, unit.fingerprint, self._segment(unit, box, block))
                segment_seconds += time.perf_counter() - started
        except Exception as error:
            log.exception("%s", unit)
            kind = failure_of(error)
            words = reason(error) + (f"; {self._advice()}" if kind is Failure.MEMORY else "")
            return UnitOutcome(unit, error=words, failure=kind, read_seconds=read_seconds, segment_seconds=segment_seconds)
        return UnitOutcome(unit, read_seconds=read_seconds, segment_seconds=segment_seconds)

    def _clear(self) -> None:
        """Let go of all memory that is kept for speed alone."""
        self._reader.forget()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _advice(self) -> str:
        """Return which setting to lower."""
        block, batch = self._settings.block, self._executor.batch
        return f"give the run a smaller --block ({block} pixels now), " + (f"or --batch ({batch} windows now)" if batch > 1 else "or fewer --workers")

    def _segment(self, unit: Unit, box: PixelBox, block: Block) -> StagedBlock:
        outer = self._reader.outer(box)
        planes = self._executor.segment(block.numbers, outer.top, outer.left, (box.top, box.left, box.bottom, box.right))
        inner = box.within(outer)
        clipped = self._clip(unit, box, planes, block, inner)
        seconds = {"runner_up": self._codes[planes.runner_up], "margin": planes.margin} if self._executor.n_classes > 1 else {}
        statistics = count_block(clipped | seconds, block.numbers[(slice(None), *inner)], self._settings.bands, box, self._areas)
        return StagedBlock(box, clipped, statistics)

    def _clip(self, unit: Unit, box: PixelBox, planes: Planes, block: Block, inner: tuple[slice, slice]) -> dict[str, NDArray[Any]]:
        """Return the four published planes: class codes, no data outside the region, and why where there is no data inside."""
        inside = region_mask(self._settings.series.grid, box, self._settings.region)
        landcover = np.where(inside, self._codes[planes.landcover], NO_DATA).astype(np.uint8)
        unfilled = block.status[inner]
        quality = np.where(unfilled > 0, self._blame(unit, box, unfilled), block.clear[inner])
        return {
            "landcover": landcover,
            "confidence": np.where(inside, planes.confidence, CONFIDENCE_NO_DATA).astype(np.uint8),
            "source": np.where(inside, block.source[inner], SOURCE_NO_DATA).astype(np.uint16),
            "quality": np.where(inside, quality, OUTSIDE_REGION).astype(np.uint8),
        }

    def _blame(self, unit: Unit, box: PixelBox, status: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return `status` with read failure where a scene that was left out of the tile covers the pixel."""
        for scene in unit.left_out:
            covered = region_mask(self._settings.series.grid, box, Region(scene.footprint))
            status = np.where(covered & (status > 0), READ_FAILED, status).astype(np.uint8)
        return status


def as_query(entry: MapClass) -> ClassQuery:
    """Return a class of the map as the model is asked for it."""
    return ClassQuery(entry.name, entry.title, entry.instruction, entry.threshold, entry.color)


def _code_table(codes: list[int]) -> NDArray[np.uint8]:
    """Return the table from the executor's class numbers (1..K, 255 other, 0 no data) to landcover codes."""
    table = np.zeros(256, np.uint8)
    table[1 : len(codes) + 1] = codes
    table[255] = OTHER
    return table


def _device() -> str:
    """Return the model name of the device that computes here."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()


def _processor() -> str:
    """Return the processor's model name, or the machine type where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.uname().machine})"
