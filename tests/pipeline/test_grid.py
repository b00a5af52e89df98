"""One grid for a whole series: were a pixel to depend on region, tile or block, maps of two months or two workers would not fit together."""

import re
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from shapely.geometry import MultiPolygon, Point, Polygon, box

from pipeline.errors import GridError
from pipeline.grid import Grid, PixelBox, block_boxes
from pipeline.region import Region, load_region, to_degrees
from pipeline.snap import (
    AssetGrid,
    check_holds_pixels,
    check_resolution,
    metres_per_pixel,
    pixel_phase,
    region_mask,
    resolve_crs,
    snapped_box,
    tile_cells,
    utm_zone,
)
from stac.scenes import BandSource

GRID = Grid("EPSG:32633", 10, (0.0, 0.0), 512)
BAND = BandSource("https://example.com/blue.tif")
boxes = st.builds(
    lambda top, left, height, width: PixelBox(top, left, top + height, left + width),
    st.integers(-3000, 3000),
    st.integers(-3000, 3000),
    st.integers(1, 2000),
    st.integers(1, 2000),
)


def _covers_once(parts: list[PixelBox], whole: PixelBox) -> bool:
    counts = np.zeros(whole.shape, np.int8)
    for part in parts:
        assert part.intersect(whole) == part
        counts[part.within(whole)] += 1
    return bool((counts == 1).all())


@given(boxes, st.integers(50, 900), st.sampled_from([1, 64, 256]))
def test_blocks_cover_a_tile_exactly_once(box: PixelBox, side: int, stride: int) -> None:
    parts = block_boxes(box, side, stride)
    assert _covers_once(list(parts), box)
    assert all(max(part.shape) <= side for part in parts)
    assert list(parts) == sorted(parts)


@given(boxes)
def test_blocks_begin_where_windows_begin(box: PixelBox) -> None:
    starts = {(part.top, part.left) for part in block_boxes(box, 512, 256)}
    assert all((top % 256 == 0 or top == box.top) and (left % 256 == 0 or left == box.left) for top, left in starts)


@given(st.floats(14.2, 16), st.floats(45, 47), st.floats(0.001, 0.4), st.floats(0.001, 0.4), st.integers(100, 900))
@settings(max_examples=25, deadline=None)
def test_tiles_cover_the_snapped_region_exactly_once(west: float, south: float, width: float, height: float, side: int) -> None:
    grid = Grid("EPSG:32633", 100, (60.0, 20.0), side)
    region = load_region([west, south, west + width, south + height])
    cells = list(tile_cells(grid, region))
    outer = snapped_box(grid, region)
    inside = region_mask(grid, outer, region)
    counts = np.zeros(outer.shape, np.int8)
    for cell, tile, part in cells:
        counts[tile.within(outer)] += 1
        assert (cell.top % side, cell.left % side) == (0, 0)
        assert cell.intersect(outer) == tile
        assert part.area > 0
    assert counts.max() == 1
    assert (counts[inside] == 1).all()
    assert len({grid.tile_id(cell) for cell, _, _ in cells}) == len(cells)


def test_a_tile_of_a_larger_region_is_the_same_tile() -> None:
    small = {GRID.tile_id(cell): cell for cell, _, _ in tile_cells(GRID, load_region([15, 46, 15.1, 46.1]))}
    large = {GRID.tile_id(cell): cell for cell, _, _ in tile_cells(GRID, load_region([14.9, 45.9, 15.3, 46.2]))}
    assert small.items() <= large.items()


def test_a_tile_between_the_parts_of_a_region_is_not_made() -> None:
    parts = Region(MultiPolygon([box(15, 46, 15.02, 46.02), box(15.4, 46.4, 15.42, 46.42)]))
    assert 2 <= len(list(tile_cells(GRID, parts))) <= 8


def test_a_region_smaller_than_a_pixel_has_one_or_is_refused() -> None:
    x, y = Transformer.from_crs(GRID.crs, "EPSG:4326", always_xy=True).transform(500_005, 5_100_005)
    inside = load_region([x - 1e-6, y - 1e-6, x + 1e-6, y + 1e-6])
    assert snapped_box(GRID, inside).shape == (1, 1)
    assert len(list(tile_cells(GRID, inside))) == 1
    check_holds_pixels(GRID, inside)
    beside = load_region([x + 3e-5, y - 1e-6, x + 3.2e-5, y + 1e-6])
    assert snapped_box(GRID, beside).shape == (1, 1)
    with pytest.raises(GridError, match="no pixel of 10 has its centre in the region"):
        check_holds_pixels(GRID, beside)


def test_bounds_on_pixel_corners_do_not_grow_the_box_by_rounding(tmp_path: Path) -> None:
    path = f"{tmp_path}/region.gpkg"
    gpd.GeoDataFrame(geometry=[box(500_000, 5_100_000, 501_000, 5_102_000)], crs="EPSG:32633").to_file(path)
    region = load_region(path)
    outer = snapped_box(GRID, region)
    assert outer == PixelBox(-510_200, 50_000, -510_000, 50_100)
    assert region_mask(GRID, outer, region).all()


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_a_pixel_is_inside_the_region_whatever_box_asks(seed: int) -> None:
    random = np.random.default_rng(seed)
    angles = np.sort(random.uniform(0, 2 * np.pi, 40))
    radii = random.uniform(0.02, 0.2, 40)
    star = Polygon(np.column_stack([15.5 + radii * np.cos(angles), 46 + radii * np.sin(angles)])).buffer(0)
    region = Region(star.difference(Point(15.5, 46).buffer(0.01)))
    outer = snapped_box(GRID, region)
    whole = region_mask(GRID, outer, region)
    for _ in range(4):
        top, left = random.integers(outer.top, outer.bottom - 20), random.integers(outer.left, outer.right - 20)
        part = PixelBox(top, left, top + int(random.integers(1, 1500)), left + int(random.integers(1, 1500))).intersect(outer)
        assert (region_mask(GRID, part, region) == whole[part.within(outer)]).all()


def test_a_pixel_counts_by_its_centre() -> None:
    triangle = Polygon([(500_000, 5_100_000), (501_000, 5_100_000), (500_000, 5_101_000)])
    region = Region(to_degrees(triangle, "EPSG:32633"))
    outer = snapped_box(GRID, region)
    mask = region_mask(GRID, outer, region)
    rows, columns = np.indices(outer.shape)
    x, y = (outer.left + columns + 0.5) * 10, -(outer.top + rows + 0.5) * 10
    distance = (x - 500_000) + (y - 5_100_000) - 1000
    clear = np.abs(distance) > 1
    assert (mask == (distance < 0))[clear].all()


@pytest.mark.parametrize(
    ("crs", "resolution"), [("EPSG:32633", 10), ("EPSG:4326", 0.00009), ("EPSG:2263", 30), ("+proj=laea +lat_0=5 +lon_0=20 +units=m", 2.5)]
)
def test_tile_names_are_safe_and_unique_on_all_sides_of_the_origin(crs: str, resolution: float) -> None:
    grid = Grid(crs, resolution, (0.0, 0.0), 100)
    names = {grid.tile_id(cell) for cell in PixelBox(-250, -250, 250, 250).lattice(100)}
    assert len(names) == 36
    assert all(re.fullmatch(r"[a-z0-9]+-[a-z0-9]+-[ew]\d{4}-[ns]\d{4}", name) for name in names)


@pytest.mark.parametrize(
    ("place", "zone"),
    [((15, 46), 33), ((5, 60), 32), ((5, 50), 31), ((10, 75), 33), ((-180, 0), 1), ((179.9, 0), 60), ((181, 0), 1), ((40, 80), 37), ((-75, 40), 18)],
)
def test_a_place_lies_in_the_zone_that_its_sentinel_tiles_have(place: tuple[float, float], zone: int) -> None:
    assert utm_zone(*place) == zone


@pytest.mark.parametrize(
    ("bounds", "crs"),
    [
        ([15, 46, 16, 47], "EPSG:32633"),
        ([15, -47, 16, -46], "EPSG:32733"),
        ([177, -19, -178, -16], "EPSG:32760"),
        ([178.5, -19, -177, -16], "EPSG:32701"),
        ([8.5, 45, 21.5, 46], "EPSG:32633"),
    ],
)
def test_auto_is_the_zone_of_the_centroid(bounds: list[float], crs: str) -> None:
    assert resolve_crs("auto", load_region(bounds)) == crs


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ([5, 42, 22, 48], "leaves by .* set grid.crs to EPSG:3035"),
        ([-120, 32, -80, 48], "EPSG:5070"),
        ([115, -35, 150, -20], "EPSG:3577"),
        ([60, 20, 90, 40], r"\+proj=laea \+lat_0=30 \+lon_0=75"),
        ([170, -30, -160, 0], r"\+proj=laea \+lat_0=-15 \+lon_0=-175"),
        ([10, 83, 12, 85], "EPSG:3413, polar stereographic"),
        ([10, -85, 12, -79], "EPSG:3031, polar stereographic"),
    ],
)
def test_auto_refuses_what_no_zone_fits_with_a_crs_that_does(bounds: list[float], words: str) -> None:
    region = load_region(bounds)
    with pytest.raises(GridError, match=words) as caught:
        resolve_crs("auto", region)
    suggested = re.search(r"EPSG:\d+|\+proj[^\"]+", str(caught.value))
    assert suggested is not None
    assert resolve_crs(suggested[0], region)
    assert region.to_crs(suggested[0]).is_valid


def test_auto_keeps_the_zone_of_a_series_whose_region_moved_over_the_border() -> None:
    assert resolve_crs("auto", load_region([11.5, 46, 12.3, 47]), frozen="EPSG:32633") == "EPSG:32633"
    with pytest.raises(GridError, match="zone 33"):
        resolve_crs("auto", load_region([1, 46, 2, 47]), frozen="EPSG:32633")


@pytest.mark.parametrize(
    ("text", "words"), [("EPSG:1", "not a coordinate reference system"), ("utm", "not a coord"), ("EPSG:4978", "no two plane axes")]
)
def test_a_crs_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(GridError, match=words):
        resolve_crs(text, load_region([15, 46, 16, 47]))


def test_a_crs_made_for_elsewhere_is_refused_but_not_one_of_the_neighbours() -> None:
    assert resolve_crs("EPSG:32632", load_region([15, 46, 16, 47])) == "EPSG:32632"
    assert resolve_crs("EPSG:32701", load_region([177, -19, 179, -16])) == "EPSG:32701"
    for crs in ("EPSG:5070", "EPSG:32601", "EPSG:3031"):
        with pytest.raises(GridError, match=r"^grid.crs: .* is made for .* and the region lies elsewhere"):
            resolve_crs(crs, load_region([15, 46, 16, 47]))


def test_a_crs_has_its_code_however_it_is_written() -> None:
    region = load_region([15, 46, 16, 47])
    assert resolve_crs("epsg:32633", region) == "EPSG:32633"
    assert resolve_crs("+proj=utm +zone=33 +datum=WGS84", region) == "EPSG:32633"


def test_metres_meant_as_degrees_are_refused() -> None:
    check_resolution("EPSG:4326", 0.0001)
    with pytest.raises(GridError, match="counts in degrees"):
        check_resolution("EPSG:4326", 10)


def test_more_tiles_than_anyone_wants_are_refused() -> None:
    with pytest.raises(GridError, match="choose a larger tile"):
        next(iter(tile_cells(Grid("EPSG:32633", 10, (0.0, 0.0), 1), load_region([15, 46, 15.5, 46.5]))))


@pytest.mark.parametrize(
    ("transform", "resolution", "phase"),
    [
        (Affine(10, 0, 399_960, 0, -10, 5_300_040), 10, (0.0, 0.0)),
        (Affine(30, 0, 399_985, 0, -30, 5_300_015), 30, (25.0, 5.0)),
        (Affine(120, 0, 499_980, 0, -120, 5_200_020), 120, (60.0, 60.0)),
        (Affine(0.1, 0, 0.3, 0, -0.1, 0.7), 0.1, (0.0, 0.0)),
        (Affine(10, 1, 399_965, 0, -10, 5_300_045), 10, (0.0, 0.0)),
    ],
)
def test_the_grid_takes_the_phase_of_the_scene(transform: Affine, resolution: float, phase: tuple[float, float]) -> None:
    found = pixel_phase(BAND, "EPSG:32633", resolution, lambda band: AssetGrid("EPSG:32633", transform))
    assert found == pytest.approx(phase, abs=1e-9)


def test_a_scene_in_another_crs_has_no_say_in_the_phase() -> None:
    assert pixel_phase(BAND, "EPSG:32632", 10, lambda band: AssetGrid("EPSG:32633", Affine(10, 0, 5, 0, -10, 5))) == (0.0, 0.0)
    assert pixel_phase(BAND, "EPSG:32632", 10, lambda band: AssetGrid("", Affine(10, 0, 5, 0, -10, 5))) == (0.0, 0.0)


def test_metres_are_metres_on_the_ground_in_any_crs() -> None:
    region = load_region([15, 60, 15.5, 60.2])
    assert metres_per_pixel(Grid("EPSG:32633", 10, (0.0, 0.0), 512), region) == (10, 10)
    high, wide = metres_per_pixel(Grid("EPSG:4326", 0.0001, (0.0, 0.0), 512), region)
    assert (high, wide) == pytest.approx((11.14, 5.56), abs=0.02)
    high, wide = metres_per_pixel(Grid("EPSG:3857", 20, (0.0, 0.0), 512), region)
    assert (high, wide) == pytest.approx((10, 10), abs=0.1)
