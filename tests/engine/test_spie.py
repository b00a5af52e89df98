import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage
from shapely import Polygon

from engine.bands import BANDS
from engine.spie.errors import IndexUnavailable
from engine.spie.grammar import attributes_text
from engine.spie.indices import choose_indices, compute_index, missing_bands, possible_indices, require_indices, spectral_index
from engine.spie.morphology import Morphology, clean_mask
from engine.spie.priors import PRIORS, Rule, fitted_thresholds, otsu_within, prior_rules, require_prior, spectral_prior, why_no_prior
from engine.spie.regions import SizeWords, find_regions, location_word, size_cuts_m2, size_word

ALL = tuple(band.name for band in BANDS)
RGBN = ("blue", "green", "red", "nir")
masks = arrays.arrays(bool, st.tuples(st.integers(4, 40), st.integers(4, 40)))


def chip_of(**reflectance):
    return np.stack([np.full((2, 3), value, np.float32) for value in reflectance.values()]), tuple(reflectance)


# Regions


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
        assert all(abs(y * mask.shape[0] - round(y * mask.shape[0])) < 1e-9 for _, y in points)


@given(masks)
@settings(max_examples=30, deadline=None)
def test_turning_a_mask_keeps_sizes(mask):
    assert [r.area for r in find_regions(mask)] == [r.area for r in find_regions(np.rot90(mask))]


@given(masks)
@settings(max_examples=60, deadline=None)
def test_boxes_run_clockwise_from_the_corner_nearest_the_top_left(mask):
    height, width = mask.shape
    for region in find_regions(mask):
        corners = [(round(x * width), round(y * height)) for x, y in region.box]
        assert sum(corners[0]) == min(map(sum, corners))
        pairs = zip(corners, corners[1:] + corners[:1], strict=True)
        assert sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairs) >= 0


@given(masks)
@settings(max_examples=60, deadline=None)
def test_boxes_and_centroids_hold_what_they_describe(mask):
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    largest = find_regions(mask, longest=1)
    assume(largest)
    areas = np.bincount(labels.ravel())[1:]
    rows, columns = np.nonzero(labels == 1 + int(np.argmax(areas)))
    (region,), (height, width) = largest, mask.shape
    assert region.area == areas.max() == len(rows)
    assert region.centroid == (math.floor(columns.mean() + 1e-9) / width, math.floor(rows.mean() + 1e-9) / height)
    box = Polygon([(x * width, y * height) for x, y in region.box]).buffer(1.5)
    assert all(box.covers(Polygon([(x, y), (x + 0.1, y), (x, y + 0.1)])) for x, y in zip(columns, rows, strict=True))


@given(masks, st.integers(2, 4))
@settings(max_examples=30, deadline=None)
def test_size_words_do_not_depend_on_the_sampling_of_the_same_ground(mask, factor):
    finer = np.kron(mask, np.ones((factor, factor), bool))
    for words in (None, 50_000.0):
        coarse = find_regions(mask, minimum_pixels=1, size_words=SizeWords(10.0, words))
        fine = find_regions(finer, minimum_pixels=1, size_words=SizeWords(10.0 / factor, words))
        assert [region.size for region in coarse] == [region.size for region in fine]


def test_a_rectangle_is_described_by_its_own_corners():
    mask = np.zeros((100, 100), bool)
    mask[10:31, 60:91] = True
    (region,) = find_regions(mask)
    assert region.box == ((0.6, 0.1), (0.9, 0.1), (0.9, 0.3), (0.6, 0.3))
    assert (region.centroid, region.location, region.size) == ((0.75, 0.2), "top-right", "huge")


def test_a_line_and_a_single_pixel_keep_their_centroid_and_have_a_flat_box():
    mask = np.zeros((100, 100), bool)
    mask[np.arange(50, 90), np.arange(50, 90)] = True
    mask[7, 91] = True
    line, pixel = find_regions(mask, minimum_pixels=1)
    assert (line.centroid, line.box) == ((0.69, 0.69), ((0.5, 0.5), (0.5, 0.5), (0.89, 0.89), (0.89, 0.89)))
    assert (pixel.centroid, pixel.location, set(pixel.box)) == ((0.91, 0.07), "top-right", {(0.91, 0.07)})


def test_pixels_that_touch_at_a_corner_are_one_region_and_holes_count_for_none():
    mask = np.zeros((64, 64), bool)
    mask[4:24, 4:24] = mask[24:44, 24:44] = True
    mask[8:20, 8:20] = False
    (region,) = find_regions(mask)
    assert region.area == 800 - 144


def test_only_the_ten_largest_are_described_in_order():
    mask = np.zeros((200, 200), bool)
    for i in range(14):
        mask[10 : 12 + i, 14 * i : 14 * i + 10] = True
    assert [region.area for region in find_regions(mask, minimum_pixels=1)] == [10 * (2 + i) for i in range(13, 3, -1)]


def test_attributes_have_the_keys_of_spie_in_their_order_and_three_decimals():
    mask = np.zeros((64, 64), bool)
    mask[5:20, 31:50] = True
    text = attributes_text(find_regions(mask))
    rows = json.loads(text.removeprefix(" Attributes: "))
    assert list(rows[0]) == ["Size of area", "Centroid", "Location", "Bounding box"]
    assert rows[0]["Centroid"] == [round(40 / 64, 3), round(12 / 64, 3)] and rows[0]["Bounding box"][0] == [0.484, 0.078]
    assert attributes_text([]) == ""


@pytest.mark.parametrize(
    ("percent", "word"), [(0.1, "very tiny"), (0.15, "tiny"), (0.3, "small"), (0.5, "medium"), (1.0, "somewhat large"), (2.0, "large"), (30, "huge")]
)
def test_size_words(percent, word):
    assert size_word(percent) == word


def test_size_cuts_in_square_metres_are_the_percentages_of_a_chip():
    assert size_cuts_m2(10.0)["very tiny"] == pytest.approx(0.00125 * 5120**2)
    assert size_cuts_m2(1.0, 256**2)["large"] == pytest.approx(0.06 * 256**2)


@pytest.mark.parametrize(("x", "y", "word"), [(0.1, 0.1, "top-left"), (0.5, 0.5, "center"), (0.5, 0.9, "bottom-center"), (1.0, 0.5, "middle-right")])
def test_location_words(x, y, word):
    assert location_word(x, y) == word


# Morphology


def test_metres_become_pixels_by_the_ground_sample_distance():
    assert Morphology() == Morphology.at(10.0)
    assert (Morphology().radii(10.0), Morphology().minimum_pixels(10.0)) == ((1, 2), 50)
    assert (Morphology().radii(5.0), Morphology().minimum_pixels(5.0)) == ((2, 4), 200)
    assert (Morphology().radii(30.0), Morphology().minimum_pixels(30.0)) == ((0, 1), 6)
    assert Morphology().minimum_pixels(120.0) == 1


def test_specks_go_gaps_close_and_small_regions_are_dropped():
    mask = np.zeros((80, 80), bool)
    mask[10:30, 10:50] = True
    mask[10:30, 28:31] = False
    mask[60, 60] = True
    mask[50:56, 5:11] = True
    cleaned = clean_mask(mask)
    assert cleaned[20, 29] and not cleaned[60, 60] and not cleaned[52, 8]
    assert clean_mask(mask, 10.0, Morphology(10.0, 20.0, 2_000.0))[52, 8]


def test_closing_fills_no_pixel_without_data():
    mask = np.ones((40, 40), bool)
    mask[:, 20] = False
    assert clean_mask(mask).all()
    assert not clean_mask(mask, valid=mask)[:, 20].any()


@given(arrays.arrays(bool, (40, 40), elements=st.booleans()), st.sampled_from([10.0, 5.0]))
@settings(max_examples=40, deadline=None)
def test_a_chip_with_a_halo_is_cleaned_like_the_whole_scene(mask, resolution):
    morphology = Morphology()
    margin = morphology.halo(resolution)
    scene = np.pad(mask, 20, mode="symmetric")
    whole = morphology.opened_and_closed(scene, resolution)
    part = morphology.opened_and_closed(scene[20 - margin : 60 + margin, 20 - margin : 60 + margin], resolution)
    assert (part[margin:-margin, margin:-margin] == whole[20:60, 20:60]).all()


# Indices


def test_an_index_without_its_bands_is_none_and_with_them_a_ratio():
    chip, bands = chip_of(blue=0.05, green=0.08, red=0.04, nir=0.4)
    assert spectral_index("MNDWI", chip, bands) is None
    assert spectral_index("NDVI", chip, bands) == pytest.approx((0.4 - 0.04) / 0.44)


def test_an_index_asked_for_by_name_says_which_band_is_missing_and_what_is_possible():
    chip, bands = chip_of(blue=0.05, green=0.08, red=0.04, nir=0.4)
    with pytest.raises(IndexUnavailable, match="NDBI needs swir16, not among the bands; possible with blue, green, red, nir: NDVI, NDWI, NGRDI"):
        compute_index("NDBI", chip, bands)
    with pytest.raises(IndexUnavailable, match="nearest: NDVI"):
        compute_index("NDVJ", chip, bands)
    with pytest.raises(IndexUnavailable, match=r"NDBI needs swir16.*NDRE needs rededge071"):
        require_indices(("NDVI", "NDBI", "NDRE"), bands)


def test_an_optional_index_is_left_out_with_its_reason():
    choice = choose_indices(("NDVI", "BSI", "kNDVI"), RGBN)
    assert choice.used == ("NDVI",)
    assert choice.left_out["BSI"] == "index BSI needs swir16, not among the bands"
    assert "kNN" in choice.left_out["kNDVI"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NDWI", (0.08 - 0.40) / 0.48),
        ("MNDWI", (0.08 - 0.20) / 0.28),
        ("NDBI", (0.20 - 0.40) / 0.60),
        ("BSI", ((0.20 + 0.04) - (0.40 + 0.05)) / (0.20 + 0.04 + 0.40 + 0.05)),
        ("NDRE", (0.40 - 0.12) / 0.52),
        ("ND705", (0.30 - 0.12) / 0.42),
        ("SAVI", 2.0 * (0.40 - 0.04) / (0.40 + 0.04 + 1.0)),
        ("EVI", 2.5 * (0.40 - 0.04) / (0.40 + 6 * 0.04 - 7.5 * 0.05 + 1.0)),
        ("SeLI", (0.38 - 0.12) / 0.50),
    ],
)
def test_indices_by_hand(name, expected):
    chip, bands = chip_of(blue=0.05, green=0.08, red=0.04, rededge071=0.12, rededge075=0.30, nir=0.40, nir08=0.38, swir16=0.20)
    assert compute_index(name, chip, bands) == pytest.approx(expected, rel=1e-5)


def test_constants_are_those_of_spyndex_unless_given():
    chip, bands = chip_of(red=0.04, nir=0.4)
    assert compute_index("SAVI", chip, bands, {"L": 0.5}) == pytest.approx(1.5 * 0.36 / 0.94, rel=1e-5)


def test_nir08_stands_in_for_nir_and_one_channel_plays_one_role():
    chip, bands = chip_of(red=0.04, nir08=0.4)
    assert compute_index("NDVI", chip, bands) == pytest.approx(0.36 / 0.44)
    assert missing_bands("NDVI", ("red", "nir08")) == ()


@given(st.lists(st.sampled_from(ALL), unique=True, min_size=1))
@settings(max_examples=15, deadline=None)
def test_every_possible_index_can_be_computed_and_no_data_stays_no_data(bands):
    generator = np.random.default_rng(0)
    chip = generator.uniform(0.0, 0.6, (len(bands), 3, 4)).astype(np.float32)
    chip[:, 0, 0] = np.nan
    for name in possible_indices(bands)[:40]:
        values = compute_index(name, chip, bands)
        assert values.shape == (3, 4) and values.dtype == np.float32
        assert np.isnan(values[0, 0]) and not np.isinf(values).any()


# Rules and thresholds


def test_priors_see_water_and_plants_and_no_data_nowhere():
    chip = np.array([[0.05, 0.04, np.nan], [0.06, 0.08, np.nan], [0.04, 0.05, np.nan], [0.02, 0.40, np.nan]], np.float32)[:, None]
    assert spectral_prior("water", chip, RGBN).tolist() == [[True, False, False]]
    assert spectral_prior("vegetation", chip, RGBN).tolist() == [[False, True, False]]
    assert spectral_prior("building", chip, RGBN) is None


def test_a_class_without_rules_says_which_index_and_band_are_missing_and_which_classes_would_do():
    with pytest.raises(IndexUnavailable, match=r"'building': index NDBI needs swir16.*indices NDVI, NDWI, NGRDI, classes water, vegetation, bare"):
        require_prior("building", RGBN)
    assert "no index rule for class 'road'" in why_no_prior("road", RGBN)


def test_rules_prefer_the_first_alternative_that_the_bands_offer():
    assert [rule.index for rule in prior_rules("water", (*RGBN, "swir16"))] == ["MNDWI", "NDVI"]
    assert [rule.index for rule in prior_rules("water", RGBN)] == ["NDWI"]


def test_otsu_moves_the_threshold_only_within_its_guard_band():
    values = np.concatenate([np.full(500, 0.08), np.full(500, 0.30)]).astype(np.float32)
    assert 0.08 < otsu_within(values, 0.0, 0.4, 0.2) < 0.30
    assert otsu_within(values, 0.5, 0.6, 0.55) == 0.55


@given(
    arrays.arrays(np.float32, 60, elements=st.floats(-1, 1, width=32)),
    st.sampled_from(sorted({r for a in PRIORS.values() for b in a for r in b}, key=str)),
)
@settings(max_examples=60, deadline=None)
def test_a_fitted_threshold_never_leaves_its_guard_band(values, rule: Rule):
    fitted = otsu_within(values, rule.threshold - rule.guard, rule.threshold + rule.guard, rule.threshold)
    assert abs(fitted - rule.threshold) <= rule.guard + 1e-9


def test_thresholds_of_the_scene_decide_on_its_chips():
    generator = np.random.default_rng(0)
    nir = np.where(generator.random((64, 64)) < 0.5, 0.35, 0.08).astype(np.float32)
    scene = np.stack([np.full_like(nir, 0.05), np.full_like(nir, 0.07), np.full_like(nir, 0.06), nir])
    fitted = fitted_thresholds("vegetation", scene, RGBN)
    (rule,) = fitted
    assert rule.index == "NDVI" and 0.3 <= fitted[rule] <= 0.5
    chip = scene[:, :8, :8]
    expected = compute_index("NDVI", chip, RGBN) > fitted[rule]
    assert (spectral_prior("vegetation", chip, RGBN, fitted) == expected).all()
    assert spectral_prior("vegetation", chip, RGBN, {rule: 0.9}).sum() == 0
