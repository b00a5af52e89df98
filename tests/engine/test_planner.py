"""What holds of classes asked together, whatever the weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import ClassQuery
from engine.errors import UnknownClass
from engine.planner import probabilities

RGBN = ("blue", "green", "red", "nir")
KINDS = ("tree_cover", "cropland", "grass_or_shrub", "wetland")


@pytest.fixture(scope="module")
def chip() -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 0.4, (1, 4, 32, 48)).astype(np.float32)


def shares(spex, chip, *classes) -> np.ndarray:
    return spex.segment(chip, RGBN, classes).probabilities[0]


@given(st.lists(st.floats(-20, 20), min_size=5, max_size=5))
def test_children_share_what_their_parent_got(values):
    """Queries 0 and 1 are roots, 2 and 3 kinds of 0, 4 of 1."""
    planes = probabilities(torch.tensor(values).reshape(1, 5, 1, 1), (None, None, 0, 0, 1)).flatten()
    assert planes[2] + planes[3] == pytest.approx(float(planes[0]), abs=1e-6) and planes[4] == pytest.approx(float(planes[1]), abs=1e-6)
    assert float(planes[0] + planes[1]) <= 1 + 1e-6


def test_a_class_has_the_same_probability_whatever_else_is_asked(untrained, chip):
    together = shares(untrained, chip, "water", "vegetation", "bare", "building")
    np.testing.assert_array_equal(shares(untrained, chip, "water")[0], together[0])
    np.testing.assert_allclose(shares(untrained, chip, "trees", "water")[1], together[0], atol=1e-6)


def test_kinds_add_up_to_their_parent_and_are_never_more_probable(untrained, chip):
    vegetation, *kinds = shares(untrained, chip, "vegetation", *KINDS)
    np.testing.assert_allclose(np.sum(kinds, 0), vegetation, atol=1e-6)
    assert all((kind <= vegetation).all() for kind in kinds)


def test_a_union_has_the_sum_of_its_parts(untrained, chip):
    union, trees, water = shares(untrained, chip, "trees or water", "trees", "water")
    np.testing.assert_allclose(union, trees + water, atol=1e-6)
    (query,) = untrained.resolve(["trees or water"])
    assert (query.name, query.parts, query.title) == ("tree_cover_or_water", ("tree_cover", "water"), "Tree cover or water")
    assert query.instruction == "Segment the tree cover or water."


def test_a_map_refuses_classes_that_overlap(untrained):
    for overlapping in (["vegetation", "trees"], ["trees or water", "water"]):
        with pytest.raises(UnknownClass, match="overlap"):
            untrained.resolve(overlapping, disjoint=True)
    assert len(untrained.resolve(["trees", "cropland", "water"], disjoint=True)) == 3


def test_an_own_name_takes_its_class_from_the_instruction(untrained):
    (query,) = untrained.resolve([ClassQuery("woods_and_lakes", instruction="Map all forests and open water.")])
    assert (query.name, query.parts) == ("woods_and_lakes", ("tree_cover", "water"))
