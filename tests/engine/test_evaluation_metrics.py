"""Scores must be those that the literature means; each is compared with a case counted by hand or with scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn import metrics as sklearn_metrics

from engine.evaluation.bootstrap import interval, place_weights
from engine.evaluation.metrics import IGNORE, class_boundary, count, disc, scores, without_borders

K = 3
chips = st.tuples(st.integers(1, 3), st.integers(2, 9), st.integers(2, 9))


def label_maps(highest):
    return chips.flatmap(
        lambda shape: st.tuples(*(arrays.arrays(np.uint8, shape, elements=st.sampled_from([*range(highest), extra])) for extra in (IGNORE, 0)))
    )


def scored(labels, guess, probabilities=None, classes=K):
    return scores(count(labels, guess, probabilities, classes).total())


@given(label_maps(K))
@settings(max_examples=80, deadline=None)
def test_overlap_scores_equal_those_of_scikit_learn(pair):
    labels, guess = pair
    known = labels != IGNORE
    if not known.any():
        assert np.isnan(scored(labels, guess)["mean_iou"])
        return
    found, truth, told = scored(labels, guess), labels[known], guess[known]
    there = [k for k in range(K) if (truth == k).any() or (told == k).any()]
    for name, function in (
        ("iou", sklearn_metrics.jaccard_score),
        ("f1", sklearn_metrics.f1_score),
        ("precision", sklearn_metrics.precision_score),
        ("recall", sklearn_metrics.recall_score),
    ):
        expected = function(truth, told, labels=there, average=None, zero_division=0)
        np.testing.assert_allclose(np.nan_to_num(found[name][there]), expected)
    assert found["overall_accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, told))
    assert all(np.isnan(found["iou"][k]) for k in range(K) if k not in there)


def test_none_of_the_classes_is_a_miss_of_the_label_and_a_hit_of_nothing():
    labels, guess = np.array([[[0, 0, 1, 1]]], np.uint8), np.array([[[0, K, 1, 1]]], np.uint8)
    found = scored(labels, guess)
    assert found["recall"][0] == 0.5 and found["precision"][0] == 1.0 and found["overall_accuracy"] == 0.75


def test_a_class_that_is_predicted_but_not_there_counts_zero():
    found = scored(np.zeros((1, 2, 2), np.uint8), np.array([[[0, 1], [0, 0]]], np.uint8))
    assert found["iou"].tolist()[:2] == [0.75, 0.0] and np.isnan(found["iou"][2]) and found["mean_iou"] == 0.375


def square(top, left, side=4, size=12):
    labels = np.zeros((1, size, size), np.uint8)
    labels[0, top : top + side, left : left + side] = 1
    return labels


def test_boundary_of_a_square_counted_by_hand():
    known = np.ones((1, 12, 12), bool)
    assert class_boundary(square(3, 3) == 1, known).sum() == 12
    assert class_boundary(square(3, 3) == 0, known).sum() == 16
    assert disc(1).sum() == 5 and disc(2).sum() == 13


@pytest.mark.parametrize(("shift", "near", "far"), [(0, 1.0, 1.0), (1, 1.0, 1.0), (2, 8 / 12, 1.0), (3, 6 / 12, 8 / 12)])
def test_boundary_f1_of_a_shifted_square_counted_by_hand(shift, near, far):
    """A ring of 4 x 4 has 12 pixels. Shifted by 2, three pixels of its top, three of its bottom and two of one side lie within one pixel."""
    found = scored(square(3, 3), square(3, 3 + shift), classes=2)
    assert found["boundary_f1_1px"][1] == pytest.approx(near) and found["boundary_f1_2px"][1] == pytest.approx(far)


def test_an_unknown_neighbour_makes_no_boundary():
    labels = square(3, 3)
    labels[labels == 0] = IGNORE
    assert class_boundary(labels == 1, labels != IGNORE).sum() == 0


def test_one_pixel_of_tolerance_forgives_a_shift_of_one_and_no_more():
    truth = square(3, 3)
    assert scored(truth, square(4, 4), classes=2)["iou_1px"][1] == 1.0
    assert scored(truth, square(4, 4), classes=2)["iou"][1] == pytest.approx(9 / 23)
    shifted = scored(truth, square(3, 5), classes=2)["iou_1px"][1]
    assert shifted == pytest.approx((12 / 16) / (2 - 12 / 16))


@given(label_maps(2))
@settings(max_examples=60, deadline=None)
def test_tolerance_never_lowers_a_score(pair):
    found = scored(*pair, classes=2)
    there = np.isfinite(found["iou"])
    assert (found["iou_1px"][there] >= found["iou"][there] - 1e-12).all()
    edges = np.isfinite(found["boundary_f1_1px"])
    assert (found["boundary_f1_2px"][edges] >= found["boundary_f1_1px"][edges] - 1e-12).all()


def test_calibration_error_counted_by_hand():
    """Four pixels said with 0.9, three right; two said with 0.6, none right: (4 x 0.15 + 2 x 0.6) / 6."""
    winner = np.array([0.9, 0.9, 0.9, 0.9, 0.6, 0.6], np.float32)
    probabilities = np.stack([winner, 1 - winner])[None, :, None]
    labels, guess = np.array([[[0, 0, 0, 1, 1, 1]]], np.uint8), np.zeros((1, 1, 6), np.uint8)
    found = scored(labels, guess, probabilities, classes=2)
    assert found["overall_ece"] == pytest.approx((4 * 0.15 + 2 * 0.6) / 6, abs=1e-6)
    assert found["ece"][0] == pytest.approx(found["overall_ece"]) and found["ece"][1] == pytest.approx(found["overall_ece"])


def test_probabilities_that_are_drawn_from_are_calibrated():
    generator = np.random.default_rng(0)
    p = generator.random((1, 400, 400)).astype(np.float32)
    labels = (generator.random(p.shape) < p).astype(np.uint8)
    found = scored(labels, (p > 0.5).astype(np.uint8), np.stack([1 - p, p], 1), classes=2)
    assert found["overall_ece"] < 0.01 and scored(labels, (p > 0.5).astype(np.uint8), np.stack([1 - p**3, p**3], 1), classes=2)["ece"][1] > 0.1


def test_a_method_without_probabilities_has_no_calibration_error():
    assert np.isnan(scored(square(3, 3), square(3, 3), classes=2)["overall_ece"])


def test_counts_add_up_and_resamples_weigh_whole_places():
    generator = np.random.default_rng(1)
    labels, guess = generator.integers(0, K, (5, 8, 8)).astype(np.uint8), generator.integers(0, K, (5, 8, 8)).astype(np.uint8)
    counts = count(labels, guess, None, K)
    weights = place_weights(["a", "a", "b", "c", "c"], 50, seed=3)
    assert (weights[:, 0] == weights[:, 1]).all() and (weights[:, [0, 2, 3]].sum(1) == 3).all()
    resampled = scores(counts.summed(weights))
    chosen = np.repeat(np.arange(5), weights[7].astype(int))
    np.testing.assert_allclose(resampled["iou"][7], scored(labels[chosen], guess[chosen])["iou"])
    np.testing.assert_allclose(resampled["mean_boundary_f1_2px"][7], scored(labels[chosen], guess[chosen])["mean_boundary_f1_2px"])


def test_the_interval_of_a_mean_covers_it_about_as_often_as_it_says():
    generator, covered = np.random.default_rng(2), 0
    for trial in range(200):
        values = generator.normal(0.0, 1.0, 40)
        low, high = interval(place_weights(np.arange(40), 300, seed=trial) @ values / 40)
        covered += bool(low <= 0.0 <= high)
    assert 165 <= covered <= 192


def test_an_interval_of_nothing_is_nothing():
    low, high = interval(np.array([[np.nan, 1.0], [np.nan, 3.0]]), level=1.0)
    assert np.isnan(low[0]) and np.isnan(high[0]) and (low[1], high[1]) == (1.0, 3.0)


def test_borders_of_one_pixel_are_left_out():
    left = without_borders(square(4, 4))
    assert (left == 1).sum() == 4 and (left == 0).sum() == 144 - 36
