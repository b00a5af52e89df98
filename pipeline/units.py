"""What an actor is given to do and what comes back: blocks of a tile to read, to segment and to stage. Reading them is here; it takes no model."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass

from engine.windows import padded_span
from pipeline.assets import AssetReader
from pipeline.failures import Failure, failure_of
from pipeline.faults import reason
from pipeline.grid import PixelBox
from pipeline.read import Block, BlockReader, Recipe
from pipeline.region import Region
from pipeline.series import Series
from pipeline.storage import Fence
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
    batch: int | None = None
    """Windows a call of the model, the same in every actor of a run; None: what fits the device beside a block."""
    block: int = 2560
    """Side of the largest block in pixels."""
    batch_device: str = ""
    """The device that the batch was chosen for; on another one it does not count. Empty: any."""
    fence: Fence | None = None
    """Asked before every write whether the run still holds its output."""


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
    memory_failures: int = 0
    avoid: tuple[str, ...] = ()
    """Nodes whose device failed on it."""

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
    failure: Failure = Failure.ERROR
    """Kind of the error, where there is one."""
    node: str = ""
    """Where it happened, where that matters."""
    read_seconds: float = 0.0
    segment_seconds: float = 0.0


class UnitReader:
    """Reads what the windows over a unit's blocks see; may be called from several threads."""

    def __init__(self, settings: SegmenterSettings) -> None:
        self._settings = settings
        self._recipe = Recipe(settings.bands, settings.series.composite, settings.dilate)
        self._assets = AssetReader(settings.series.grid)
        self._readers: OrderedDict[str, BlockReader] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, unit: Unit, box: PixelBox) -> Block:
        """Return the pixels that the windows over `box` see."""
        return self._reader(unit).read(self.outer(box))

    def outer(self, box: PixelBox) -> PixelBox:
        """Return where these pixels lie."""
        top, bottom = padded_span(box.top, box.bottom, self._settings.window, self._settings.stride)
        left, right = padded_span(box.left, box.right, self._settings.window, self._settings.stride)
        return PixelBox(top, left, bottom, right)

    def forget(self) -> None:
        """Let go of open scenes and what is kept of them."""
        with self._lock:
            self._readers.clear()
            self._assets.forget()

    def _reader(self, unit: Unit) -> BlockReader:
        """Return the reader of the tile's scenes; a few are kept, for opening scenes costs more than keeping them."""
        with self._lock:
            reader = self._readers.get(unit.fingerprint)
            if reader is None:
                reader = BlockReader(self._settings.series.grid, unit.scenes, self._recipe, assets=self._assets)
                self._readers[unit.fingerprint] = reader
                if len(self._readers) > READERS_KEPT:
                    self._readers.popitem(last=False)
            self._readers.move_to_end(unit.fingerprint)
            return reader


@dataclass(frozen=True)
class ReadUnit:
    """The blocks of a unit, read elsewhere; or why they could not be."""

    blocks: tuple[Block, ...] = ()
    error: str = ""
    failure: Failure = Failure.ERROR
    seconds: float = 0.0


def read_unit(settings: SegmenterSettings, unit: Unit) -> ReadUnit:
    """Return the blocks of `unit`; an exception comes back as `ReadUnit.error`."""
    started = time.perf_counter()
    reader = UnitReader(settings)
    try:
        return ReadUnit(tuple(reader.read(unit, box) for box in unit.boxes), seconds=time.perf_counter() - started)
    except Exception as error:
        log.exception("%s", unit)
        return ReadUnit(error=reason(error), failure=failure_of(error), seconds=time.perf_counter() - started)
