"""The segmenting actor's work as a plain class: read a block, ask the model, clip to the region, stage.

Reading and computing overlap because two units are given to an actor at a time: both read in their own threads, one of them computes.
"""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engine import ClassQuery, Spex
from engine.blocks import BlockExecutor, Planes
from engine.runtimes import Windows, open_planner
from engine.windows import padded_span
from pipeline.areas import PixelAreas
from pipeline.errors import RunInterrupted
from pipeline.explanations import count_block
from pipeline.grid import PixelBox
from pipeline.read import Block, BlockReader, Recipe
from pipeline.region import Region
from pipeline.series import MapClass, Series
from pipeline.snap import region_mask
from pipeline.staging import StagedBlock, stage
from pipeline.storage import Storage
from stac.records import CONFIDENCE_NO_DATA, NO_DATA, OTHER, OUTSIDE_REGION, READ_FAILED, SOURCE_NO_DATA
from stac.scenes import Scene

log = logging.getLogger(__name__)

READERS_KEPT = 2


@dataclass(frozen=True)
class SegmenterSettings:
    """What is the same for every unit of a run."""

    output: str
    series: Series
    region: Region
    bands: tuple[str, ...]
    dilate: tuple[float, float]
    """Pixels (rows, columns) that cloud and shadow are grown by."""
    model: str
    window: int
    stride: int
    threads: int
    runtime: str = "auto"
    """See `engine.runtimes.choose`."""


@dataclass(frozen=True)
class Unit:
    """Adjacent blocks of one tile that one actor reads, segments and stages."""

    tile: str
    fingerprint: str
    boxes: tuple[PixelBox, ...]
    scenes: tuple[Scene, ...]
    """In the run's total order; rank 1 is the first."""
    left_out: tuple[Scene, ...] = ()
    """Scenes of the tile that could not be read."""
    attempts: int = 0
    deaths: int = 0

    @property
    def alone(self) -> bool:
        """Whether it must have an actor to itself, so that the next death is its own."""
        return self.deaths >= 2

    def __str__(self) -> str:
        """Return the unit in words for logs."""
        return f"tile {self.tile}, blocks {', '.join(f'{box.top},{box.left}' for box in self.boxes)}"


@dataclass(frozen=True)
class UnitOutcome:
    """How a unit ended: staged, or scenes that could not be read, or an error."""

    unit: Unit
    failures: tuple[tuple[str, str], ...] = ()
    """(scene id, reason): nothing was staged of the block in which they failed."""
    error: str = ""
    read_seconds: float = 0.0
    segment_seconds: float = 0.0


class Segmenter:
    """Holds the model on its device; `run` may be called from two threads at a time."""

    def __init__(self, settings: SegmenterSettings) -> None:
        """Load the model; raises RunInterrupted where the files are not those of the series."""
        torch.set_num_threads(settings.threads)
        self._settings = settings
        self._storage = Storage(settings.output)
        spex = Spex.load(settings.model, threads=settings.threads)
        if spex.fingerprint != settings.series.model:
            raise RunInterrupted(f"the model at {settings.model} is not the one that the run was planned with; give every node the same files")
        queries = spex.resolve([as_query(entry) for entry in settings.series.classes])
        windows = Windows(settings.window, len(settings.bands))
        opened = open_planner(spex, settings.bands, queries, windows, settings.runtime, settings.threads)
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
        self._recipe = Recipe(settings.bands, settings.series.composite, settings.dilate)
        self._readers: OrderedDict[str, BlockReader] = OrderedDict()
        self._areas = PixelAreas(settings.series.grid)
        self._reader_lock = threading.Lock()
        self._device = threading.Lock()

    def identity(self) -> dict[str, Any]:
        """Return the numerical identity: within one, the same plan gives the same bytes."""
        return {
            "weights": self._settings.series.model,
            **self._runtime,
            "numpy": np.__version__,
            "rasterio": version("rasterio"),
            "spexmap": version("spexmap"),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
            "batch": [self._executor.batch, len(self._settings.bands), self._settings.window, self._settings.window],
            "threads": self._settings.threads,
        }

    def run(self, unit: Unit) -> UnitOutcome:
        """Read, segment and stage the blocks of `unit`; an exception comes back as `UnitOutcome.error`."""
        read_seconds = segment_seconds = 0.0
        try:
            for box in unit.boxes:
                started = time.perf_counter()
                block = self._reader(unit).read(self._read_box(box))
                read_seconds += time.perf_counter() - started
                if block.failures:
                    return UnitOutcome(unit, failures=tuple(block.failures), read_seconds=read_seconds, segment_seconds=segment_seconds)
                started = time.perf_counter()
                stage(self._storage, unit.fingerprint, self._segment(unit, box, block))
                segment_seconds += time.perf_counter() - started
        except Exception as error:
            log.exception("%s", unit)
            return UnitOutcome(unit, error=f"{type(error).__name__}: {error}", read_seconds=read_seconds, segment_seconds=segment_seconds)
        return UnitOutcome(unit, read_seconds=read_seconds, segment_seconds=segment_seconds)

    def _read_box(self, box: PixelBox) -> PixelBox:
        """Return the pixels that the windows over `box` see."""
        top, bottom = padded_span(box.top, box.bottom, self._settings.window, self._settings.stride)
        left, right = padded_span(box.left, box.right, self._settings.window, self._settings.stride)
        return PixelBox(top, left, bottom, right)

    def _segment(self, unit: Unit, box: PixelBox, block: Block) -> StagedBlock:
        outer = self._read_box(box)
        with self._device:
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

    def _reader(self, unit: Unit) -> BlockReader:
        """Return the reader of the tile's scenes; a few are kept, for opening scenes costs more than keeping them."""
        with self._reader_lock:
            reader = self._readers.get(unit.fingerprint)
            if reader is None:
                reader = BlockReader(self._settings.series.grid, unit.scenes, self._recipe)
                self._readers[unit.fingerprint] = reader
                if len(self._readers) > READERS_KEPT:
                    self._readers.popitem(last=False)
            self._readers.move_to_end(unit.fingerprint)
            return reader


def as_query(entry: MapClass) -> ClassQuery:
    """Return a class of the map as the model is asked for it."""
    return ClassQuery(entry.name, entry.title, entry.instruction, entry.threshold, entry.color)


def _code_table(codes: list[int]) -> NDArray[np.uint8]:
    """Return the table from the executor's class numbers (1..K, 255 other, 0 no data) to landcover codes."""
    table = np.zeros(256, np.uint8)
    table[1 : len(codes) + 1] = codes
    table[255] = OTHER
    return table


def _processor() -> str:
    """Return the processor's model name, or the machine type where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.uname().machine})"
