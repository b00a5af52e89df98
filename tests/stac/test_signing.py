"""Signing and probing: signatures are fresh when a file is opened, stay out of plans, and a dead server costs seconds, not the run."""

from __future__ import annotations

import copy
import json
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planetary_computer.settings import Settings
from stac_servers import Reply, Request, Server

from stac.errors import CatalogError
from stac.items import read_item
from stac.probe import sample_numbers
from stac.scenes import BandSource
from stac.search import find_scenes
from stac.sensors import to_scene
from stac.signing import gdal_path

BLOB = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/06/V/VN/B02.tif"


@pytest.mark.parametrize(
    ("href", "path"),
    [
        ("/data/B02.tif", "/data/B02.tif"),
        ("file:///data/B%2002.tif", "/data/B 02.tif"),
        ("https://example.org/B02.tif", "/vsicurl/https://example.org/B02.tif"),
        ("s3://bucket/key/B02.tif", "/vsis3/bucket/key/B02.tif"),
        ("gs://bucket/B02.tif", "/vsigs/bucket/B02.tif"),
    ],
)
def test_every_kind_of_href_has_a_gdal_path(href: str, path: str) -> None:
    assert gdal_path(href) == path


class Tokens:
    """Answers like the Planetary Computer's token service: numbered tokens that live `minutes`."""

    def __init__(self, minutes: float) -> None:
        self.minutes = minutes
        self.given = 0

    def __call__(self, request: Request) -> Reply:
        if not request.path.endswith("/sentinel2l2a01/sentinel2-l2"):
            return Reply({"detail": "unknown"}, 404)
        self.given += 1
        expiry = datetime.now(UTC) + timedelta(minutes=self.minutes)
        return Reply({"msft:expiry": expiry.isoformat(), "token": f"sv=2021&sig=number{self.given}"})


@pytest.fixture
def token_service(serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Request], Reply]], Server]:
    def start(answer: Callable[[Request], Reply]) -> Server:
        server = serve(answer)
        monkeypatch.setattr(Settings.get(), "sas_url", f"{server.url}/token")
        return server

    return start


def test_a_token_is_kept_while_it_lives(token_service: Any) -> None:
    tokens = Tokens(minutes=45)
    token_service(tokens)
    assert {gdal_path(BLOB) for _ in range(5)} == {f"/vsicurl/{BLOB}?sv=2021&sig=number1"}
    assert tokens.given == 1


def test_a_token_is_renewed_before_it_expires(token_service: Any) -> None:
    token_service(Tokens(minutes=4))
    assert gdal_path(BLOB).endswith("sig=number1")
    assert gdal_path(BLOB).endswith("sig=number2")


def test_a_container_that_the_planetary_computer_does_not_know_is_read_unsigned(token_service: Any) -> None:
    token_service(Tokens(minutes=45))
    href = "https://other.blob.core.windows.net/public/x.tif"
    assert gdal_path(href) == f"/vsicurl/{href}"


def test_a_token_service_that_fails_is_an_error_to_retry(token_service: Any, answered_pauses: list[float]) -> None:
    token_service(lambda request: Reply({}, 500))
    with pytest.raises(CatalogError, match="no read token for sentinel2l2a01/sentinel2-l2"):
        gdal_path(BLOB)


def test_signed_items_become_unsigned_scenes(stac_items: Path, item_collection: Any, everything: Any) -> None:
    plain = json.loads((stac_items / "odc_stac/tests/data/S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531.json").read_text())
    signed = copy.deepcopy(plain)
    for asset in signed["assets"].values():
        asset["href"] += "?st=2023-01-01T00%3A00%3A00Z&se=2023-01-02T00%3A00%3A00Z&sp=rl&sv=2021-06-08&sr=c&sig=verysecret%3D"
    (scene,) = find_scenes(everything(item_collection([signed])), probe=None).scenes
    assert scene.bands == to_scene(read_item(plain, "i.json")).bands
    assert "verysecret" not in json.dumps(scene.to_dict())


def test_a_sample_is_an_overview_and_not_the_whole_band(shared_data: Path) -> None:
    path = shared_data / "scenes" / "fort-mcmurray-s2" / "S2_L2A_fort-mcmurray_20190522" / "B02.tif"
    numbers = sample_numbers(BandSource(str(path)), 256)
    assert numbers is not None
    assert (numbers.shape, numbers.dtype) == ((425, 321), np.uint16)


@pytest.mark.parametrize("name", ["missing.tif", "broken.tif"])
def test_a_file_that_cannot_be_read_gives_no_sample(tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.tif").write_bytes(b"II*\0 not a tiff")
    assert sample_numbers(BandSource(str(tmp_path / name)), 256) is None


def test_a_server_that_is_gone_gives_no_sample() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert sample_numbers(BandSource(f"http://127.0.0.1:{port}/B02.tif"), 256) is None
