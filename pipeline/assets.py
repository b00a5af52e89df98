"""Reading bands and masks of scenes onto the grid, again on a fresh handle where it fails."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from threading import Lock
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.env import set_gdal_config
from rasterio.errors import RasterioError
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from tenacity.wait import wait_base

from pipeline.cells import Cells
from pipeline.composite import harmonise
from pipeline.errors import ReadFailed
from pipeline.grid import Grid, PixelBox
from pipeline.pins import changed, file_state
from pipeline.warp import CELL, Keep, Layout, lay_out, pixels
from stac.documents import public
from stac.scenes import BandSource, MaskSource
from stac.signing import gdal_path

CACHE_BYTES = 256 * 2**20
"""GDAL's block cache, for the whole process."""
GDAL_OPTIONS = {
    "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
    "GDAL_HTTP_CONNECTTIMEOUT": 20,
    "GDAL_HTTP_TIMEOUT": 120,
    "GDAL_HTTP_LOW_SPEED_LIMIT": 100,
    "GDAL_HTTP_MAX_RETRY": 2,
    "GDAL_HTTP_RETRY_DELAY": 0.2,
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_HTTP_MULTIPLEX": "YES",
}
"""GDAL's settings while it reads: no directory listings, limits on every wait; what the environment sets wins. A server that sends nothing costs what
`SILENCES` says (GDAL does not repeat that), one that answers 429, 500, 502 to 504 or resets is asked twice more by GDAL itself (no list of codes is
set: with one it would not repeat resets). VSI_CACHE stays off: 25 MB for each open file, and more requests."""
SILENCES = (1, 2, 5, 10, 20)
"""Seconds in which a server may send nothing, for each attempt at a file: what one server swallowed another one answers at once, and one that is
slow gets its time in the end."""
LOCAL_ATTEMPTS = 3
"""At a file that lies on no server."""
_FORGET = {"CPL_VSIL_CURL_NON_CACHED": "/vsicurl/:/vsis3/:/vsigs/:/vsiaz/"}

_SILENCE = re.compile("too slow|timed out|timeout|could not connect", re.IGNORECASE)
_PARTS = 4

T = TypeVar("T")
Run = Callable[..., Iterable[Any]]


class AssetReader:
    """Reads files onto one grid, from any number of threads at a time.

    Parameters
    ----------
    grid
        The grid of the series.
    pause
        How long tenacity waits between two attempts; default up to half a second, then up to twice as long each time.
    """

    def __init__(self, grid: Grid, pause: wait_base | None = None) -> None:
        self._grid, self._pause = grid, pause or wait_random_exponential(multiplier=0.5, max=20)
        self._cells = Cells()
        # Not in an Env: leaving one sets the cache back to 5 % of the machine for the threads that still read.
        set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES)
        self._layouts: dict[BandSource | MaskSource, Layout] = {}
        self._silent: set[str] = set()
        """Servers of which a file was waited for in vain; further files there are asked for once, until one is read."""
        self._lock = Lock()

    def bands(self, sources: Sequence[BandSource], box: PixelBox, wanted: NDArray[np.bool_] | None = None, run: Run = map) -> NDArray[np.uint16]:
        """Return harmonised numbers (C, H, W) of `box`, uint16, 0 no data.

        Parameters
        ----------
        wanted
            Bool (H, W); elsewhere the numbers may be 0 too.
        run
            How to do independent reads: the builtin, or an executor's `map`.

        Raises
        ------
        ReadFailed
            After `LOCAL_ATTEMPTS`, at a server as many as there are `SILENCES`; or where a file is not the one that the run was planned with. Names
            unsigned hrefs.
        """
        layouts = list(run(self.layout, sources))
        numbers = np.zeros((len(sources), *box.shape), np.uint16)

        def fill(task: tuple[list[int], PixelBox]) -> None:
            places, part = task
            cut = part.within(box)
            of_part = None if wanted is None else wanted[cut]
            chosen, layout = [sources[place] for place in places], layouts[places[0]]
            self._fill(numbers[:, *cut], places, chosen, layout, part, of_part, self._keep(tuple(chosen), layout, box))

        for _ in run(fill, _tasks(layouts, box)):
            pass
        for source in sources:
            self._check_unchanged(source)
        return numbers

    def mask(self, source: MaskSource, box: PixelBox) -> NDArray[np.uint8]:
        """Return the observation codes (H, W) of `box`, uint8, UNOBSERVED where the file has no data or ends.

        Raises
        ------
        ReadFailed
            As `bands`.
        """

        def read(paths: list[str]) -> NDArray[np.uint8]:
            codes = np.zeros(box.shape, np.uint8)
            layout = self._layout(paths[0], source)
            bands, keep = [(paths[0], source.index)], self._keep((source,), layout, box)
            for part, found in pixels(bands, layout, self._grid, box, None, False, partial(_observed, source), keep):
                codes[part.within(box)] = found
            return codes

        codes = self._retried([source.href], read)
        self._check_unchanged(source)
        return codes

    def forget(self) -> None:
        """Let go of what is kept of files for speed alone."""
        self._cells.clear()

    def _check_unchanged(self, source: BandSource | MaskSource) -> None:
        """Raise ReadFailed where the file is not the one that was planned with; looked at after reading, so that what was read is of that one."""
        if source.seen is not None and changed(source, self._retried([source.href], lambda paths: file_state(paths[0]))):
            raise ReadFailed(f"{public(source.href)}: the file was replaced while the run was under way; the next run takes the new one")

    def _fill(
        self,
        numbers: NDArray[np.uint16],
        places: list[int],
        sources: list[BandSource],
        layout: Layout,
        box: PixelBox,
        wanted: NDArray[np.bool_] | None,
        keep: Keep,
    ) -> None:
        """Put the bands of one layout into their places of `numbers` (C, H, W)."""

        def read(paths: list[str]) -> None:
            bands = [(path, source.index) for path, source in zip(paths, sources, strict=True)]
            for part, found in pixels(bands, layout, self._grid, box, wanted, True, partial(_harmonised, sources), keep):
                for place, plane in zip(places, found, strict=True):
                    numbers[place][part.within(box)] = plane

        self._retried([source.href for source in sources], read)

    def _keep(self, sources: tuple[BandSource | MaskSource, ...], layout: Layout, box: PixelBox) -> Keep:
        """Return what keeps the cells along the edges of `box`; no other block wants those inside."""

        def keep(cell: PixelBox, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
            around = cell.expand(CELL)
            return make() if around.intersect(box) == around else self._cells.get((sources, layout, cell), make)

        return keep

    def layout(self, source: BandSource | MaskSource) -> Layout:
        """Return how a band or a mask lies on the grid, read once from its file's header; raises ReadFailed."""
        known = self._layouts.get(source)
        return known or self._retried([source.href], lambda paths: self._layout(paths[0], source))

    def _layout(self, path: str, source: BandSource | MaskSource) -> Layout:
        if source not in self._layouts:
            layout = lay_out(path, source.index, self._grid, source.nodata, exact=isinstance(source, MaskSource))
            with self._lock:
                self._layouts.setdefault(source, layout)
        return self._layouts[source]

    def _retried(self, hrefs: list[str], read: Callable[[list[str]], T]) -> T:
        """Return ``read(paths)``, where the paths are signed anew for each attempt.

        From the second attempt on GDAL forgets what it knows of a file when it closes it, and with it that the file could not be read.
        """
        errors = (RasterioError, OSError, ValueError, CPLE_BaseError)
        paths, servers = hrefs, {urlsplit(href).netloc for href in hrefs}
        known = len(SILENCES) if servers - {""} else LOCAL_ATTEMPTS
        most = 1 if servers & self._silent else known
        try:
            for attempt in Retrying(stop=stop_after_attempt(most), wait=self._wait, retry=retry_if_exception_type(errors), reraise=True):
                with attempt:
                    paths = [gdal_path(href) for href in hrefs]
                    number = attempt.retry_state.attempt_number
                    silence = SILENCES[-1] if most == 1 else SILENCES[number - 1]
                    with rasterio.Env(**_gdal_options(silence), **(_FORGET if number > 1 else {})):
                        found = read(paths)
                    self._note(servers, silent=False)
                    return found
        except errors as error:
            reason = _reason(_better(error, paths), hrefs, paths)
            self._note(servers - {""}, silent=bool(_SILENCE.search(reason)))
            raise ReadFailed(reason) from None
        raise AssertionError("tenacity returns or raises")

    def _wait(self, state: RetryCallState) -> float:
        """Return the seconds before the next attempt: none after a server that was waited for already."""
        error = state.outcome.exception() if state.outcome else None
        return 0.0 if _SILENCE.search(str(error)) else self._pause(state)

    def _note(self, servers: set[str], silent: bool) -> None:
        with self._lock:
            self._silent = self._silent | servers if silent else self._silent - servers


def _gdal_options(silence: int) -> dict[str, Any]:
    return {name: os.environ.get(name, value) for name, value in (GDAL_OPTIONS | {"GDAL_HTTP_LOW_SPEED_TIME": silence}).items()}


def _harmonised(sources: Sequence[BandSource], numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    return np.stack([harmonise(plane, source) for plane, source in zip(numbers, sources, strict=True)])


def _observed(source: MaskSource, numbers: NDArray[np.float32]) -> NDArray[np.uint8]:
    valid = np.isfinite(numbers[0])
    codes: NDArray[np.uint8] = source.observe(np.where(valid, numbers[0], 0).astype(np.int64)) * valid
    return codes


def _tasks(layouts: Sequence[Layout], box: PixelBox) -> list[tuple[list[int], PixelBox]]:
    """Return what can be read at a time: single bands on the grid, else all bands of one layout in a few rows of cells."""
    stacks: dict[object, list[int]] = {}
    for place, layout in enumerate(layouts):
        stacks.setdefault(layout if layout.corner is None else place, []).append(place)
    tasks = []
    for places in stacks.values():
        parts = [box] if layouts[places[0]].corner else _rows_of_cells(box)
        tasks += [(places, part) for part in parts]
    return tasks


def _rows_of_cells(box: PixelBox) -> list[PixelBox]:
    """Cut `box` into a few parts along the rows of the warp's cells, so that no cell is warped twice."""
    first, last = box.top // CELL, -(-box.bottom // CELL)
    height = max(1, -(-(last - first) // _PARTS)) * CELL
    tops = range(first * CELL, box.bottom, height)
    return [PixelBox(max(top, box.top), box.left, min(top + height, box.bottom), box.right) for top in tops]


def _better(error: BaseException, paths: list[str]) -> BaseException:
    """Return why the server does not give a file, where GDAL says only that it is none: that is its word for a server that stalls, too."""
    if "not recognized as" in str(error):
        for path in paths:
            try:
                file_state(path)
            except OSError as found:
                return found
    return error


def _reason(error: BaseException, hrefs: list[str], paths: list[str]) -> str:
    """Return what went wrong in one line that names files by their unsigned hrefs, without any query string."""
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    text = str(causes[-1])
    for href, path in zip(hrefs, paths, strict=True):
        text = text.replace(path, href)
    named = [href for href in hrefs if href in text] or hrefs
    told = [re.sub(r"\?\S*", "", each) for each in (" and ".join(named), text)]
    return ": ".join(" ".join(each.split()) for each in told if each)
