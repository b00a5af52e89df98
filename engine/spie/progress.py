"""How far a data set is: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

log = logging.getLogger(__name__)

LINES = 20
"""So many log lines at most."""

T = TypeVar("T")


def shown(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    """Yield `items`, of which there are `total`, showing on standard error how many are done."""
    if not sys.stderr.isatty():
        yield from _logged(items, total, what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(what), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("spie", total=total)
        for item in items:
            yield item
            progress.advance(task)


def _logged(items: Iterable[T], total: int, what: str) -> Iterator[T]:
    step = max(1, -(-total // LINES))
    for count, item in enumerate(items, 1):
        yield item
        if count % step == 0 or count == total:
            log.info("%d of %d %s", count, total, what)
