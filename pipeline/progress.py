"""A progress bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.runs import TileRecord

log = logging.getLogger(__name__)


def progress_bar(records: Iterator[TileRecord], total: int, name: str) -> Iterator[TileRecord]:
    """Yield `records` of `total` tiles, showing how far they are."""
    if not sys.stderr.isatty():
        yield from _logged(records, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tiles"), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=None, transient=False) as progress:
        task = progress.add_task(name, total=total)
        for record in records:
            progress.advance(task)
            yield record


def _logged(records: Iterator[TileRecord], total: int) -> Iterator[TileRecord]:
    for count, record in enumerate(records, 1):
        log.info("tile %s %s in %.0f s (%d of %d)", record.tile, record.state, record.seconds, count, total)
        yield record
