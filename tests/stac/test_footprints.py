"""Footprints: a wrong one loses a scene, or takes half the world for one."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from pyproj import Geod
from shapely.geometry import mapping

from stac.errors import SceneRefused
from stac.footprints import footprint

EXPECTATIONS = list(csv.DictReader((Path(__file__).parent / "expectations.csv").open()))
WORLD = shapely.box(-180, -90, 180, 90)


def test_footprints_of_real_sentinel_2_items_are_no_larger_than_a_tile(stac_items: Path) -> None:
    across = 0
    for row in EXPECTATIONS:
        if row["sensor"] == "sentinel-2":
            ground = footprint(json.loads((stac_items / row["file"]).read_text())["geometry"])
            area, _ = Geod(ellps="WGS84").geometry_area_perimeter(shapely.orient_polygons(ground))
            assert 0 < abs(area) < 112_000**2, row["file"]
            assert WORLD.covers(ground)
            across += ground.bounds[2] - ground.bounds[0] > 300
    assert across >= 8


@given(
    west=st.floats(150, 200),
    width=st.floats(0.01, 40),
    south=st.floats(-80, 70),
    height=st.floats(0.01, 10),
    wrapped=st.booleans(),
)
def test_a_box_across_the_antimeridian_keeps_its_area_and_stays_in_the_world(
    west: float, width: float, south: float, height: float, wrapped: bool
) -> None:
    box = shapely.box(west, south, west + width, south + height)
    ring = [[(x + 180) % 360 - 180 if wrapped else x, y] for x, y in box.exterior.coords]
    if wrapped and any(abs(x) == 180 for x, _ in ring):
        return
    ground = footprint({"type": "Polygon", "coordinates": [ring]})
    assert ground.area == pytest.approx(box.area, rel=1e-6)
    assert WORLD.covers(ground)
    inside = box.representative_point()
    assert ground.intersects(shapely.Point((inside.x + 180) % 360 - 180, inside.y))


def test_a_polygon_within_the_world_is_kept_as_it_is() -> None:
    box = shapely.box(10, 40, 12, 41)
    assert footprint(mapping(box)).equals_exact(box)
    assert footprint(mapping(WORLD)).area == WORLD.area


def test_a_footprint_around_the_pole_covers_the_pole() -> None:
    ring = [[-170 + 20 * step, 80.0] for step in range(18)]
    ground = footprint({"type": "Polygon", "coordinates": [[*ring, ring[0]]]})
    assert ground.intersects(shapely.Point(0, 89))
    assert not ground.intersects(shapely.Point(0, 70))


@pytest.mark.parametrize(
    "geometry",
    [
        None,
        {},
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "Polygon", "coordinates": []},
        {"type": "Polygon"},
        {"type": "Odd", "coordinates": [1]},
    ],
)
def test_no_area_is_a_reason_to_refuse(geometry: dict | None) -> None:
    with pytest.raises(SceneRefused, match="footprint"):
        footprint(geometry)
