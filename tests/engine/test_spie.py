import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.spie import attributes_text, find_regions, spectral_index, spectral_prior
from engine.spie.indices import otsu_within
from engine.spie.regions import location_word, size_word

masks = arrays.arrays(bool, st.tuples(st.integers(4, 40), st.integers(4, 40)))


@given(masks)
@settings(max_examples=60, deadline=None)
def test_regions_are_ordered_bounded_and_inside_the_chip(mask):
    regions = find_regions(mask)
    areas = [region.area for region in regions]
    assert len(regions) <= 10 and areas == sorted(areas, reverse=True) and sum(areas) <= mask.sum()
    for region in regions:
        points = [region.centroid, *region.box]
        assert len(region.box) == 4 and all(0 <= x <= 1 and 0 <= y <= 1 for x, y in points)
        assert all(abs(x * mask.shape[1] - round(x * mask.shape[1])) < 1e-9 for x, _ in points)


@given(masks)
@settings(max_examples=30, deadline=None)
def test_turning_a_mask_keeps_sizes(mask):
    assert [r.area for r in find_regions(mask)] == [r.area for r in find_regions(np.rot90(mask))]


def test_a_rectangle_is_described_by_its_own_corners():
    mask = np.zeros((100, 100), bool)
    mask[10:31, 60:91] = True
    (region,) = find_regions(mask)
    assert region.box == ((0.6, 0.1), (0.9, 0.1), (0.9, 0.3), (0.6, 0.3))
    assert (region.centroid, region.location, region.size) == ((0.75, 0.2), "top-right", "huge")


def test_attributes_have_the_keys_of_spie_in_their_order():
    mask = np.zeros((64, 64), bool)
    mask[5:20, 30:50] = True
    rows = json.loads(attributes_text(find_regions(mask)).removeprefix(" Attributes: "))
    assert list(rows[0]) == ["Size of area", "Centroid", "Location", "Bounding box"]
    assert attributes_text([]) == ""


@pytest.mark.parametrize(
    ("percent", "word"), [(0.1, "very tiny"), (0.15, "tiny"), (0.3, "small"), (0.5, "medium"), (1.0, "somewhat large"), (2.0, "large"), (30, "huge")]
)
def test_size_words(percent, word):
    assert size_word(percent) == word


@pytest.mark.parametrize(("x", "y", "word"), [(0.1, 0.1, "top-left"), (0.5, 0.5, "center"), (0.5, 0.9, "bottom-center"), (1.0, 0.5, "middle-right")])
def test_location_words(x, y, word):
    assert location_word(x, y) == word


def test_an_index_without_its_bands_is_none_and_with_them_a_ratio():
    chip = np.stack([np.full((2, 2), value, np.float32) for value in (0.05, 0.08, 0.04, 0.4)])
    bands = ("blue", "green", "red", "nir")
    assert spectral_index("MNDWI", chip, bands) is None
    assert spectral_index("NDVI", chip, bands) == pytest.approx((0.4 - 0.04) / 0.44)


def test_priors_see_water_and_plants_and_no_data_nowhere():
    chip = np.array([[0.05, 0.04, np.nan], [0.06, 0.08, np.nan], [0.04, 0.05, np.nan], [0.02, 0.40, np.nan]], np.float32)[:, None]
    bands = ("blue", "green", "red", "nir")
    assert spectral_prior("water", chip, bands).tolist() == [[True, False, False]]
    assert spectral_prior("vegetation", chip, bands).tolist() == [[False, True, False]]
    assert spectral_prior("building", chip, bands) is None


def test_otsu_moves_the_threshold_only_within_its_guard_band():
    values = np.concatenate([np.full(500, 0.08), np.full(500, 0.30)]).astype(np.float32)
    assert 0.08 < otsu_within(values, 0.0, 0.4, 0.2) < 0.30
    assert otsu_within(values, 0.5, 0.6, 0.55) == 0.55
