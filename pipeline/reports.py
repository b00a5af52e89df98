"""Plans and statuses as a person reads them on a terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.plan import Plan
from pipeline.status import RunStatus

ROWS = 20
"""More scenes or tiles than this are counted, not listed."""


def plan_document(plan: Plan) -> dict[str, Any]:
    """Return a plan as JSON-ready data, without hrefs."""
    return {
        "identity": plan.identity,
        "series": plan.series.to_dict(),
        "period": str(plan.period),
        "bands": list(plan.bands),
        "scenes": [{"id": scene.id, "datetime": scene.datetime.isoformat(), "cloud_cover": scene.cloud_cover} for scene in plan.scenes],
        "refused": [{"id": name, "reason": reason} for name, reason in plan.refused],
        "tiles": [{"id": tile.id, "shape": list(tile.box.shape), "scenes": len(tile.scenes), "fingerprint": tile.fingerprint} for tile in plan.tiles],
        "estimate": asdict(plan.estimate),
    }


def print_plan(plan: Plan) -> None:
    """Print scenes, tiles, windows, bytes to read and expected hours."""
    console = Console(soft_wrap=True)
    console.print(f"{plan.series.name}, {plan.period}, {plan.grid.crs} at {plan.grid.resolution:g}, bands {', '.join(plan.bands)}", highlight=False)
    console.print(_table(("scene", "acquired", "cloud %"), [_scene_row(plan, rank) for rank in range(min(len(plan.scenes), ROWS))]))
    _count_rest(console, len(plan.scenes), "scenes")
    tiles = [(tile.id, f"{tile.box.shape[1]} x {tile.box.shape[0]}", str(len(tile.scenes))) for tile in plan.tiles[:ROWS]]
    console.print(_table(("tile", "pixels", "scenes"), tiles))
    _count_rest(console, len(plan.tiles), "tiles")
    for name, reason in plan.refused:
        console.print(f"left out: {name}: {reason}", highlight=False)
    console.print(_table(("to do", ""), _estimate_rows(plan)))


def print_status(runs: Sequence[RunStatus]) -> None:
    """Print how far each run is, and what failed and why."""
    console = Console(soft_wrap=True)
    rows = [
        (run.run_id, run.series, run.period, run.state, str(run.tiles), str(run.done + run.skipped), str(len(run.failed)), str(run.left))
        for run in runs
    ]
    console.print(_table(("run", "series", "period", "state", "tiles", "done", "failed", "left"), rows))
    for run in runs:
        for tile in run.failed:
            console.print(f"{run.run_id}: {tile.tile} failed: {tile.reason}", highlight=False, markup=False)


def byte_words(count: float) -> str:
    """Return a number of bytes as a person reads it: ``23.3 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"


def _scene_row(plan: Plan, rank: int) -> tuple[str, str, str]:
    scene = plan.scenes[rank]
    return scene.id, f"{scene.datetime:%Y-%m-%d %H:%M}", "" if scene.cloud_cover is None else f"{scene.cloud_cover:.0f}"


def _estimate_rows(plan: Plan) -> list[tuple[str, str]]:
    expected = plan.estimate
    return [
        ("scenes", str(expected.scenes)),
        ("tiles", str(expected.tiles)),
        ("windows", str(expected.windows)),
        ("to read, about", byte_words(expected.bytes)),
        ("core-hours without an accelerator, about", f"{expected.core_hours:.3g}"),
        ("GPU-hours with one, about", f"{expected.gpu_hours:.3g}"),
    ]


def _count_rest(console: Console, count: int, what: str) -> None:
    if count > ROWS:
        console.print(f"and {count - ROWS} more {what}")


def _table(columns: Iterable[str], rows: Iterable[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not as markup: names are others'
    return table
