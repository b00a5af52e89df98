"""How far the runs of an output are: tiles done, failed and left."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from pyarrow import ArrowException

from pipeline.errors import JobError
from pipeline.faults import reason
from pipeline.plan import Plan
from pipeline.published import latest_versions, published_tiles
from pipeline.runs import RunRecord, TileRecord, tiles_from_parquet
from pipeline.storage import Storage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FailedTile:
    """A tile that a run could not make."""

    tile: str
    reason: str


@dataclass(frozen=True)
class RunStatus:
    """How far one run is."""

    run_id: str
    series: str
    period: str
    state: str
    """planned, running, interrupted (by a signal), done or failed; a run that was killed stays `running` until the same job is run again."""
    started: str
    ended: str | None
    tiles: int
    """In the plan; 0 while there is none."""
    done: int
    skipped: int
    """Were there already, made from the same scenes by the same model."""
    failed: tuple[FailedTile, ...]
    left: int
    message: str


def read_status(output: str) -> tuple[RunStatus, ...]:
    """Return the status of every run of an output (local path or any fsspec URL), oldest first; raises JobError where there is none."""
    storage = Storage(output)
    names = _run_ids(storage)
    if not names:
        raise JobError(f"{output} holds no run; is it the `output` of a job?")
    return tuple(sorted((_status(storage, name) for name in names), key=lambda run: (run.started, run.run_id)))


def status_document(runs: tuple[RunStatus, ...]) -> list[dict[str, Any]]:
    """Return the runs as JSON-ready data."""
    return [asdict(run) for run in runs]


def _run_ids(storage: Storage) -> list[str]:
    return [path.split("/")[1] for path in storage.find("runs") if path.count("/") == 2 and path.endswith("/run.json")]


def _status(storage: Storage, run_id: str) -> RunStatus:
    path = f"runs/{run_id}/run.json"
    try:
        record = RunRecord.from_json(storage.read_bytes(path))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JobError(f"{storage.url(path)} is damaged ({type(error).__name__}: {error}); run the job again, or delete that folder") from error
    plan, tiles_ended = _plan(storage, run_id), _ended(storage, run_id)
    ended: dict[str, str] = {tile.tile: tile.state for tile in tiles_ended}
    if plan is not None and len(ended) < len(plan.tiles):
        ended = dict.fromkeys(_committed(storage, plan), "done") | ended
    states = list(ended.values())
    tiles = 0 if plan is None else len(plan.tiles)
    return RunStatus(
        run_id=run_id,
        series=str(record.series.get("name", "")),
        period=record.period,
        state=record.state,
        started=record.started,
        ended=record.ended,
        tiles=tiles,
        done=states.count("done"),
        skipped=states.count("skipped"),
        failed=tuple(FailedTile(tile.tile, tile.reason) for tile in tiles_ended if tile.state == "failed"),
        left=max(tiles - len(ended), 0),
        message=record.message,
    )


def _plan(storage: Storage, run_id: str) -> Plan | None:
    content = storage.read_if_there(f"runs/{run_id}/plan.parquet")
    try:
        return None if content is None else Plan.from_parquet(content)
    except JobError as error:
        log.warning("the plan of run %s: %s", run_id, error)
        return None


def _ended(storage: Storage, run_id: str) -> tuple[TileRecord, ...]:
    path = f"runs/{run_id}/tiles.parquet"
    content = storage.read_if_there(path)
    try:
        return () if content is None else tiles_from_parquet(content)
    except (ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged (%s): what is known of its tiles is what is published", storage.url(path), reason(error))
        return ()


def _committed(storage: Storage, plan: Plan) -> list[str]:
    """Return the tiles of a run under way whose item is there: the item is what says that a tile is done."""
    published = latest_versions(published_tiles(storage, plan.folder))
    fingerprints = {tile.key.tile: tile.fingerprint for tile in published}
    return [tile.id for tile in plan.tiles if fingerprints.get(tile.id) == tile.fingerprint]
