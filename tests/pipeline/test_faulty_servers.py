"""If these fail, what a server does wrong for a while ends up in the map as a hole, or a server that stalls holds a run for good."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from planetary_computer.settings import Settings
from small_scenes import BOX, GRID, WARPED, WARPED_BOX, at, scene
from tenacity import wait_none

from infra.soak.proxy import KINDS, FaultProxy, Weather
from infra.soak.servers import LoopbackServer, Tokens, file_handler, token_handler
from pipeline.assets import SILENCES, AssetReader
from pipeline.grid import Grid, PixelBox
from pipeline.read import Block, BlockReader, Recipe
from stac.scenes import Scene


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[FaultProxy]:
    with LoopbackServer(file_handler(tmp_path)) as files, FaultProxy(files.url) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def short_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user may lower: the limits of every wait are settings of GDAL, which the environment sets."""
    monkeypatch.setenv("GDAL_HTTP_LOW_SPEED_TIME", "1")
    monkeypatch.setenv("GDAL_HTTP_RETRY_DELAY", "0.01")


def varied(folder: Path, name: str) -> Scene:
    """A scene whose every pixel differs from its neighbours, so that a hole or a mix-up shows."""
    return scene(folder, name, np.arange(2000, 13000, dtype=np.uint16).reshape(100, 110))


def read(scenes: list[Scene], grid: Grid = GRID, box: PixelBox = BOX) -> Block:
    return BlockReader(grid, scenes, Recipe(("blue", "nir"), "latest"), assets=AssetReader(grid, wait_none())).read(box)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("grid", "box"), [(GRID, BOX), (WARPED, WARPED_BOX)], ids=["windows", "warped"])
def test_what_fails_for_a_while_costs_no_pixel(tmp_path: Path, proxy: FaultProxy, kind: str, grid: Grid, box: PixelBox) -> None:
    local = [varied(tmp_path, f"{kind}-{grid.crs[-2:]}-{number}") for number in range(3)]
    expected = read(local, grid, box)
    proxy.clear(Weather(0.2, (kind,), seed=3, stall_seconds=30))
    block = read([at(each, proxy.url) for each in local], grid, box)
    assert proxy.done[kind] > 0
    assert block.failures == ()
    assert (block.numbers == expected.numbers).all() and (block.source == expected.source).all() and (block.clear == expected.clear).all()


def test_stalled_server_costs_seconds_and_the_reason_says_so(tmp_path: Path, proxy: FaultProxy) -> None:
    stalled = at(varied(tmp_path, "stalled"), proxy.url)
    proxy.clear(Weather(1.0, ("stall",), only="nir", stall_seconds=300))
    block = read([stalled, varied(tmp_path, "good")])
    ((name, reason),) = block.failures
    assert name == "stalled" and "stalled-nir.tif" in reason and ("too slow" in reason or "timed out" in reason)
    assert proxy.done["stall"] <= 12
    assert (block.source[:100, :110] == 2).all()


def test_server_that_stalls_for_good_is_waited_for_in_full_once(tmp_path: Path, proxy: FaultProxy) -> None:
    """A tile of 30 scenes on a dead server must not cost 30 times the patience for one."""
    stalled = [at(varied(tmp_path, f"dead-{number}"), proxy.url) for number in range(8)]
    proxy.clear(Weather(1.0, ("stall",), stall_seconds=300))
    block = read([*stalled, varied(tmp_path, "good")])
    assert [name for name, _ in block.failures] == [each.id for each in stalled]
    assert (block.source[:100, :110] == 9).all()
    # Three are under way at a time and asked for in full, five once; some of the attempts ask twice.
    assert proxy.done["stall"] < 8 * len(SILENCES)


def test_body_that_always_ends_early_is_a_failure_not_a_hole(tmp_path: Path, proxy: FaultProxy) -> None:
    torn = at(varied(tmp_path, "torn"), proxy.url)
    proxy.clear(Weather(1.0, ("truncate",), only="torn-nir"))
    assert [name for name, _ in read([torn]).failures] == ["torn"]


@pytest.fixture
def signed_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tokens]:
    """Files in Azure's blob storage, reached through a forward proxy, and the service that issues tokens for them."""
    tokens = Tokens(lifetime=200.0)
    with (
        LoopbackServer(file_handler(tmp_path)) as files,
        LoopbackServer(token_handler(tokens)) as issuer,
        FaultProxy(files.url, guard=lambda url, headers: tokens.accepts(url)) as storage,
    ):
        monkeypatch.setenv("http_proxy", storage.url)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("PC_SDK_SAS_URL", f"{issuer.url}/token")
        Settings.get.cache_clear()
        yield tokens
    Settings.get.cache_clear()


def test_signature_that_expires_is_made_anew(tmp_path: Path, signed_storage: Tokens) -> None:
    made = varied(tmp_path, "signed")
    scene = at(made, "http://soak.blob.core.windows.net/c")
    reader = BlockReader(GRID, [scene], Recipe(("blue", "nir"), "latest"), assets=AssetReader(GRID, wait_none()))
    blocks = []
    for _ in range(2):
        blocks.append(reader.read(BOX))
        signed_storage.expire()
    expected = read([made])
    assert [block.failures for block in blocks] == [(), ()]
    assert all((block.numbers == expected.numbers).all() for block in blocks)
    assert signed_storage.issued > 1
