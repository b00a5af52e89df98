"""The simulated world: one landscape whatever the patch, and physics that keep their word."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.demo.acquisitions import ACQUISITIONS, seasonal_reflectance, shadow_thickness, sunlight, through_air
from pipeline.demo.landscape import landscape
from pipeline.demo.noise import Patch, fractal, scatter, uniform
from pipeline.demo.spectra import BANDS, REFLECTANCE, Cover, Material, cover_of
from pipeline.demo.tiles import job_grid, make_tiles, region

PLACES = st.integers(-20000, 20000)


@settings(max_examples=8, deadline=None)
@given(left=PLACES, top=PLACES, down=st.integers(0, 60), right=st.integers(0, 60))
def test_a_pixel_is_the_same_ground_in_whatever_patch_it_is_computed(left: int, top: int, down: int, right: int) -> None:
    whole = landscape(Patch(left, top, 160, 160), 5)
    part = landscape(Patch(left + right, top + down, 90, 90), 5)
    cut = slice(down, down + 90), slice(right, right + 90)
    # Rounding may tip a pixel on the very edge of two things; nothing else may differ.
    assert (whole.first[cut] == part.first).mean() > 0.999
    assert np.abs(whole.elevation[cut] - part.elevation).max() < 0.05


@given(seed=st.integers(0, 2**31), stream=st.integers(0, 1000), i=PLACES, j=PLACES)
def test_hashed_numbers_depend_on_the_place_alone(seed: int, stream: int, i: int, j: int) -> None:
    one = uniform(seed, stream, np.array([i]), np.array([j]))
    many = uniform(seed, stream, np.arange(i - 2, i + 3), np.full(5, j))
    assert one[0] == many[2] and 0 <= one[0] < 1


def test_noise_has_about_zero_mean_and_unit_variance() -> None:
    field = fractal(Patch(0, 0, 1000, 1000), 1, 1, 100, 4)
    assert abs(field.mean()) < 0.1 and 0.8 < field.std() < 1.25


def test_spots_near_a_patch_do_not_depend_on_the_patch() -> None:
    wide, narrow = scatter(Patch(0, 0, 2000, 2000), 2, 9, 1500, 500), scatter(Patch(400, 400, 300, 300), 2, 9, 1500, 500)
    assert {spot.number for spot in narrow} <= {spot.number for spot in wide}


@given(ground=st.floats(0.001, 0.6), cloud=st.floats(0, 8), shadow=st.floats(0, 8), band=st.integers(0, len(BANDS) - 1), number=st.integers(0, 2))
def test_clouds_brighten_shadows_darken_and_clear_air_shows_the_ground(ground: float, cloud: float, shadow: float, band: int, number: int) -> None:
    fields = {name: np.full((1, 1), value, np.float32) for name, value in (("ground", ground), ("cloud", cloud), ("shadow", shadow), ("zero", 0))}
    acquisition = ACQUISITIONS[number]
    clear = through_air(fields["ground"], band, acquisition, fields["zero"], fields["zero"], fields["zero"])
    assert clear[0, 0] == pytest.approx(ground, rel=1e-5)
    shaded = through_air(fields["ground"], band, acquisition, fields["zero"], fields["shadow"], fields["zero"])
    assert 0 < shaded[0, 0] <= clear[0, 0] * 1.00001
    clouded = through_air(fields["ground"] * 0.3, band, acquisition, fields["zero"], fields["zero"], fields["cloud"])
    assert 0.3 * ground * 0.9999 <= clouded[0, 0] < 0.9


def test_a_shadow_lies_on_the_far_side_of_its_cloud_from_the_sun() -> None:
    from pipeline.demo.acquisitions import cloud_thickness

    acquisition = ACQUISITIONS[1]
    patch = Patch(0, 0, 400, 400, 20.0)
    cloud, shadow = cloud_thickness(patch, 3, acquisition), shadow_thickness(patch, 3, acquisition)
    away = acquisition.cloud_height / np.tan(np.radians(acquisition.sun_elevation)) / 20
    # The sun stands in the south-east, so shadows fall to the north-west: up and left.
    east, south = round(away * np.sin(np.radians(acquisition.sun_azimuth))), round(-away * np.cos(np.radians(acquisition.sun_azimuth)))
    assert east > 0 and south > 0
    np.testing.assert_allclose(shadow[: 400 - south, : 400 - east], cloud[south:, east:], atol=1e-5)


def test_slopes_towards_the_sun_are_brighter_than_level_ground() -> None:
    acquisition = ACQUISITIONS[0]
    rise = np.arange(50, dtype=np.float32)[:, None] * np.ones((1, 50), np.float32)
    level, north_facing, south_facing = (sunlight(h, 5.0, acquisition).mean() for h in (0 * rise, rise, -rise))
    assert level == pytest.approx(1) and south_facing > level > north_facing


def test_spectra_are_reflectances_with_the_shapes_that_indices_rely_on() -> None:
    bands = {band.key: number for number, band in enumerate(BANDS)}
    for acquisition in ACQUISITIONS:
        table = seasonal_reflectance(acquisition)
        assert table.min() > 0 and table.max() < 0.6
        red, nir, green, swir = (table[:, bands[key]] for key in ("red", "nir", "green", "swir16"))
        vegetation, wetness = (nir - red) / (nir + red), (green - swir) / (green + swir)
        assert vegetation[[Material.DECIDUOUS, Material.CONIFER, Material.PASTURE, Material.GREEN_CROP]].min() > 0.5
        water = cover_of(np.arange(len(Material), dtype=np.uint8)) == Cover.WATER
        assert wetness[water].min() > 0.4 > wetness[~water].max()
    assert REFLECTANCE.shape == (len(Material), len(BANDS))


@pytest.mark.parametrize("size", [128, 1024, 10980])
def test_the_tiles_overlap_across_the_border_of_the_zones_and_hold_the_region(size: int) -> None:
    west, east = (tile.grid.outline for tile in make_tiles(size))
    assert west.bounds[0] < 12 < west.bounds[2] and east.bounds[0] < 12 < east.bounds[2]
    assert 0.3 < west.intersection(east).area / west.area < 0.5
    assert west.union(east).buffer(1e-6).covers(region(size))
    grid = job_grid(size)
    assert 1.4 < grid.width / size < 1.7 and 0.85 < grid.height / size < 1.1
