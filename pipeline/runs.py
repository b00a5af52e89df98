"""What a run leaves under ``OUTPUT/runs/<run-id>/``: ``run.json``, ``tiles.parquet``, ``plan.parquet``.

The records are for people and for resuming; the commit record of a tile is its STAC item, and there is no other database.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

RunState = Literal["planned", "running", "interrupted", "done", "failed"]
TileState = Literal["done", "skipped", "failed"]

_TILES_SCHEMA = pa.schema(
    [
        ("tile", pa.string()),
        ("state", pa.string()),
        ("version", pa.int32()),
        ("reason", pa.string()),
        ("seconds", pa.float64()),
        ("areas", pa.map_(pa.string(), pa.float64())),
    ]
)


@dataclass(frozen=True)
class TileCounts:
    """How many tiles of a run ended in which way."""

    done: int = 0
    skipped: int = 0
    failed: int = 0


@dataclass(frozen=True)
class RunRecord:
    """The content of ``run.json``."""

    run_id: str
    state: RunState
    key: str
    """What was asked for (`pipeline.planning.request_key`): a run of the same key that did not end is gone on with."""
    series: Mapping[str, Any]
    """`Series.to_dict`."""
    period: str
    """First and last day: ``2023-08-10_2023-08-20``."""
    plan_identity: str
    job: Mapping[str, Any] = field(default_factory=dict)
    """The job as it was read, without secrets."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Numerical identity: weights, runtime and library versions, device model, batch shape, threads."""
    versions: Mapping[str, str] = field(default_factory=dict)
    cluster: Mapping[str, Any] = field(default_factory=dict)
    """``actors``: how many were started on which node; ``left_out``: nodes that got no more work, and why."""
    started: str = ""
    """ISO 8601, UTC."""
    ended: str | None = None
    tiles: TileCounts = TileCounts()
    message: str = ""
    """One sentence: how it ended."""

    def to_json(self) -> bytes:
        """Return the bytes of ``run.json``."""
        return (json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> RunRecord:
        """Return the record that `to_json` wrote; raises ValueError, KeyError, TypeError, AttributeError or RecursionError for anything else."""
        data = json.loads(content)
        record = cls(**{**data, "tiles": TileCounts(**data["tiles"])})
        words = ("run_id", "state", "key", "period", "plan_identity", "started", "message")
        if wrong := [name for name in words if not isinstance(getattr(record, name), str)]:
            raise TypeError(f"{wrong[0]} is not text")
        if not isinstance(record.series, Mapping):
            raise TypeError("series is no object")
        record.to_json()  # half a character can be read, and not be printed
        return record


@dataclass(frozen=True)
class TileRecord:
    """One row of ``tiles.parquet``: how one tile of the run ended."""

    tile: str
    state: TileState
    version: int = 0
    """k of the published item's version v<k>; 0 where nothing was published."""
    reason: str = ""
    """Why it was skipped or failed, or which scenes were left out."""
    seconds: float = 0.0
    areas: Mapping[str, float] = field(default_factory=dict)
    """Hectares by class name."""


def tiles_to_parquet(records: Iterable[TileRecord]) -> bytes:
    """Return ``tiles.parquet`` of `records`, ordered by tile."""
    rows = [asdict(record) | {"areas": sorted(record.areas.items())} for record in sorted(records, key=lambda record: record.tile)]
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _TILES_SCHEMA), sink)
    return sink.getvalue()


def tiles_from_parquet(content: bytes) -> tuple[TileRecord, ...]:
    """Return the records that `tiles_to_parquet` wrote."""
    rows = pq.read_table(io.BytesIO(content)).to_pylist()
    return tuple(TileRecord(**{**row, "areas": dict(row["areas"])}) for row in rows)
