"""What a newcomer's first map stands on: a catalog that is right in every number, says that it is simulated, and comes with its truth."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import rasterio.features
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from rio_cogeo.cogeo import cog_validate
from shapely.geometry import Point, shape

from pipeline.demo import DemoPaths, write_demo
from pipeline.demo.acquisitions import ACQUISITIONS
from pipeline.demo.spectra import BANDS
from pipeline.errors import JobError
from pipeline.job import load_job
from stac.query import Query
from stac.scenes import Scene
from stac.search import find_scenes
from stac.validation import DocumentValidator

SIZE = 256


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoPaths:
    return write_demo(tmp_path_factory.mktemp("demo"), size=SIZE)


@pytest.fixture(scope="module")
def items(demo: DemoPaths) -> dict[Path, dict]:
    return {path: json.loads(path.read_text()) for path in sorted(demo.directory.glob("sentinel-2-l2a/*/*.json"))}


@pytest.fixture(scope="module")
def scenes(demo: DemoPaths) -> tuple[Scene, ...]:
    region = geopandas.read_file(demo.region).geometry.iloc[0]
    period = datetime(2021, 6, 1, tzinfo=UTC), datetime(2021, 8, 1, tzinfo=UTC)
    return find_scenes(Query(str(demo.catalog), "sentinel-2-l2a", region, *period, max_cloud_cover=None, exclude=(), headers={})).scenes


def digests(directory: Path) -> dict[str, str]:
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.rglob("*") if path.is_file()}


def test_the_same_seed_writes_the_same_bytes_and_another_seed_another_world(tmp_path: Path) -> None:
    first, second, other = (write_demo(tmp_path / name, seed=seed, size=128) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    assert digests(first.directory) == digests(second.directory)
    assert digests(first.truth)["landcover.tif"] != digests(other.truth)["landcover.tif"]


def test_a_second_call_leaves_a_complete_demo_alone(demo: DemoPaths) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo.directory.rglob("*")}
    assert write_demo(demo.directory, size=SIZE) == demo
    assert {path: path.stat().st_mtime_ns for path in demo.directory.rglob("*")} == before


@pytest.mark.parametrize("size", [127, 64, 10982])
def test_a_size_that_no_tile_can_have_is_refused_before_anything_is_written(tmp_path: Path, size: int) -> None:
    with pytest.raises(JobError, match="even number from 128 to 10980"):
        write_demo(tmp_path / "demo", size=size)
    assert not (tmp_path / "demo").exists()


def test_nobody_can_take_the_scenes_for_real_ones(demo: DemoPaths, items: dict[Path, dict]) -> None:
    catalog, collection = (json.loads(path.read_text()) for path in (demo.catalog, demo.directory / "sentinel-2-l2a" / "collection.json"))
    assert "simulated" in catalog["title"].lower() and "simulated" in collection["title"].lower()
    assert "SIMULATED" in collection["description"] and "SIMULATED" in (demo.truth / "README.md").read_text()
    for path, item in items.items():
        assert item["id"].endswith("SIMULATED") and item["properties"]["spexmap:simulated"] is True
        with rasterio.open(path.parent / "B02.tif") as file:
            assert "simulated" in file.tags()["SIMULATED"]


def test_documents_are_valid_stac(demo: DemoPaths, items: dict[Path, dict], stac_schemas: Path) -> None:
    validator = DocumentValidator(stac_schemas)
    documents = [json.loads(path.read_text()) for path in (demo.catalog, demo.directory / "sentinel-2-l2a" / "collection.json")]
    for document in [*documents, *items.values()]:
        assert validator.problems(document) == [] and validator.unchecked(document) == []


def test_six_scenes_two_zones_three_dates(items: dict[Path, dict]) -> None:
    found = {(item["properties"]["proj:epsg"], item["properties"]["datetime"][:10]) for item in items.values()}
    assert found == {(epsg, f"{acquisition.time:%Y-%m-%d}") for epsg in (32632, 32633) for acquisition in ACQUISITIONS}


def test_items_say_what_their_files_are(items: dict[Path, dict]) -> None:
    for path, item in items.items():
        assert set(item["assets"]) == {band.key for band in BANDS} | {"scl"}
        for asset in item["assets"].values():
            with rasterio.open(path.parent / asset["href"]) as file:
                assert list(file.shape) == asset["proj:shape"]
                assert list(file.transform)[:6] == asset["proj:transform"]
                assert file.crs.to_epsg() == item["properties"]["proj:epsg"]
                assert file.dtypes[0] == asset["raster:bands"][0]["data_type"] and file.nodata == 0


def test_every_raster_is_a_cog(demo: DemoPaths) -> None:
    rasters = sorted(demo.directory.rglob("*.tif"))
    assert len(rasters) == 6 * 11 + 2
    for path in rasters:
        valid, errors, _ = cog_validate(path, strict=True, quiet=True)
        assert valid, (path.name, errors)


def test_cloud_cover_and_no_data_are_those_of_the_scene_classification(items: dict[Path, dict]) -> None:
    for path, item in items.items():
        with rasterio.open(path.parent / "SCL.tif") as file:
            scl = file.read(1)
        properties = item["properties"]
        assert properties["eo:cloud_cover"] == pytest.approx(100 * np.isin(scl, (8, 9, 10)).sum() / (scl > 0).sum(), abs=1e-4)
        assert properties["s2:nodata_pixel_percentage"] == pytest.approx(100 * (scl == 0).mean(), abs=1e-4)


def test_footprints_hold_the_data_and_leave_out_what_the_swath_missed(items: dict[Path, dict]) -> None:
    cut = 0
    for path, item in items.items():
        footprint = shape(item["geometry"])
        with rasterio.open(path.parent / "SCL.tif") as file, WarpedVRT(file, crs="EPSG:4326", add_alpha=False) as degrees:
            scl = degrees.read(1)
            rows, columns = np.mgrid[3 : scl.shape[0] - 3 : 9, 3 : scl.shape[1] - 3 : 9]
            x, y = degrees.transform @ (columns.ravel() + 0.5, rows.ravel() + 0.5)
        inside = np.array([footprint.contains(Point(*place)) for place in zip(x, y, strict=True)])
        seen = scl[rows.ravel(), columns.ravel()] > 0
        assert (inside == seen).mean() > 0.97
        cut += item["properties"]["s2:nodata_pixel_percentage"] > 1
    assert cut == 1


def test_each_way_of_publishing_the_offset_occurs_and_is_recognised(scenes: tuple[Scene, ...], items: dict[Path, dict]) -> None:
    ways = {(s.processing[:14], s.bands["blue"].offset) for s in scenes}
    assert ways == {("baseline 03.00", 0.0), ("baseline 05.00", -0.1), ("baseline 05.00", 0.0)}
    assert {
        item["assets"]["blue"]["raster:bands"][0]["offset"] for item in items.values() if item["properties"]["s2:processing_baseline"] > "04"
    } == {-0.1}


def on_truth_grid(demo: DemoPaths, href: str) -> np.ndarray:
    with rasterio.open(demo.truth / "landcover.tif") as truth, rasterio.open(href) as source:
        grid = {"crs": truth.crs, "transform": truth.transform, "width": truth.width, "height": truth.height}
        with WarpedVRT(source, resampling=Resampling.bilinear, **grid) as warped:
            return warped.read(1).astype(np.float32)


def test_all_scenes_see_the_same_ground_at_the_same_place(demo: DemoPaths, scenes: tuple[Scene, ...]) -> None:
    with rasterio.open(demo.truth / "clear.tif") as file:
        clear = dict(zip(file.descriptions, file.read() == 1, strict=True))
    red = {}
    for scene in scenes:
        band = scene.bands["red"]
        red[scene.id] = on_truth_grid(demo, band.href) * band.scale + band.offset
    for west in (scene for scene in scenes if "_32T" in scene.id):
        east = next(scene for scene in scenes if "_33T" in scene.id and scene.datetime == west.datetime)
        both = clear[west.id] & clear[east.id]
        assert both.sum() > 500
        assert np.corrcoef(red[west.id][both], red[east.id][both])[0, 1] > 0.93
        assert abs(np.median(red[west.id][both] - red[east.id][both])) < 0.002


def test_truth_covers_the_region_with_sensible_shares_of_all_four_classes(demo: DemoPaths) -> None:
    with rasterio.open(demo.truth / "landcover.tif") as file, rasterio.open(demo.truth / "clear.tif") as clear:
        cover, seen = file.read(1), clear.read().any(axis=0)
        region = geopandas.read_file(demo.region).to_crs(file.crs).geometry.iloc[0]
        inside = rasterio.features.geometry_mask([region], file.shape, file.transform, invert=True)
        assert file.transform.c % 10 == 0 and file.transform.f % 10 == 0
        assert file.tags(1)["CLASS_3"] == "water"
    shares = np.bincount(cover[inside], minlength=5)[1:] / inside.sum()
    assert shares.min() > 0.02 and shares.max() < 0.85
    assert seen[inside].mean() > 0.8


def test_the_job_file_is_one_that_spexmap_reads(demo: DemoPaths) -> None:
    job = load_job(demo.job, [])
    assert job.name == "demo" and Path(job.output) == demo.directory / "output"
