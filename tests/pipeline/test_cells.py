"""Arrays that are kept: each made once, the oldest go first, and nothing is kept of what failed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import numpy as np
import pytest

from pipeline.cells import Cells


def made(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


def test_an_array_is_made_once_and_cannot_be_changed() -> None:
    cells, calls = Cells(), []
    for _ in range(2):
        array = cells.get("a", lambda: calls.append("a") or made(4))
    assert calls == ["a"]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_those_asked_for_longest_ago_are_made_anew() -> None:
    cells, calls = Cells(most_bytes=10), []

    def ask(key: str) -> None:
        cells.get(key, lambda: calls.append(key) or made(4))

    for key in ("a", "b", "a", "c", "a", "b"):
        ask(key)
    assert calls == ["a", "b", "c", "b"]
    cells.clear()
    ask("a")
    assert calls[-1] == "a"


def test_one_that_is_larger_than_the_limit_is_not_kept() -> None:
    cells = Cells(most_bytes=10)
    assert cells.get("a", lambda: made(11)).size == 11
    assert cells.get("a", lambda: made(1)).size == 1


def test_threads_that_want_the_same_wait_for_the_first() -> None:
    cells, calls, going = Cells(), [], Event()
    ready = Barrier(5)

    def slow() -> np.ndarray:
        calls.append("a")
        going.wait(10)
        return made(4)

    def ask() -> np.ndarray:
        ready.wait(10)
        return cells.get("a", slow)

    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask) for _ in range(4)]
        ready.wait(10)
        going.set()
        arrays = [each.result(10) for each in asked]
    assert calls == ["a"] and all(array is arrays[0] for array in arrays)


def test_what_failed_is_tried_again() -> None:
    cells = Cells()

    def fail() -> np.ndarray:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cells.get("a", fail)
    assert cells.get("a", lambda: made(3)).size == 3
