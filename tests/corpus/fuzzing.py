"""How long to fuzz, from which seed, and how a document is spoiled at random."""

from __future__ import annotations

import copy
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date, datetime
from types import FrameType
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

SECONDS = float(os.environ.get("SPEXMAP_FUZZ_SECONDS", "6"))
"""For all fuzzing together."""
SEED = int(os.environ.get("SPEXMAP_FUZZ_SEED", time.time_ns() // 1_000_000 if "SPEXMAP_FUZZ_SECONDS" in os.environ else 0))
"""The first batch's; `make test` begins at 0, longer fuzzing at a new place each time, which is printed."""
BATCH = 40
PARTS = 3
HANGS = 60
"""Seconds after which one example counts as hanging."""

WEIRD = st.sampled_from(
    [
        *(None, True, False, 0, -1, 1, 255, 65536, 10**30, 10**400, -(2**63)),
        *(0.5, -0.0, 1e-300, 1e308, float("inf"), float("-inf"), float("nan")),
        *(
            "",
            " ",
            "\0",
            "null",
            "../../x",
            "/etc/passwd",
            "file:///etc/passwd",
            "http://[::1",
            "ä漢字🛰",
            "\ud800",
            "x" * 5000,
            "${HOME}",
            "{0}",
            "%s",
        ),
        *("2021-07-12T10:10:32Z", "2021-13-45", "9999-12-31T23:59:59.999999Z", "0001-01-01T00:00:00+14:00", "P1M", "P9999Y", "EPSG:4326"),
        *([], {}, [[]], [None], [{}], {"": None}, {"href": None}, [1, 2, 3, 4], [0, 0, 0, 0], ["a", 1, None]),
    ]
)
"""Values that a field may hold and its reader may not expect."""
ANYTHING = st.one_of(WEIRD, st.text(max_size=20), st.integers(), st.floats(), st.binary(max_size=3).map(lambda data: data.decode("latin-1")))


def fuzz(name: str, strategy: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    """Check examples, batch after batch, each of another seed, until this test's part of the time is over."""
    began, batches = time.monotonic(), 0
    while batches == 0 or time.monotonic() - began < SECONDS / PARTS:
        _batch(strategy, check, SEED + batches)
        batches += 1
    print(f"{name}: {batches} batches of {BATCH} examples from SPEXMAP_FUZZ_SEED={SEED}")


def _batch(strategy: st.SearchStrategy[Any], check: Callable[[Any], None], seed: int) -> None:
    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=BATCH,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )
    @given(strategy)
    def batch(example: Any) -> None:
        with _limit(HANGS):
            check(example)

    try:
        batch()
    except BaseException as error:
        error.add_note(f"SPEXMAP_FUZZ_SEED={seed} begins with this failure")
        raise


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in an example that hangs."""

    def hangs(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"an example took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------------------------------------------- documents


class Spoiled:
    """A document and, for whoever reads a failure, only what was done to it."""

    def __init__(self, document: Any, acts: list[str]) -> None:
        self.document, self.acts = document, acts

    def __repr__(self) -> str:
        name = self.document.get("id", "") if isinstance(self.document, dict) else ""
        return f"Spoiled({str(name)[:80]!r}: {'; '.join(self.acts)})"


@st.composite
def spoiled(draw: st.DrawFn, documents: st.SearchStrategy[Any], value: st.SearchStrategy[Any] = ANYTHING) -> Spoiled:
    """Documents with one to four places deleted, replaced, renamed, wrapped or put elsewhere."""
    document = copy.deepcopy(draw(documents))
    acts = []
    for _ in range(draw(st.integers(1, 4))):
        places = list(_places(document))
        if not places:
            break
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        act = draw(st.sampled_from(["delete", "replace", "replace", "wrap", "text", "rename", "move"]))
        _spoil(draw, act, holder, key, value, places)
        acts.append(f"{act} {key!r}: {repr(holder.get(key) if isinstance(holder, dict) else holder[key : key + 1])[:120]}")
    return Spoiled(document, acts)


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (holder, key or index) of every value within a document."""
    waiting = [document]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            waiting.append(holder[key])


def _spoil(draw: st.DrawFn, act: str, holder: Any, key: Any, value: st.SearchStrategy[Any], places: list[tuple[Any, Any]]) -> None:
    if act == "delete":
        del holder[key]
    elif act == "replace":
        holder[key] = copy.deepcopy(draw(value))
    elif act == "wrap":
        holder[key] = [holder[key]] if draw(st.booleans()) else {"value": holder[key]}
    elif act == "text":
        holder[key] = _as_text(holder[key])
    elif act == "rename" and isinstance(holder, dict):
        holder[draw(st.text(max_size=8))] = holder.pop(key)
    else:
        other, there = places[draw(st.integers(0, len(places) - 1))]
        holder[key] = copy.deepcopy(other[there]) if _holds(other, there) else None


def _holds(holder: Any, key: Any) -> bool:
    return key in holder if isinstance(holder, dict) else key < len(holder)


def _as_text(value: Any) -> str:
    return value.isoformat() if isinstance(value, date | datetime) else repr(value)[:500]
