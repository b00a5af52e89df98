"""If these fail, one bad read ends a run, is remembered for ever, or a secret is published with the reason."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import rasterio
from shapely.geometry import box as rectangle
from small_scenes import BOX, GRID, MASK, WARPED, WARPED_BOX, at, scene
from tenacity import wait_none

from pipeline.assets import AssetReader
from pipeline.grid import Grid, PixelBox
from pipeline.read import Block, BlockReader, Recipe
from stac.scenes import Scene


@dataclass
class RangeServer:
    """A file server with byte ranges, each of whose files can be told to fail its next requests."""

    folder: Path
    failures: Counter[str] = field(default_factory=Counter)
    status: int = 503
    queries: list[str] = field(default_factory=list)

    def __enter__(self) -> RangeServer:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                return

            def do_HEAD(self) -> None:
                self.do_GET(body=False)

            def do_GET(self, body: bool = True) -> None:
                name, _, query = self.path.lstrip("/").partition("?")
                server.queries.append(query)
                if server.failures[name] > 0:
                    server.failures[name] -= 1
                    return self.answer(server.status, b"", body)
                data = (server.folder / name).read_bytes()
                asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
                if asked is None:
                    return self.answer(200, data, body)
                first, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
                return self.answer(206, data[first : last + 1], body, f"bytes {first}-{last}/{len(data)}")

            def answer(self, status: int, data: bytes, body: bool, content_range: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Accept-Ranges", "bytes")
                if content_range:
                    self.send_header("Content-Range", content_range)
                self.end_headers()
                if body:
                    self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/{name}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    with RangeServer(tmp_path) as running:
        yield running


def read(scenes: list[Scene], composite: str = "latest", bands: tuple[str, ...] = ("blue", "nir"), grid: Grid = GRID) -> Block:
    return BlockReader(grid, scenes, Recipe(bands, composite, (2, 2)), assets=AssetReader(grid, wait_none())).read(BOX)


def served(scene: Scene, server: RangeServer, query: str = "") -> Scene:
    return at(scene, server.url("").rstrip("/"), query)


@pytest.mark.parametrize("status", [404, 403])
def test_a_failure_that_passes_is_not_remembered(tmp_path: Path, server: RangeServer, status: int) -> None:
    good = served(scene(tmp_path, f"passing-{status}", 3000), server)
    server.status, server.failures = status, Counter({f"passing-{status}-nir.tif": 1, f"passing-{status}-mask.tif": 2})
    block = read([good])
    assert block.failures == () and (block.numbers[:, :100, :110] == 4000).all()
    assert server.failures.total() == 0


@pytest.mark.parametrize("composite", ["latest", "median"])
def test_a_scene_that_cannot_be_read_is_left_out_and_named(tmp_path: Path, server: RangeServer, composite: str) -> None:
    bad = served(scene(tmp_path, f"bad-{composite}", 3000), server, "?signature=SECRET")
    server.status, server.failures = 404, Counter({f"bad-{composite}-nir.tif": 99})
    block = read([bad, scene(tmp_path, "good", 5000)], composite)
    assert (block.numbers[:, :100, :110] == 6000).all() and not block.status[:100, :110].any() and (block.status[103:] == 252).all()
    assert (block.clear[:100, :110] == 1).all()
    ((name, reason),) = block.failures
    assert name == f"bad-{composite}" and "404" in reason and "nir.tif" in reason
    assert "SECRET" in "".join(server.queries) and "/vsicurl/" not in reason and "SECRET" not in reason


@pytest.mark.parametrize("composite", ["latest", "median"])
def test_a_scene_that_fails_alone_says_so_in_its_pixels(tmp_path: Path, composite: str) -> None:
    bad = scene(tmp_path, "bad", 3000)
    Path(bad.bands["nir"].href).unlink()
    block = read([bad], composite)
    assert not block.numbers.any() and not block.clear.any() and not block.source.any()
    assert (block.status[:100, :110] == 254).all() and (block.status[103:] == 252).all()


def test_cloud_everywhere_is_not_a_failure(tmp_path: Path) -> None:
    codes = np.full((100, 110), 9, np.uint8)
    codes[:20] = 0
    cloudy = scene(tmp_path, "cloudy", 3000, codes)
    Path(cloudy.bands["nir"].href).unlink()
    block = read([cloudy])
    assert block.failures == () and (block.status[20:100, :110] == 253).all() and (block.status[:20] == 252).all()


def test_bands_are_not_read_where_nothing_is_left_to_fill(tmp_path: Path) -> None:
    later = scene(tmp_path, "later", 5000)
    Path(later.bands["blue"].href).unlink()
    block = read([scene(tmp_path, "first", 3000), later])
    assert block.failures == () and (block.numbers[:, :100, :110] == 4000).all()
    assert (block.clear[:100, :110] == 2).all()


@pytest.mark.parametrize(("grid", "box"), [(GRID, BOX), (WARPED, WARPED_BOX)], ids=["windows", "warped"])
def test_a_file_that_goes_away_is_a_failure_not_a_hole(tmp_path: Path, grid: Grid, box: PixelBox) -> None:
    going = scene(tmp_path, "going", 3000)
    assets = AssetReader(grid, wait_none())
    reader = BlockReader(grid, [going], Recipe(("blue", "nir"), "latest"), assets=assets)
    assert reader.read(box).failures == ()
    Path(going.bands["nir"].href).unlink()
    assets.forget()
    assert [name for name, _ in reader.read(box).failures] == ["going"]


def test_a_cell_is_warped_once_for_all_blocks_that_see_it(tmp_path: Path) -> None:
    going = scene(tmp_path, "going", 3000)
    assets = AssetReader(WARPED, wait_none())
    readers = [BlockReader(WARPED, [going], Recipe(("blue", "nir"), "latest"), assets=assets) for _ in range(2)]
    first = readers[0].read(WARPED_BOX)
    for source in (*going.bands.values(), going.mask):
        Path(source.href).unlink()
    again = readers[1].read(WARPED_BOX)
    assert first.numbers.any() and again.failures == () and (again.numbers == first.numbers).all() and (again.clear == first.clear).all()


def test_signed_files_of_another_zone_are_read(tmp_path: Path, server: RangeServer) -> None:
    here, there = (scene(tmp_path, name, 3000) for name in ("here", "there"))
    blocks = [
        BlockReader(WARPED, [found], Recipe(("blue", "nir"), "latest"), assets=AssetReader(WARPED, wait_none())).read(WARPED_BOX)
        for found in (here, served(there, server, "?token=A&expires=B"))
    ]
    assert blocks[1].failures == () and blocks[0].numbers.any() and (blocks[0].numbers == blocks[1].numbers).all()


@pytest.mark.parametrize(("grid", "box"), [(GRID, BOX), (WARPED, WARPED_BOX)], ids=["windows", "warped"])
def test_a_file_cut_short_is_a_failure_not_a_hole(tmp_path: Path, grid: Grid, box: PixelBox) -> None:
    cut = scene(tmp_path, "cut", 3000)
    path = Path(cut.bands["blue"].href)
    path.write_bytes(path.read_bytes()[:9000])
    block = BlockReader(grid, [cut], Recipe(("blue",), "latest"), assets=AssetReader(grid, wait_none())).read(box)
    assert [name for name, _ in block.failures] == ["cut"] and "cut-blue.tif" in block.failures[0][1]


def test_a_scene_without_a_band_of_the_recipe_is_named(tmp_path: Path) -> None:
    block = read([scene(tmp_path, "poor", 3000), scene(tmp_path, "other", 3000)], bands=("blue", "swir16"))
    assert [name for name, _ in block.failures] == ["poor", "other"] and "swir16" in block.failures[0][1]


def test_a_file_without_a_place_on_earth_is_named(tmp_path: Path) -> None:
    lost = scene(tmp_path, "lost", 3000)
    with rasterio.open(lost.bands["blue"].href, "w", "GTiff", 100, 100, 1, dtype="uint16") as dataset:
        dataset.write(np.ones((100, 100), np.uint16), 1)
    assert "no coordinate reference system" in read([lost]).failures[0][1]


def test_scenes_elsewhere_are_not_opened(tmp_path: Path) -> None:
    away = scene(tmp_path, "away", 3000)
    for band in away.bands.values():
        Path(band.href).unlink()
    away = replace(away, footprint=rectangle(16, 46, 17, 47), mask=replace(MASK, href=str(tmp_path / "none.tif")))
    assert read([away]).failures == ()


def test_clouds_and_their_surroundings_come_from_the_next_scene(tmp_path: Path) -> None:
    codes = np.full((100, 110), 4, np.uint8)
    codes[50, 50] = 9
    block = read([scene(tmp_path, "cloudy", 3000, codes), scene(tmp_path, "next", 5000)])
    rows, columns = np.nonzero(block.source == 2)
    assert len(rows) == 13 and ((rows - 50) ** 2 + (columns - 50) ** 2 <= 4).all()
    assert (block.numbers[:, block.source == 2] == 6000).all()


def test_an_unknown_composite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="least-cloudy"):
        read([], composite="mean")
