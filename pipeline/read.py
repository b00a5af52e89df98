"""Blocks of harmonised reflectance: scene after scene, until no pixel is left to fill.

What a pixel gets depends on the pixel and the scenes alone, never on the block it is read in: files are read by `pipeline.warp`, clouds are grown
with a margin, and every scene's mask is read, also where nothing is left to fill, because it counts the clear observations.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from pipeline.assets import AssetReader
from pipeline.composite import NEAR_CLOUD, FirstClear, Median, grow_clouds
from pipeline.contradictions import elsewhere, first_contradiction
from pipeline.coverage import Coverage
from pipeline.errors import ReadFailed
from pipeline.grid import Grid, PixelBox
from pipeline.warp import CELL, Layout
from stac.documents import public
from stac.scenes import CLEAR, UNOBSERVED, BandSource, MaskSource, Scene

NEVER_OBSERVED, ALWAYS_CLOUDY, READ_FAILURE = 252, 253, 254
"""Status of a pixel without data: no scene saw it; every look at it was cloud, shadow or unusable; a scene that covers it could not be read."""
MOST_CLEAR = 250
"""Clear observations are counted up to this."""
_MEDIAN_BYTES = 128 * 2**20
_AHEAD = 2


@dataclass(frozen=True)
class Recipe:
    """What a block is made of."""

    bands: tuple[str, ...]
    """Canonical names, in channel order."""
    composite: str
    """least-cloudy, latest (both: the first clear pixel in the scenes' order) or median."""
    dilate: tuple[float, float] = (0.0, 0.0)
    """Radius around cloud and shadow in pixels (rows, columns), perhaps a fraction: used only where no scene is clear, and `clear` is 0 there."""


@dataclass(frozen=True)
class Block:
    """What was read for a box of H rows and W columns."""

    numbers: NDArray[np.uint16]
    """(C, H, W): round((reflectance + 0.1) * 10000) in 1..65535; 0 no data, in all bands at once."""
    source: NDArray[np.uint16]
    """(H, W): rank of the scene, from 1, in the order given; 0 none, or a median."""
    clear: NDArray[np.uint8]
    """(H, W): clear observations, at most 250."""
    status: NDArray[np.uint8]
    """(H, W): 0 where there is data, else 252 never observed, 253 always cloud or shadow, 254 read failure."""
    failures: tuple[tuple[str, str], ...]
    """(scene id, reason) of the scenes left out, in the scenes' order; reasons name unsigned hrefs."""


class BlockReader:
    """Reads blocks of one grid from scenes in their global order. Any number of threads may call `read` at a time.

    Parameters
    ----------
    grid
        The grid of the series.
    scenes
        In the run's global total order: the first clear pixel wins.
    recipe
        Bands, composite and cloud dilation.
    threads
        Files read at a time.
    assets
        Reads the files onto `grid`, and keeps what the next block may want again; several block readers may share it. Default: one of its own.

    Raises
    ------
    ValueError
        For a composite that does not exist, or more scenes than a uint16 can number.
    """

    def __init__(self, grid: Grid, scenes: Sequence[Scene], recipe: Recipe, threads: int = 4, assets: AssetReader | None = None) -> None:
        if recipe.composite not in ("least-cloudy", "latest", "median"):
            raise ValueError(f"composite {recipe.composite!r}: choose least-cloudy, latest or median")
        if len(scenes) > 65535:
            raise ValueError(f"{len(scenes)} scenes: at most 65535 can be told apart; shorten the period")
        self._recipe = recipe
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
        self._assets = assets or AssetReader(grid)
        self._entries = [_Entry(rank, scene, Coverage(scene.footprint, grid)) for rank, scene in enumerate(scenes, start=1)]
        self._believed: set[int] = set()

    def read(self, box: PixelBox) -> Block:
        """Return the composite of `box`; a scene that cannot be read is left out and named in the block's failures."""
        entries = [entry for entry in self._entries if entry.coverage.touches(box)]
        return self._median(box, entries, {}) if self._recipe.composite == "median" else self._first_clear(box, entries)

    def _first_clear(self, box: PixelBox, entries: list[_Entry]) -> Block:
        composite = FirstClear(np.zeros((len(self._recipe.bands), *box.shape), np.uint16))
        record, near = _Record(box), []
        for entry, look in self._looks(box, entries):
            try:
                codes, numbers = look.result()
                self._fill(composite, entry, codes == CLEAR, box, numbers)
            except ReadFailed as error:
                record.fail(entry, error)
            else:
                record.count(codes)
                near.append((entry, np.packbits(codes == NEAR_CLOUD, axis=1)))
        for entry, bits in near:
            try:
                self._fill(composite, entry, _unpacked(bits, box), box)
            except ReadFailed as error:
                record.fail(entry, error)
        return record.block(composite.numbers, composite.source)

    def _fill(self, composite: FirstClear, entry: _Entry, clear: NDArray[np.bool_], box: PixelBox, numbers: NDArray[np.uint16] | None = None) -> None:
        """Give the composite what it still wants of a scene; `numbers` are the scene's where they were read for the mask's sake."""
        wanted = composite.wanted(clear)
        if wanted.any():
            part = _bounds(wanted, box)
            cut = part.within(box)
            found = self._bands(entry, part, wanted[cut]) if numbers is None else numbers[:, *cut]
            composite.feed(entry.rank, found, wanted[cut], cut)

    def _median(self, box: PixelBox, entries: list[_Entry], failed: dict[int, ReadFailed]) -> Block:
        """Compose piece by piece; where a scene fails, begin again without it, so that no piece has it."""
        record, clear, near = _Record(box), {}, {}
        for entry, look in self._looks(box, [entry for entry in entries if entry.rank not in failed]):
            try:
                codes, _ = look.result()
            except ReadFailed as error:
                failed[entry.rank] = error
            else:
                record.count(codes)
                clear[entry.rank], near[entry.rank] = (np.packbits(codes == code, axis=1) for code in (CLEAR, NEAR_CLOUD))
        never = ~np.bitwise_or.reduce([*clear.values(), np.packbits(np.zeros(box.shape, np.bool_), axis=1)])
        for rank, bits in near.items():
            clear[rank] |= bits & never
        numbers = np.zeros((len(self._recipe.bands), *box.shape), np.uint16)
        for piece in box.lattice(self._piece_side(len(clear))):
            part = piece.intersect(box)
            composite = Median()
            for entry in entries:
                if entry.rank not in clear:
                    continue
                wanted = _unpacked(clear[entry.rank], box)[part.within(box)]
                try:
                    if wanted.any():
                        composite.feed(self._bands(entry, part, wanted), wanted)
                except ReadFailed as error:
                    return self._median(box, entries, failed | {entry.rank: error})
            if composite.observations:
                numbers[:, *part.within(box)] = composite.data
        for entry in entries:
            if entry.rank in failed:
                record.fail(entry, failed[entry.rank])
        return record.block(numbers, np.zeros(box.shape, np.uint16))

    def _piece_side(self, scenes: int) -> int:
        """Return the side of the median's pieces, whole cells of the reader, such that all scenes of one piece stay within the limit on memory."""
        pixel = 2 * len(self._recipe.bands) * max(scenes, 1) * 3
        return max(1, int((_MEDIAN_BYTES / pixel) ** 0.5) // CELL) * CELL

    def _looks(self, box: PixelBox, entries: list[_Entry]) -> Iterator[tuple[_Entry, Future[_Look]]]:
        """Yield every entry in order with its look at `box`, a few of them begun ahead."""
        begun: deque[tuple[_Entry, Future[_Look]]] = deque()
        for entry in entries:
            begun.append((entry, self._pool.submit(self._look, entry, box)))
            if len(begun) > _AHEAD:
                yield begun.popleft()
        yield from begun

    def _look(self, entry: _Entry, box: PixelBox) -> _Look:
        """Return the observation codes of `box`, clouds grown; without a mask also the numbers, which alone say what is clear there."""
        missing = [name for name in self._recipe.bands if name not in entry.scene.bands]
        if missing:
            raise ReadFailed(f"the scene has no band {', '.join(missing)}")
        if entry.scene.mask is None:
            numbers = self._bands(entry, box)
            codes = np.where(numbers.all(axis=0), CLEAR, UNOBSERVED).astype(np.uint8)
            return _leave_out(codes, entry.coverage, box), numbers
        self._check_place(entry, entry.scene.mask)
        margin = box.expand(ceil(self._recipe.dilate[0]), ceil(self._recipe.dilate[1]))
        codes = _leave_out(self._assets.mask(entry.scene.mask, margin), entry.coverage, margin)
        return grow_clouds(codes, self._recipe.dilate)[box.within(margin)], None

    def _bands(self, entry: _Entry, box: PixelBox, wanted: NDArray[np.bool_] | None = None) -> NDArray[np.uint16]:
        sources = self._sources(entry.scene)
        # A scene without a mask is read in a thread of the pool, which must not wait for others of the pool.
        run = map if wanted is None else self._pool.map
        self._check(entry, list(run(self._assets.layout, sources)))
        return self._assets.bands(sources, box, wanted, run)

    def _check(self, entry: _Entry, layouts: Sequence[Layout]) -> None:
        """Raise ReadFailed where the files of a scene contradict its item or each other; looked at once a scene."""
        if entry.rank in self._believed:
            return
        scene = entry.scene
        self._check_place(entry, *self._sources(scene))
        others = {} if scene.mask is None else {scene.mask.href: self._assets.layout(scene.mask)}
        if found := first_contradiction(self._sources(scene), layouts, others):
            raise ReadFailed(f"{public(found[0])}: {found[1]}")
        self._believed.add(entry.rank)

    def _check_place(self, entry: _Entry, *sources: BandSource | MaskSource) -> None:
        for source in sources:
            if problem := elsewhere(self._assets.layout(source), entry.coverage.bounds):
                raise ReadFailed(f"{public(source.href)}: {problem}")

    def _sources(self, scene: Scene) -> list[BandSource]:
        return [scene.bands[name] for name in self._recipe.bands]


_Look = tuple[NDArray[np.uint8], NDArray[np.uint16] | None]


@dataclass(frozen=True)
class _Entry:
    """A scene with its place in the order and on the grid."""

    rank: int
    scene: Scene
    coverage: Coverage


class _Record:
    """What the scenes showed of a box, beside the numbers themselves."""

    def __init__(self, box: PixelBox) -> None:
        self._box = box
        self._observed = np.zeros(box.shape, np.bool_)
        self._failed = np.zeros(box.shape, np.bool_)
        self._clear = np.zeros(box.shape, np.uint16)
        self._failures: list[tuple[str, str]] = []

    def count(self, codes: NDArray[np.uint8]) -> None:
        self._observed |= codes != UNOBSERVED
        self._clear += codes == CLEAR

    def fail(self, entry: _Entry, error: ReadFailed) -> None:
        self._failed |= entry.coverage.covered(self._box)
        self._failures.append((entry.scene.id, str(error)))

    def block(self, numbers: NDArray[np.uint16], source: NDArray[np.uint16]) -> Block:
        status = np.full(self._box.shape, NEVER_OBSERVED, np.uint8)
        status[self._observed] = ALWAYS_CLOUDY
        status[self._failed] = READ_FAILURE
        status[numbers[0] != 0] = 0
        return Block(numbers, source, np.minimum(self._clear, MOST_CLEAR).astype(np.uint8), status, tuple(self._failures))


def _leave_out(codes: NDArray[np.uint8], coverage: Coverage, box: PixelBox) -> NDArray[np.uint8]:
    for part in coverage.outside(box):
        codes[part.within(box)] = UNOBSERVED
    return codes


def _unpacked(bits: NDArray[np.uint8], box: PixelBox) -> NDArray[np.bool_]:
    return np.unpackbits(bits, axis=1, count=box.shape[1]).view(np.bool_)


def _bounds(wanted: NDArray[np.bool_], box: PixelBox) -> PixelBox:
    """Return the smallest box around the wanted pixels (at least one) of `box`."""
    rows, columns = np.flatnonzero(wanted.any(axis=1)), np.flatnonzero(wanted.any(axis=0))
    return PixelBox(box.top + int(rows[0]), box.left + int(columns[0]), box.top + int(rows[-1]) + 1, box.left + int(columns[-1]) + 1)
