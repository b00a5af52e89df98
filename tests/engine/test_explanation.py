"""If these fail, a sentence says a number that nobody counted, or hides one that speaks against the map."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from engine.evidence import rules_of
from engine.explanation import describe, describe_scene, percent
from engine.statistics import (
    ChipStatistics,
    ClassStatistics,
    IndexCounts,
    Occlusion,
    SceneStatistics,
    count_borders,
    count_index,
    landcover_of,
)

RGBN = ("blue", "green", "red", "nir")
TITLES = ("Water", "Vegetation")
PARTS = (("water",), ("vegetation",))


def lake() -> tuple[np.ndarray, np.ndarray]:
    """A 20 x 20 chip: the left quarter is water, its first column green with algae, the rest plants, one pixel without data."""
    water = np.zeros((20, 20), np.float32)
    water[:, :5] = 0.9
    water[:, 4] = 0.45
    probabilities = np.stack([water, np.where(water > 0, np.float32(0.3), np.float32(0.8))])
    spectra = np.where(water > 0, np.float32([0.05, 0.06, 0.04, 0.02])[:, None, None], np.float32([0.04, 0.08, 0.05, 0.40])[:, None, None])
    spectra[3, :, 4] = 0.12
    probabilities[:, 0, 0] = spectra[:, 0, 0] = np.nan
    return probabilities, spectra


def lake_statistics(**options: object) -> ChipStatistics:
    return ChipStatistics(*lake(), RGBN, PARTS, TITLES, (0.35, 0.35), **options)


def test_every_number_of_a_text_is_computed_from_the_mask_and_the_bands() -> None:
    water, vegetation = describe(lake_statistics().classes())
    assert water == (
        "Water covers 25 % of the pixels with data (20 % at a probability above 70 %, 25 % above 30 %), with a mean confidence of 81 %."
        " Second is vegetation on 100 % of it; on 20 % of it the second comes within 20 points."
        " 80 % of it has NDWI above 0 (mean 0.33), consistent with water; 20 % of it has NDWI below 0, unusual for water."
        " 80 % of it has NDVI below 0.2 (mean -0.16), consistent with water; 20 % of it has NDVI above 0.2, unusual for water."
        " 0 % of the other pixels with data have NDWI above 0, which is usual for water."
        " 100 % of its border is with vegetation."
    )
    assert vegetation.startswith("Vegetation covers 75 %") and "100 % of it has NDVI above 0.2 (mean 0.78), consistent with vegetation." in vegetation
    assert describe_scene(lake_statistics().scene()) == (
        "Scene of 399 pixels with data: 75 % vegetation, 25 % water, 0 % none of these. 0.2 % of all 400 pixels have no data."
    )


def test_an_absent_class_is_said_to_be_absent_with_what_speaks_against_that() -> None:
    shore = IndexCounts(1000, 0, {0: (30, 970)})
    (sentence,) = describe([ClassStatistics("Water", 0, 1000, 0, 20, rules=rules_of(("water",)), elsewhere={"MNDWI": shore})])
    assert sentence == (
        "Water was not found in 1,000 pixels with data, though 2.0 % of them have a probability above 30 %."
        " 3.0 % of the pixels with data have MNDWI above 0, which is usual for water."
    )


def test_a_chip_without_data_says_so() -> None:
    probabilities, spectra = np.full((2, 3, 3), np.nan, np.float32), np.full((4, 3, 3), np.nan, np.float32)
    statistics = ChipStatistics(probabilities, spectra, RGBN, PARTS, TITLES, (0.35, 0.35))
    assert describe(statistics.classes()) == ["Water: there are no pixels with data.", "Vegetation: there are no pixels with data."]
    assert describe_scene(statistics.scene()) == "Scene: there are no pixels with data."


def test_only_counter_evidence_is_told_where_there_is_no_evidence() -> None:
    algae = ClassStatistics("Water", 10, 100, rules=rules_of(("water",)), indices={"MNDWI": IndexCounts(10, -20_000, {0: (0, 10)})})
    assert "100 % of it has MNDWI below 0 (mean -0.20), unusual for water." in describe([algae])[0]


@pytest.mark.parametrize(("parts", "title"), [(("solar",), "Solar panels"), (("water", "vegetation"), "Water or vegetation")])
def test_a_class_that_no_index_speaks_about_says_so(parts: tuple[str, ...], title: str) -> None:
    probabilities, spectra = lake()
    (text,) = describe(ChipStatistics(probabilities[:1], spectra, RGBN, [parts], [title], [0.35]).classes())
    assert f"No spectral index of these bands speaks for or against {title[0].lower()}{title[1:]}." in text and "Second" not in text


def test_a_kind_is_compared_with_what_it_can_be_confused_with_not_with_what_it_is_a_kind_of() -> None:
    probabilities, spectra = lake()
    trees = np.concatenate([probabilities, probabilities[1:] * np.float32(0.9)])
    overlaps = (set(), {2}, {1})
    statistics = ChipStatistics(trees, spectra, RGBN, (*PARTS, ("tree_cover",)), (*TITLES, "Tree cover"), (0.35,) * 3, overlaps)
    water, vegetation, kind = statistics.classes()
    assert kind.pixels == vegetation.pixels == 300
    assert kind.runner_up is not None and kind.runner_up.title == "Water" and set(kind.neighbours) == {"Water"}
    assert water.runner_up is not None and water.runner_up.title == "Vegetation"


def test_because_is_said_only_where_hiding_a_band_changes_the_answer() -> None:
    probabilities, _ = lake()
    without = np.nan_to_num(probabilities)
    without[:, :, 3:5] = np.float32([0.1, 0.6])[:, None, None]
    plain = " ".join(describe(lake_statistics().classes()))
    told = describe(lake_statistics(hidden={"nir": without, "red": probabilities}).classes())[0]
    assert "because" not in plain
    assert "Without nir 40 % of it would be mapped otherwise, mostly as vegetation: that much is water because of nir." in told
    assert "Without red less than 1 % of it would be mapped otherwise." in told


def test_hectares_replace_shares_in_the_range_of_a_map() -> None:
    areas = {"hectares": 1234.5, "certain_hectares": 1000.0, "possible_hectares": 1500.0, "mapped_hectares": 10_000.0}
    (sentence,) = describe([ClassStatistics("Water", 10, 100, 8, 12, **areas)])
    assert sentence.startswith("Water covers 12 % of the mapped area, 1,234.5 ha (1,000.0 ha with a confidence above 70 %, 1,500.0 ha above 30 %).")


def test_a_map_says_why_pixels_are_empty() -> None:
    scene = SceneStatistics({"Water": 0.25, "Bare ground": 0.7}, 0.05, 900, 1000, 90.0, {"Always cloud or shadow": 100, "Never observed": 0})
    assert describe_scene(scene) == (
        "Scene of 90.0 ha with data: 70 % bare ground, 25 % water, 5.0 % none of these."
        " 10 % of all 1,000 pixels have no data: 10 % always cloud or shadow."
    )


def test_abbreviations_keep_their_capitals() -> None:
    statistics = lake_statistics().classes()[0]
    (text,) = describe([replace(statistics, title="NDR site", occlusions=(Occlusion("nir", 0.5, "Other"),))])
    assert "consistent with NDR site" in text and "mostly as other" in text


@given(arrays.arrays(np.int16, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.integers(-1, 3)))
def test_borders_are_symmetric_and_do_not_depend_on_orientation(winner: np.ndarray) -> None:
    counts = count_borders(winner, 4)
    assert (counts == counts.T).all() and not counts.diagonal().any()
    assert (counts == count_borders(np.rot90(winner), 4)).all()


@given(st.lists(st.integers(-10_000, 10_000), max_size=60), st.integers(0, 60))
def test_counts_of_a_part_and_of_the_rest_are_those_of_the_whole(values: list[int], cut: int) -> None:
    whole, part, rest = (count_index(np.array(each, np.float32), [-200, 0]) for each in (values, values[:cut], values[cut:]))
    assert whole.without(part) == rest


@given(arrays.arrays(np.float32, (3, 5, 5), elements=st.floats(0, 1, width=32)))
@settings(max_examples=50)
def test_areas_add_up_and_ranges_enclose_what_was_mapped(raw: np.ndarray) -> None:
    shares = raw / np.maximum(raw.sum(0), 1)
    spectra = np.full((4, 5, 5), 0.1, np.float32)
    counts = ChipStatistics(shares, spectra, RGBN, (*PARTS, ("bare",)), ("W", "V", "B"), (0.35,) * 3)
    statistics = counts.classes()
    assert sum(each.pixels for each in statistics) == int((landcover_of(shares, (0.35,) * 3) < 3).sum())
    assert sum(counts.scene().shares.values()) + counts.scene().other == pytest.approx(1)
    for each, text in zip(statistics, describe(statistics), strict=True):
        assert each.certain_pixels <= each.pixels <= each.possible_pixels
        assert not re.search(r"nan|None|inf", text)


def test_percent_never_rounds_something_to_nothing_or_to_all() -> None:
    assert [percent(share) for share in (0, 0.0001, 0.0123, 0.5, 0.9949, 0.99996, 1)] == [
        "0 %",
        "less than 0.1 %",
        "1.2 %",
        "50 %",
        "99.5 %",
        "more than 99.9 %",
        "100 %",
    ]
