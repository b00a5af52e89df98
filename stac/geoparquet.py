"""Items from GeoParquet: the columns of a stac-geoparquet table turned back into item documents."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from shapely.geometry import mapping

from stac.errors import CatalogError

_TOP_LEVEL = ("type", "stac_version", "stac_extensions", "id", "links", "assets", "collection")
_ROWS = 512
_UNREADABLE = (ValueError, OverflowError, LookupError, pa.ArrowException)


def geoparquet_items(source: str | bytes, name: str) -> Iterator[dict[str, Any]]:
    """Yield the items of a GeoParquet table as documents, a few hundred rows in memory at a time.

    Parameters
    ----------
    source
        Local path, or the file's bytes.
    name
        What errors call it.

    Raises
    ------
    CatalogError
        Not Parquet, or without the columns of STAC items (id, geometry, assets).
    """
    try:
        table = pq.ParquetFile(io.BytesIO(source) if isinstance(source, bytes) else Path(source))
        missing = {"id", "geometry", "assets"} - set(table.schema_arrow.names)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CatalogError(f"{name} is not a GeoParquet file: {error}") from None
    if missing:
        raise CatalogError(f"{name} does not hold STAC items: it has no column {', '.join(sorted(missing))}")
    try:
        for batch in table.iter_batches(batch_size=_ROWS):
            yield from map(_document, _rows(batch))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CatalogError(f"{name} cannot be read to its end: {error}") from None


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return a batch's rows; a value that Python cannot hold (a time of the year 300,000, an unknown zone, text that is none) is null."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except _UNREADABLE:
        rows = [{name: _value(column[row]) for name, column in zip(batch.schema.names, batch, strict=True)} for row in range(batch.num_rows)]
    return rows


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except _UNREADABLE:
        return None


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    geometry = row.get("geometry")
    given = {key: _json(value) for key, value in row.items() if key not in ("geometry", "bbox") and not isinstance(value, bytes)}
    properties = {key: value for key, value in given.items() if key not in _TOP_LEVEL and key != "properties" and value is not None}
    return {
        **{key: _parsed(given[key]) for key in _TOP_LEVEL if given.get(key) is not None},
        "geometry": _geometry(geometry),
        "properties": {**(stated if isinstance(stated := _parsed(given.get("properties")), Mapping) else {}), **properties},
    }


def _geometry(value: bytes | None) -> dict[str, Any] | None:
    if not isinstance(value, bytes):
        return None
    try:
        return dict(mapping(shapely.from_wkb(value)))
    except shapely.errors.ShapelyError:
        return None


def _parsed(value: Any) -> Any:
    """Return a value that a table may hold as JSON text; text that only looks like it stays text, and is judged as such."""
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in ("[", "{") else value
    except (ValueError, RecursionError):
        return value


def _json(value: Any) -> Any:
    """Return an Arrow value as JSON has it: no nulls that only fill a struct; times, days, durations and what else JSON has not as text."""
    if isinstance(value, Mapping):
        return {key: _json(entry) for key, entry in value.items() if entry is not None and not isinstance(entry, bytes)}
    if isinstance(value, list | tuple):
        return [_json(entry) for entry in value]
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return float(value)
    return value if value is None or isinstance(value, str | int | float) else str(value)
