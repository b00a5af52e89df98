"""The benchmark that a published map of the demo must pass: a perfect map passes, and a map with a seam or with one class does not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import rasterio

from pipeline.demo import DemoPaths, write_demo

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoPaths:
    return write_demo(tmp_path_factory.mktemp("demo"), size=256)


@pytest.fixture
def accuracy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("accuracy", "published_map"):
        sys.modules.pop(name, None)
    return importlib.import_module("accuracy")


def published(accuracy: ModuleType, demo: DemoPaths, landcover: np.ndarray | None = None) -> object:
    with rasterio.open(demo.truth / "landcover.tif") as file, rasterio.open(demo.truth / "clear.tif") as clear:
        truth, scenes = file.read(1), clear.descriptions
        west = np.arange(truth.shape[1]) < truth.shape[1] * 0.6
        source = np.where(west, 1, 1 + next(i for i, name in enumerate(scenes) if "_33T" in name))
        return accuracy.PublishedMap(
            file.crs,
            file.transform,
            truth if landcover is None else landcover,
            np.ones_like(truth),
            np.broadcast_to(source, truth.shape),
            tuple(scenes),
            {"vegetation": 1, "building": 2, "water": 3, "bare": 4},
        )


def figures(accuracy: ModuleType, demo: DemoPaths, landcover: np.ndarray | None = None) -> dict:
    whole = published(accuracy, demo, landcover)
    found = {**accuracy.score(whole, demo.directory), "border": accuracy.border_figures(whole, demo.directory)}
    return {**found, "failures": accuracy.failures(found)}


def test_the_truth_itself_passes(accuracy: ModuleType, demo: DemoPaths) -> None:
    found = figures(accuracy, demo)
    assert found["failures"] == [] and found["overall_accuracy"] == 1 and set(found["iou"].values()) == {1.0}
    assert set(found["border"]["rates"]) == {"meridian", "seam"}


def test_a_map_of_one_class_fails_however_common_the_class(accuracy: ModuleType, demo: DemoPaths) -> None:
    found = figures(accuracy, demo, np.ones_like(published(accuracy, demo).landcover))
    assert found["overall_accuracy"] == pytest.approx(found["best_constant"]) and len(found["failures"]) >= 4


def test_a_seam_along_the_change_of_source_is_found(accuracy: ModuleType, demo: DemoPaths) -> None:
    truth = published(accuracy, demo).landcover
    seam = int(np.ceil(truth.shape[1] * 0.6))
    torn = truth.copy()
    torn[:, seam:] = np.where(torn[:, seam:] == 1, 4, 1)
    assert any(sentence.startswith("seam") for sentence in figures(accuracy, demo, torn)["failures"])


def test_pixels_that_were_not_mapped_count_as_wrong(accuracy: ModuleType, demo: DemoPaths) -> None:
    truth = published(accuracy, demo).landcover.copy()
    truth[: truth.shape[0] // 2] = 0
    found = figures(accuracy, demo, truth)
    assert found["mapped_share"] < 0.6 and found["overall_accuracy"] < 0.6


def test_real_scenes_are_scored_where_all_clear_dates_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("scenes", "published_map"):
        sys.modules.pop(name, None)
    scenes = importlib.import_module("scenes")
    # Columns: agreed water, agreed vegetation, dates that differ, cloud on one date, cloud on both, outside the region.
    days = [np.array([[6, 4, 4, 6, 9, 6]], np.uint8), np.array([[6, 4, 5, 8, 3, 6]], np.uint8)]
    landcover = np.array([[3, 1, 3, 1, 0, 0]], np.uint8)
    quality = np.array([[2, 2, 2, 1, 253, 251]], np.uint8)
    classes = {"vegetation": 1, "building": 2, "water": 3, "bare": 4}
    whole = scenes.PublishedMap(None, None, landcover, quality, landcover.astype(np.int32), (), classes)
    found = scenes.score(whole, days, 2)
    assert found["iou"] == {"vegetation": 1.0, "water": 1.0} and found["mapped_share"] == 1.0
    assert found["reference_pixels"] == {"vegetation": 1, "water": 1, "all": 2}
    assert scenes.score(whole, days, 1)["iou"]["water"] == 0.5
