"""Bad scenes in a whole run, with Ray and the model: what a scheduler finds in the morning, and what the next run makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import rasterio
from pyproj import Transformer
from shapely.geometry import box, mapping
from spoiling import BEST, COLLECTION, EDGE, OLDER, World, closing, content, gone, header, link, put, rewrite, shifted

from pipeline.cli import app
from pipeline.region import to_degrees

pytestmark = pytest.mark.cluster

APART = 20_000.0
"""Metres between the two places that are mapped."""


@dataclass
class Ran:
    status: int
    log: str


@pytest.fixture(scope="module")
def two_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two places with three scenes each. In the west no scene has a mask; in the east three are bad in their own ways, one is sound."""
    with closing(World.make(tmp_path_factory.mktemp("chain") / "world")) as world:
        for name in (BEST, OLDER, EDGE):
            _copy_east(world, name)
        (world.root / "region.geojson").write_text(json.dumps(_region(world)))
        world.set("region", "region.geojson")
        world.set("grid.tile", 512)
        gone("SCL", BEST, OLDER, EDGE)(world)
        content("B04", lambda data: data[: len(data) // 2], eastern(BEST))(world)
        put("geometry", None, eastern(EDGE))(world)
        link("item", "./gone.json")(world)
        yield world


def eastern(name: str) -> str:
    return name.replace("32TQR", "32TRR")


def _copy_east(world: World, name: str) -> None:
    folder = world.root / COLLECTION / eastern(name)
    shutil.copytree(world.item(name).parent, folder)
    document = json.loads(
        (folder / f"{name}.json").read_text().replace("32TQR", "32TRR").replace('"grid:code": "MGRS-32TQR"', '"grid:code": "MGRS-32TRR"')
    )
    (folder / f"{name}.json").unlink()
    for path in folder.glob("*.tif"):
        _move(path)
    with rasterio.open(folder / "B02.tif") as source:
        document["geometry"] = mapping(to_degrees(box(*source.bounds), "EPSG:32632", 8))
    world.item(eastern(name)).write_text(json.dumps(document))
    link("item", f"./{eastern(name)}/{eastern(name)}.json")(world)


def _move(path: Path) -> None:
    with rasterio.open(path) as source:
        before = source.transform
    rewrite(path, lambda numbers: numbers, {"transform": shifted(APART, 0)(before)})


def _region(world: World) -> dict[str, Any]:
    """A box of 20 x 20 pixels in the middle of both places."""
    with rasterio.open(world.raster("B02")) as source:
        x, y = source.transform * (64, 64)
    degrees = Transformer.from_crs("EPSG:32632", "EPSG:4326", always_xy=True)
    places = [box(*degrees.transform(x + east - 300, y - 100), *degrees.transform(x + east + 100, y + 100)) for east in (0.0, APART)]
    features = [{"type": "Feature", "properties": {}, "geometry": mapping(place)} for place in places]
    return {"type": "FeatureCollection", "features": features}


def run(world: World, caplog: pytest.LogCaptureFixture) -> Ran:
    caplog.clear()
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as leaving:
        app(["run", str(world.write_job())], prog_name="spexmap")
    return Ran(int(leaving.value.code or 0), caplog.text)


def items(world: World) -> list[dict[str, Any]]:
    """Every published version, newest last."""
    paths = [path for path in (world.root / "output").rglob("*.json") if '"spexmap:scenes_left_out"' in path.read_text()]
    return sorted((json.loads(path.read_text()) for path in paths), key=lambda document: document["id"])


def status_of(world: World, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    with pytest.raises(SystemExit):
        app(["status", str(world.root / "output"), "--json"], prog_name="spexmap")
    newest: dict[str, Any] = json.loads(capsys.readouterr().out)[-1]
    return newest


def left_out(item: dict[str, Any]) -> dict[str, str]:
    return {entry["id"]: entry["reason"] for entry in item["properties"]["spexmap:scenes_left_out"]}


def test_a_place_that_cannot_be_read_fails_alone_and_the_next_run_makes_it(
    two_places: World, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    sound = two_places.raster("SCL", eastern(BEST)).read_bytes(), two_places.raster("B02", eastern(BEST)).parent
    ran = run(two_places, caplog)
    assert ran.status == 1, ran.log
    assert "Traceback" not in ran.log
    _assert_the_east_is_there(two_places)
    _assert_the_west_is_named(two_places, ran, capsys)
    _mend(two_places, sound[0])
    again = run(two_places, caplog)
    assert again.status == 0, again.log
    _assert_all_is_there(two_places)


def _assert_the_east_is_there(world: World) -> None:
    published = items(world)
    assert published
    for item in published:
        assert set(left_out(item)) == {eastern(BEST)} and "B04.tif" in left_out(item)[eastern(BEST)]
        scenes = {link["href"].rpartition("/")[2] for link in item["links"] if link["rel"] == "derived_from"}
        assert f"{eastern(BEST)}.json" not in scenes


def _assert_the_west_is_named(world: World, ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    status = status_of(world, capsys)
    assert status["failed"] and status["left"] == 0
    for tile in status["failed"]:
        assert tile["tile"] in ran.log
        for name in (BEST, OLDER, EDGE):
            assert name in tile["reason"] and "SCL.tif" in tile["reason"]
    assert "gone.json" in ran.log and eastern(EDGE) in ran.log


def _mend(world: World, mask: bytes) -> None:
    """Give the west its masks, and the east its best scene's red band."""
    for name in (BEST, OLDER, EDGE):
        world.raster("SCL", name).write_bytes(mask)
        header("SCL", name, transform=shifted(-APART, 0))(world)
    world.raster("B04", eastern(BEST)).write_bytes(world.raster("B03", eastern(BEST)).read_bytes())


def _assert_all_is_there(world: World) -> None:
    versions = {item["id"].rpartition("_v")[2]: item for item in items(world)}
    assert set(versions) == {"1", "2"}
    assert left_out(versions["2"]) == {}
    with pytest.raises(SystemExit) as leaving:
        app(["validate", str(world.root / "output"), "--deep"], prog_name="spexmap")
    assert leaving.value.code in (0, None)
