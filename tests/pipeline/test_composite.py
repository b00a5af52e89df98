"""If these fail, the map is made of the wrong date, of cloud edges, or of numbers that no scene has."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipeline.composite import NEAR_CLOUD, FirstClear, Median, grow_clouds, harmonise
from stac.scenes import CLEAR, CLOUD, BandSource

CODES = arrays(np.uint8, st.tuples(st.integers(1, 14), st.integers(1, 14)), elements=st.sampled_from([0, 1, 1, 1, 1, 2, 3]))
RADII = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)) | st.sampled_from([(6.0, 6.0), (1.0, 1.0), (0.0, 0.0), (3, 2)])
OBSERVATIONS = arrays(
    np.uint16, st.tuples(st.integers(1, 7), st.just(2), st.just(4), st.just(5)), elements=st.sampled_from([0, 1, 7, 900, 65534, 65535])
)


@settings(deadline=None)
@given(CODES, RADII)
def test_clouds_grow_by_the_ellipse_and_nothing_else_changes(codes: NDArray[np.uint8], radius: tuple[float, float]) -> None:
    rows, columns = np.nonzero(codes == CLOUD)
    at = np.indices(codes.shape)
    expected = codes.copy()
    if min(radius) > 0:
        for row, column in zip(rows, columns, strict=True):
            inside = ((at[0] - row) / radius[0]) ** 2 + ((at[1] - column) / radius[1]) ** 2 <= 1 + 1e-12
            expected[inside & (codes == CLEAR)] = NEAR_CLOUD
    assert (grow_clouds(codes, radius) == expected).all()


@settings(deadline=None)
@given(OBSERVATIONS)
def test_the_first_scene_with_every_band_wins(observations: NDArray[np.uint16]) -> None:
    composite = FirstClear(np.zeros(observations.shape[1:], np.uint16))
    for rank, numbers in enumerate(observations, start=1):
        composite.feed(rank, numbers, composite.wanted(np.ones(numbers.shape[1:], np.bool_)), (slice(None), slice(None)))
    valid = (observations != 0).all(axis=1)
    first = np.where(valid.any(axis=0), valid.argmax(axis=0), -1)
    assert (composite.source == first + 1).all()
    assert composite.is_done == valid.any(axis=0).all()
    for row, column in np.ndindex(first.shape):
        expected = observations[first[row, column], :, row, column] if first[row, column] >= 0 else 0
        assert (composite.numbers[:, row, column] == expected).all()


@settings(deadline=None)
@given(OBSERVATIONS, st.randoms(use_true_random=False))
def test_the_median_is_that_of_the_clear_observations_in_any_order(observations: NDArray[np.uint16], random: st.Random) -> None:
    order = list(range(len(observations)))
    random.shuffle(order)
    composite = Median()
    for number in order:
        composite.feed(observations[number], np.ones((4, 5), np.bool_))
    valid = (observations != 0).all(axis=1)
    for row, column in np.ndindex(4, 5):
        seen = np.sort(observations[valid[:, row, column], :, row, column].astype(int), axis=0)
        expected = (seen[(len(seen) - 1) // 2] + seen[len(seen) // 2] + 1) // 2 if len(seen) else np.zeros(2, int)
        assert (composite.data[:, row, column] == expected).all()


def test_cloudy_observations_have_no_part_in_the_median() -> None:
    composite = Median()
    for number, clear in ((10, True), (5000, False), (20, True), (31, True)):
        composite.feed(np.full((1, 1, 1), number, np.uint16), np.full((1, 1), clear))
    assert composite.data.item() == 20


@given(st.integers(0, 65535), st.sampled_from([(1e-4, 0.0), (1e-4, -0.1), (2.75e-5, -0.2), (1 / 255, 0.0)]))
def test_numbers_become_reflectance_as_published(number: int, calibration: tuple[float, float]) -> None:
    source = BandSource("x.tif", scale=calibration[0], offset=calibration[1])
    found = int(harmonise(np.array([number], np.float32), source)[0])
    assert found == min(max(round((number * source.scale + source.offset + 0.1) * 10000), 1), 65535)


def test_what_is_not_a_number_is_no_data() -> None:
    numbers = np.array([np.nan, np.inf, -np.inf, 0, -3000, 1e9], np.float32)
    assert harmonise(numbers, BandSource("x.tif")).tolist() == [0, 0, 0, 1000, 1, 65535]
