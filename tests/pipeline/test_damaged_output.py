"""Records of an output that are damaged, as after a loss of power: named, left out, and made again; what is not ours is not touched."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path
from typing import Any

import geopandas as gpd
import pytest
from published_items import published_item
from shapely.geometry import box

from pipeline.catalog import check_catalog_is_ours
from pipeline.errors import JobError
from pipeline.published import published_tiles
from pipeline.run import _frozen_series, _records, _unfinished
from pipeline.runs import RunRecord, TileRecord, tiles_to_parquet
from pipeline.status import read_status
from pipeline.storage import Storage

WHOLE = published_item("abc")
ITEM = "m/2023-01-01_2023-01-31/t0/v1/m_t0_2023-01-01_2023-01-31_v1.json"


def plan_rows(head: str) -> bytes:
    """A table as a plan has it, with this document in the row of the run."""
    sink = io.BytesIO()
    gpd.GeoDataFrame({"kind": ["run"], "id": ["m"], "document": [head]}, geometry=[box(0, 0, 1, 1)], crs=4326).to_parquet(sink)
    return sink.getvalue()


def lacking() -> list[bytes]:
    """The item without its box, and without each of its properties."""
    fields, properties = {"properties": WHOLE["properties"]}, dict(WHOLE["properties"])
    less = [{key: properties[key] for key in properties if key != left} for left in properties]
    return [json.dumps(each).encode() for each in [fields, *({**WHOLE, "properties": part} for part in less)]]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def test_a_folder_that_is_called_like_a_period_and_is_none_is_passed_over(storage: Storage) -> None:
    storage.write_bytes(ITEM.replace("2023-01-01", "2023-99-99"), b"{}")
    assert published_tiles(storage, "m") == ()


@pytest.mark.parametrize("content", [b"", b"[]", b'{"properties": {}}', b"{\xff", b"[" * 200_000, *lacking()])
def test_a_damaged_item_counts_as_not_committed(storage: Storage, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    storage.write_bytes(ITEM, json.dumps(WHOLE).encode())
    assert [tile.fingerprint for tile in published_tiles(storage, "m")] == ["abc"]
    storage.write_bytes(ITEM, content)
    with caplog.at_level(logging.WARNING):
        assert published_tiles(storage, "m") == ()
    assert ITEM in caplog.text and "made again" in caplog.text


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 200_000])
def test_a_damaged_run_record_is_named_and_left_out(storage: Storage, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    storage.write_bytes("runs/r1/run.json", content)
    assert _records(storage) == []
    assert "runs/r1/run.json is damaged" in caplog.text
    with pytest.raises(JobError, match=r"runs/r1/run\.json is damaged"):
        read_status(storage.root)


def test_a_damaged_collection_is_named_and_written_again(storage: Storage, caplog: pytest.LogCaptureFixture) -> None:
    storage.write_bytes("m/collection.json", b"")
    assert _frozen_series(storage, "m") is None
    assert "m/collection.json is damaged" in caplog.text


def test_an_empty_root_catalog_is_what_a_loss_of_power_leaves(storage: Storage) -> None:
    storage.write_bytes("catalog.json", b"")
    check_catalog_is_ours(storage)


def record_of(state: str = "interrupted") -> bytes:
    names = {"run_id": "r1", "state": state, "key": "k", "series": {"name": "m"}, "period": "p", "plan_identity": "i", "job": {}, "versions": {}}
    return RunRecord(**names, started="2023-01-01T00:00:00").to_json()


@pytest.mark.parametrize("content", [None, b"", b"PAR1", plan_rows('{"format": 0}'), plan_rows('{"format": 1}'), plan_rows("no JSON")])
def test_a_run_whose_plan_is_damaged_or_gone_is_named_and_not_gone_on_with(
    storage: Storage, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    storage.write_bytes("runs/r1/run.json", record_of())
    if content is not None:
        storage.write_bytes("runs/r1/plan.parquet", content)
    with caplog.at_level(logging.WARNING):
        assert _unfinished(storage, "k") is None
    assert "runs/r1/plan.parquet cannot be gone on with" in caplog.text and "a new run begins" in caplog.text
    assert [run.run_id for run in read_status(storage.root)] == ["r1"]


@pytest.mark.parametrize("change", [{"period": 5}, {"started": None}, {"message": None}, {"series": []}, {"message": "\ud800"}])
def test_a_run_record_with_odd_values_is_damaged(storage: Storage, change: dict[str, Any]) -> None:
    storage.write_bytes("runs/r1/run.json", json.dumps(json.loads(record_of()) | change).encode())
    with pytest.raises(JobError, match=r"runs/r1/run\.json is damaged"):
        read_status(storage.root)


def spoilt_tiles() -> bytes:
    """A table of tiles of which a compressed page is spoilt, and the footer is not."""
    whole = bytearray(tiles_to_parquet([TileRecord("t0", "failed", reason="disk " * 50)]))
    whole[4:200] = bytes(196)
    return bytes(whole)


@pytest.mark.parametrize("content", [b"", b"PAR1", spoilt_tiles(), plan_rows("a table of other columns")])
def test_a_damaged_table_of_tiles_is_named(storage: Storage, caplog: pytest.LogCaptureFixture, content: bytes) -> None:
    storage.write_bytes("runs/r1/run.json", record_of())
    storage.write_bytes("runs/r1/tiles.parquet", content)
    (run,) = read_status(storage.root)
    assert (run.done, run.failed) == (0, ())
    assert "runs/r1/tiles.parquet is damaged" in caplog.text


@pytest.mark.parametrize("content", [b'{"type": "Catalog", "id": "sentinel-2"}', b"{", b"[1]"])
def test_a_catalog_of_somebody_else_is_not_replaced(storage: Storage, content: bytes) -> None:
    check_catalog_is_ours(storage)
    storage.write_bytes("catalog.json", b'{"type": "Catalog", "id": "spexmap"}')
    check_catalog_is_ours(storage)
    storage.write_bytes("catalog.json", content)
    with pytest.raises(JobError, match="that spexmap did not write; give a folder of its own"):
        check_catalog_is_ours(storage)
