"""Real servers and real items for the tests of the catalog room."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import shapely
from stac_servers import Reply, Request, Server

from stac.query import Query

WORLD = shapely.box(-180, -90, 180, 90)


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Request], Reply]], Server]]:
    """Starts servers that end with the test."""
    servers: list[Server] = []

    def start(answer: Callable[[Request], Reply]) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def answered_pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that HTTP retries wanted to wait; nobody waits."""
    pauses: list[float] = []
    import urllib3.util.retry as retry

    class Clock:
        time = staticmethod(retry.time.time)
        sleep = staticmethod(pauses.append)

    monkeypatch.setattr(retry, "time", Clock)
    return pauses


@pytest.fixture(scope="session")
def stac_items(shared_data: Path) -> Path:
    """Folder of real item documents."""
    return shared_data / "stac-items"


@pytest.fixture(scope="session")
def earth_search_items(stac_items: Path) -> list[dict[str, Any]]:
    """Fifteen real items of one Sentinel-2 tile, 2016 to 2022, as Earth Search v1 publishes them."""
    files = sorted((stac_items / "mapchete_eo" / "stac_items").glob("S2?_33TWN_*"))
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture
def everything() -> Callable[..., Query]:
    """Makes a query for all the world and all times; keywords change it."""

    def make(catalog: Path | str, **changes: Any) -> Query:
        asked: dict[str, Any] = {
            "collection": None,
            "region": WORLD,
            "start": datetime(1970, 1, 1, tzinfo=UTC),
            "end": datetime(2100, 1, 1, tzinfo=UTC),
        }
        return Query(str(catalog), **{**asked, **changes})

    return make


@pytest.fixture
def item_collection(tmp_path: Path) -> Callable[..., Path]:
    """Writes item documents as a GeoJSON item collection and returns its path."""

    def write(items: list[dict[str, Any]], name: str = "items.geojson") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        return path

    return write
