"""The region decides which pixels are mapped at all: a wrong one maps the wrong place, or the whole Earth."""

import os
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box
from shapely.geometry.base import BaseGeometry

from pipeline.errors import GridError, JobError
from pipeline.job import load_job
from pipeline.region import Region, from_degrees, load_region, to_degrees

PLACE = box(15, 46, 15.5, 46.5)


def _write(path: Path, *geometries: BaseGeometry, crs: str | None = "EPSG:4326") -> str:
    gpd.GeoDataFrame(geometry=list(geometries), crs=crs).to_file(path)
    return str(path)


def test_a_box_is_what_its_four_numbers_say() -> None:
    assert load_region([15, 46, 15.5, 46.5]).geometry.equals(PLACE)


def test_a_box_whose_west_is_beyond_its_east_crosses_the_antimeridian() -> None:
    region = load_region([177, -19, -178, -16])
    assert region.geometry.equals(MultiPolygon([box(177, -19, 180, -16), box(-180, -19, -178, -16)]))
    assert region.unwrapped.equals(box(177, -19, 182, -16))
    projected = region.to_crs("EPSG:32760")
    assert projected.geom_type == "Polygon"
    assert projected.is_valid
    assert projected.area == pytest.approx(5 * 111_320 * np.cos(np.radians(17.5)) * 3 * 110_700, rel=0.01)


@pytest.mark.parametrize("bounds", [[177, -19, -180, -16], [180, -19, -178, -16]])
def test_a_box_that_ends_at_the_antimeridian_has_one_part(bounds: list[float]) -> None:
    assert load_region(bounds).geometry.geom_type == "Polygon"


@pytest.mark.parametrize("suffix", ["geojson", "gpkg", "shp", "fgb"])
def test_any_vector_file_is_read(tmp_path: Path, suffix: str) -> None:
    assert load_region(_write(tmp_path / f"region.{suffix}", PLACE)).geometry.equals(PLACE)


def test_geoparquet_and_urls_are_read(tmp_path: Path) -> None:
    import fsspec

    path = tmp_path / "region.parquet"
    gpd.GeoDataFrame(geometry=[PLACE], crs="EPSG:4326").to_parquet(path)
    assert load_region(str(path)).geometry.equals(PLACE)
    geojson = Path(_write(tmp_path / "region.geojson", PLACE)).read_bytes()
    with fsspec.open("memory://place/region.geojson", "wb") as stream:
        stream.write(geojson)
    assert load_region("memory://place/region.geojson").geometry.equals(PLACE)


def test_features_are_dissolved_and_mended_whatever_their_order(tmp_path: Path) -> None:
    bowtie = Polygon([(16, 46), (17, 47), (17, 46), (16, 47)])
    parts = [box(15, 46, 15.3, 46.5), box(15.2, 46, 15.5, 46.5), bowtie, Point(3, 3)]
    forward = load_region(_write(tmp_path / "forward.gpkg", *parts))
    backward = load_region(_write(tmp_path / "backward.gpkg", *parts[::-1]))
    assert forward.geometry.is_valid
    assert forward.geometry.area == pytest.approx(0.25 + 0.5)
    assert forward.digest == backward.digest
    assert forward.digest != load_region([15, 46, 15.5, 46.5]).digest


def test_a_projected_file_keeps_its_outline(tmp_path: Path) -> None:
    square = box(4_500_000, 2_500_000, 5_500_000, 3_500_000)
    region = load_region(_write(tmp_path / "region.gpkg", square, crs="EPSG:3035"))
    again = region.to_crs("EPSG:3035")
    assert again.symmetric_difference(square).area / square.area < 1e-5


def test_the_whole_world_in_one_utm_zone_is_a_sentence() -> None:
    with pytest.raises(GridError, match="EPSG:32632 is not defined where the region lies"):
        load_region([-180, -90, 180, 90]).to_crs("EPSG:32632")


def test_parallels_are_followed_into_another_crs() -> None:
    wide = load_region([0, 50, 30, 51]).to_crs("EPSG:3035")
    straight = from_degrees(Polygon([(0, 50), (30, 50), (30, 51), (0, 51)]), "EPSG:3035")
    along = shapely.get_coordinates(wide)
    assert len(along) > 3000
    assert wide.area == pytest.approx(straight.area)
    assert wide.area == pytest.approx(30 * 111_320 * np.cos(np.radians(50.5)) * 111_230, rel=0.01)


def test_a_region_around_a_pole_is_whole_in_a_polar_crs() -> None:
    cap = load_region([-180, 80, 180, 90])
    polar = cap.to_crs("EPSG:3413")
    assert polar.covers(Point(1000, 1000))
    assert to_degrees(polar, "EPSG:3413").area == pytest.approx(cap.geometry.area, rel=1e-3)


def test_a_projected_outline_across_the_antimeridian_is_split_there() -> None:
    tile = box(800_000, 8_000_000, 900_000, 8_100_000)
    degrees = to_degrees(tile, "EPSG:32760")
    assert degrees.bounds[0] == -180
    assert degrees.bounds[2] == 180
    assert degrees.area < 2
    assert from_degrees(degrees, "EPSG:32760").symmetric_difference(tile).area / tile.area < 1e-4


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ([15, 46, 16, 91], "not on Earth"),
        ([-181, 46, 16, 47], "not on Earth"),
        ([15, 46, 190, 47], "not on Earth"),
        ([float("nan"), 46, 16, 47], "not on Earth"),
        ([15, 47, 16, 46], "is empty"),
        ([15, 46, 15, 47], "is empty"),
        ([15, 46, 16], "four numbers"),
    ],
)
def test_a_box_that_is_no_place_is_refused(bounds: list[float], words: str) -> None:
    with pytest.raises(JobError, match=f"^region: .*{words}"):
        load_region(bounds)


def test_a_file_that_is_no_region_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"^region: there is no file .*none.geojson"):
        load_region(str(tmp_path / "none.geojson"))
    with pytest.raises(JobError, match=r"^region: there is no file memory://none.geojson"):
        load_region("memory://none.geojson")
    (tmp_path / "text.geojson").write_text("no json", encoding="utf-8")
    with pytest.raises(JobError, match="cannot be read as a vector file"):
        load_region(str(tmp_path / "text.geojson"))
    with pytest.raises(JobError, match="does not say its CRS"):
        load_region(_write(tmp_path / "bare.shp", PLACE, crs=None))
    with pytest.raises(JobError, match="holds no polygon but LineString, Point"):
        load_region(_write(tmp_path / "lines.gpkg", LineString([(0, 0), (1, 1)]), Point(1, 1)))
    with pytest.raises(JobError, match="is empty"):
        load_region(_write(tmp_path / "empty.gpkg", crs="EPSG:4326"))
    with pytest.raises(JobError, match="holds no polygon but"):
        load_region(_write(tmp_path / "flat.gpkg", Polygon([(0, 0), (1, 1), (0, 0)])))


def test_metres_that_call_themselves_degrees_are_not_on_earth(tmp_path: Path) -> None:
    metres = box(500_000, 5_200_000, 600_000, 5_300_000)
    with pytest.raises(JobError, match="not on Earth"):
        load_region(_write(tmp_path / "region.geojson", metres))
    with pytest.raises(JobError, match="not on Earth"):
        load_region(_write(tmp_path / "far.gpkg", box(9e9, 9e9, 9.1e9, 9.1e9), crs="EPSG:32633"))


def test_a_crs_in_which_the_region_does_not_lie_is_refused() -> None:
    with pytest.raises(GridError, match="EPSG:3035 is not defined where the region lies"):
        Region(box(-170, -60, -160, -40)).to_crs("EPSG:3035")


def test_a_bucket_without_credentials_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The client's own error has no root in common with OSError; it would be a traceback."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_CONFIG_FILE", "/none"), ("AWS_SHARED_CREDENTIALS_FILE", "/none")):
        monkeypatch.setenv(name, value)
    with pytest.raises(JobError, match=r"region: s3://bucket/region.geojson cannot be read.*credentials"):
        load_region("s3://bucket/region.geojson")
    with pytest.raises(JobError, match=r"s3://bucket/job.yaml cannot be read.*credentials"):
        load_job("s3://bucket/job.yaml")
