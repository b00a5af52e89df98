"""Folds over places: nothing of a place is on both sides, every fold has every class, and the claims fail where they should."""

import sys
from pathlib import Path

import numpy as np
import pytest

from engine.training.data import CLASSES, Chips

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from folds import FOLDS, deal_places, differences, failures, named_scores, pooled


@pytest.fixture
def many() -> Chips:
    """Sixty chips at thirty places; building and bare are rare."""
    generator = np.random.default_rng(0)
    labels = generator.choice(4, (60, 8, 8), p=[0.8, 0.05, 0.1, 0.05]).astype(np.uint8)
    place = np.repeat(np.arange(30), 2).astype(np.int16)
    return Chips(np.zeros((60, 6, 8, 8), np.float32), labels, labels, labels, place, np.arange(60))


def test_a_place_is_in_one_fold_and_every_fold_has_its_share_of_each_class(many):
    fold = deal_places(many, FOLDS)
    assert all(len(set(fold[many.place == place])) == 1 for place in set(many.place)) and set(fold) == set(range(FOLDS))
    share = np.array([[(many.clean[fold == f] == k).sum() for k in range(len(CLASSES))] for f in range(FOLDS)]) / [
        (many.clean == k).sum() for k in range(len(CLASSES))
    ]
    assert (share > 0.1).all() and (share < 0.35).all()


def test_the_real_places_are_dealt_so_that_every_fold_has_buildings(shared_data: Path):
    chips = pooled(shared_data)
    fold = deal_places(chips, FOLDS)
    assert len(chips) == 255 and len(set(chips.place.tolist())) == 90
    building = np.array([(chips.clean[fold == f] == CLASSES.index("building")).sum() for f in range(FOLDS)])
    assert building.min() > 0.1 * building.sum()


def confusion(right: float) -> np.ndarray:
    """Counts of twenty chips of which each class has a share right, the rest taken for the next class."""
    each = 100 * right * np.eye(4, 5) + 100 * (1 - right) * np.roll(np.eye(4, 5), 1, axis=1)
    return np.repeat(each[None], 20, 0)


def test_a_better_model_bears_the_claims_out_and_a_worse_one_does_not():
    good, bad, places = confusion(0.9), confusion(0.6), list(range(20))
    assert named_scores(good)["mean"] > named_scores(bad)["mean"] and named_scores(good)["accuracy"] == pytest.approx(0.9)
    assert failures(differences(good, bad, places)) == []
    assert len(failures(differences(bad, good, places))) == 3
    level = differences(good, good, places)
    assert level["mean"]["value"] == level["mean"]["low"] == 0.0 and len(failures(level)) == 1
