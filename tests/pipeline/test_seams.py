"""If these fail, a map with visible window borders passes, or one without is called bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import Grid, PixelBox
from pipeline.overviews import open_plain
from pipeline.seams import TransitionProfile, line_score, seam_score, transition_rate


def landscape(height: int = 400, width: int = 600) -> np.ndarray:
    """Patches of four classes with soft, irregular borders and some no data."""
    y, x = np.mgrid[:height, :width]
    field = np.sin(x / 31) + np.cos(y / 23) + np.sin((x + 2 * y) / 17) + 0.3 * np.random.default_rng(4).normal(size=(height, width))
    classes = (np.digitize(field, [-1, 0, 1]) + 1).astype(np.uint8)
    classes[:30, :40] = 0
    return classes


def test_rate_counts_pairs_across_the_line() -> None:
    classes = np.array([[1, 1, 2], [1, 2, 2], [0, 2, 2], [3, 3, 3]], np.uint8)
    assert transition_rate(classes, 1) == pytest.approx(1 / 3)
    assert transition_rate(classes, 2) == pytest.approx(1 / 4)
    assert transition_rate(classes, 3, axis=0) == 1
    assert transition_rate(classes, np.array([2, 1, 1, 2])) == pytest.approx(2 / 3)


def test_rate_of_a_line_without_data_is_nan() -> None:
    assert np.isnan(transition_rate(np.zeros((3, 3), np.uint8), 1))
    assert np.isnan(transition_rate(np.ones((3, 3), np.uint8), np.array([9, 0, -1])))


def test_clean_map_has_no_seam_and_a_cut_one_has() -> None:
    classes = landscape()
    clean = seam_score(classes, [128, 256, 384], [128, 256, 384, 512])
    assert clean is not None and clean.within
    cut = classes.copy()
    cut[:, 256:] = np.where(cut[:, 256:] > 0, 1 + cut[:, 256:] % 4, 0)
    seamed = seam_score(cut, [], [256])
    assert seamed is not None and not seamed.within and seamed.rate > 0.8


def test_curved_border_of_two_zones_is_followed() -> None:
    classes = landscape()
    border = (300 + 40 * np.sin(np.arange(400) / 90)).astype(int)
    assert line_score(classes, border).within
    shifted = classes.copy()
    east = np.arange(600)[None] >= border[:, None]
    shifted[east] = np.roll(classes, 45, axis=0)[east]
    assert not line_score(shifted, border).within


def test_score_is_reproducible() -> None:
    classes = landscape()
    assert seam_score(classes, [100], [200], seed=3) == seam_score(classes, [100], [200], seed=3)
    assert line_score(classes, 100, axis=0, seed=3) == line_score(classes, 100, axis=0, seed=3)


def test_borders_without_data_have_no_score() -> None:
    assert seam_score(np.zeros((20, 20), np.uint8), [10], [10]) is None
    assert seam_score(landscape(), [], []) is None
    with pytest.raises(ValueError, match="larger map"):
        line_score(np.ones((1, 2), np.uint8), 1)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_profile_of_strips_is_the_rate_of_every_line(height: int, width: int, strip: int, seed: int) -> None:
    classes = np.random.default_rng(seed).integers(0, 4, (height, width)).astype(np.uint8)
    profile = TransitionProfile.of_strips((classes[top : top + strip] for top in range(0, height, strip)), classes.shape)
    for axis, side in enumerate(classes.shape):
        assert profile.pairs[axis][0] == 0
        for place in range(1, side):
            rate = transition_rate(classes, place, axis)
            pairs, changed = profile.pairs[axis][place], profile.changed[axis][place]
            assert np.isnan(rate) if pairs == 0 else changed / pairs == pytest.approx(rate)


def test_profile_of_a_file_is_that_of_its_pixels(tmp_path: Path) -> None:
    classes = landscape(700, 90)
    grid = Grid("EPSG:32633", 10.0, (500000.0, 5200000.0), 1024)
    georeference = {"crs": grid.crs, "transform": grid.geobox(PixelBox(0, 0, 700, 90)).affine}
    with open_plain(tmp_path / "map.tif", classes.shape, "uint8", 0, **georeference) as raster:
        raster.write(classes, 1)
    profile = TransitionProfile.of_file(tmp_path / "map.tif")
    expected = TransitionProfile.of_strips([classes], classes.shape)
    for axis in (0, 1):
        np.testing.assert_array_equal(profile.changed[axis], expected.changed[axis])
        np.testing.assert_array_equal(profile.pairs[axis], expected.pairs[axis])
