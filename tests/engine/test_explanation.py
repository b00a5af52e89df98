import re

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.explanation import ClassStatistics, count_borders, describe, landcover_of, measure, percent

RGBN = ("blue", "green", "red", "nir")
TITLES = ("Water", "Vegetation")


def lake() -> tuple[np.ndarray, np.ndarray]:
    """A 20 x 20 chip: the left quarter is water, the rest plants, one pixel without data."""
    water = np.zeros((20, 20), np.float32)
    water[:, :5] = 0.9
    probabilities = np.stack([water, np.where(water > 0, np.float32(0.05), np.float32(0.8))])
    spectra = np.where(water > 0, np.float32([0.05, 0.06, 0.04, 0.02])[:, None, None], np.float32([0.04, 0.08, 0.05, 0.40])[:, None, None])
    probabilities[:, 0, 0] = spectra[:, 0, 0] = np.nan
    return probabilities, spectra


def lake_statistics() -> list[ClassStatistics]:
    return measure(*lake(), RGBN, ("water", "vegetation"), TITLES, (0.35, 0.35))


def test_every_number_of_a_sentence_is_computed_from_the_mask():
    water, vegetation = describe(lake_statistics())
    assert water.startswith("Water covers 25 % of the pixels with data (25 % at a probability above 70 %, 25 % above 30 %)")
    assert "mean confidence of 90 %" in water and "mean NDWI of 0.50" in water and "consistent with water" in water
    assert "100 % of its border is with vegetation" in water
    assert vegetation.startswith("Vegetation covers 75 %") and "mean NDVI of 0.78" in vegetation


def test_an_absent_class_is_said_to_be_absent():
    (sentence,) = describe([ClassStatistics("bare", "Bare ground", 0, 1000, 0, 20)])
    assert sentence == "Bare ground was not found in 1,000 pixels with data, though 2.0 % of them reach a probability of 30 %."


def test_a_chip_without_data_says_so():
    probabilities, spectra = np.full((2, 2, 3, 3), np.nan, np.float32), np.full((4, 3, 3), np.nan, np.float32)
    statistics = measure(probabilities[0], spectra, RGBN, ("water", "vegetation"), TITLES, (0.35, 0.35))
    assert describe(statistics) == ["Water: there are no pixels with data.", "Vegetation: there are no pixels with data."]


def test_evidence_against_a_class_is_told_too():
    (sentence,) = describe([ClassStatistics("water", "Water", 10, 100, mean_indices={"MNDWI": -0.2, "NDWI": 0.1})])
    assert "mean NDWI of 0.10: consistent with water" in sentence and "mean MNDWI of -0.20: unusual for water" in sentence


def test_areas_in_hectares_replace_shares_in_the_range():
    statistics = ClassStatistics("water", "Water", 10, 100, 8, 12, hectares=1234.5, certain_hectares=1000.0, possible_hectares=1500.0)
    (sentence,) = describe([statistics])
    assert "1,234.5 ha (1,000.0 ha at a probability above 70 %, 1,500.0 ha above 30 %)" in sentence


planes = arrays.arrays(np.int16, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(-1, 3))


@given(planes)
def test_borders_are_symmetric_and_do_not_depend_on_orientation(winner):
    counts = count_borders(winner, 4)
    assert (counts == counts.T).all() and not counts.diagonal().any()
    assert (counts == count_borders(np.rot90(winner), 4)).all()


@given(arrays.arrays(np.float32, (3, 5, 5), elements=st.floats(0, 1, width=32)))
@settings(max_examples=50)
def test_areas_add_up_and_ranges_enclose_what_was_mapped(raw):
    shares = raw / np.maximum(raw.sum(0), 1)
    spectra = np.full((4, 5, 5), 0.1, np.float32)
    statistics = measure(shares, spectra, RGBN, ("water", "vegetation", "bare"), ("W", "V", "B"), (0.35,) * 3)
    assert sum(each.pixels for each in statistics) == int((landcover_of(shares, (0.35,) * 3) < 3).sum())
    for each, text in zip(statistics, describe(statistics), strict=True):
        assert each.certain_pixels <= each.pixels <= each.possible_pixels
        assert not re.search(r"nan|None|inf", text)


def test_percent_never_rounds_something_to_nothing():
    assert (percent(0), percent(0.0001), percent(0.0123), percent(0.5), percent(1)) == ("0 %", "less than 0.1 %", "1.2 %", "50 %", "100 %")
