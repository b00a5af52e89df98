"""Warped cells that the next block may want again: neighbours see some of each other's pixels, and share the cells that their edges cut."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from threading import Lock
from typing import Any

from numpy.typing import NDArray

KEPT_BYTES = 128 * 2**20
"""What is kept at most: about the edges of two large blocks of ten bands."""


class Cells:
    """Keeps the arrays that were asked for last, for any number of threads: one of them makes an array, the others wait for it.

    Parameters
    ----------
    most_bytes
        Of all kept arrays together; those asked for longest ago go first.
    """

    def __init__(self, most_bytes: int = KEPT_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._kept: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._under_way: dict[Hashable, Future[NDArray[Any]]] = {}
        self._lock = Lock()

    def get(self, key: Hashable, make: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """Return the array of `key`, read-only: the kept one, else that of ``make()``; what that raises is raised, and nothing is kept of it."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            others = self._under_way.get(key)
            if others is None:
                own = self._under_way[key] = Future()
        if others is not None:
            return others.result()
        try:
            array = make()
            array.flags.writeable = False
            self._keep(key, array)
            own.set_result(array)
        except BaseException as error:
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._under_way[key]
        return array

    def clear(self) -> None:
        """Let go of everything."""
        with self._lock:
            self._kept.clear()
            self._bytes = 0

    def _keep(self, key: Hashable, array: NDArray[Any]) -> None:
        with self._lock:
            self._kept[key] = array
            self._bytes += array.nbytes
            while self._bytes > self._most_bytes:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
