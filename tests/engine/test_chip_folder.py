"""A user's own chips: read right, or refused with the file and the remedy named."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.transform import from_origin

from engine.errors import UnknownBand
from engine.training.chip_folder import IGNORE, InvalidChips, is_chip_folder, load_chip_folder

BANDS = ["blue", "green", "red", "nir"]
CLASSES = {1: "water", 7: "tree cover"}


def write(path: Path, array: np.ndarray, left: float = 500_000.0, crs: str = "EPSG:32633") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"driver": "GTiff", "height": array.shape[1], "width": array.shape[2], "count": len(array), "dtype": array.dtype.name}
    with rasterio.open(path, "w", **profile, crs=crs, transform=from_origin(left, 5_000_000.0, 10.0, 10.0)) as file:
        file.write(array)


def legend(folder: Path, **changes: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    given = {"bands": BANDS, "classes": CLASSES, "scale": 0.0001, "no_data": 0, **changes}
    (folder / "classes.yaml").write_text(yaml.safe_dump({k: v for k, v in given.items() if v is not None}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    legend(tmp_path, places={"a": "lake", "c": "lake"})
    for name, side in (("a", 8), ("b", 6), ("c", 8)):
        numbers = np.full((4, side, side), 1200, np.uint16)
        numbers[:, 0, 0] = 0
        codes = np.full((1, side, side), 1, np.uint8)
        codes[0, 1], codes[0, 2] = 7, 9
        write(tmp_path / "images" / f"{name}.tif", numbers)
        write(tmp_path / "labels" / f"{name}.tif", codes)
    return tmp_path


def test_pairs_become_reflectance_and_class_indices(folder):
    chips = load_chip_folder(folder)
    assert chips.reflectance.shape == (3, 4, 8, 8) and chips.reflectance.dtype == np.float32 and chips.bands == tuple(BANDS)
    assert chips.classes == ("water", "tree cover") and chips.places == ("lake", "b", "lake") and chips.names == ("a", "b", "c")
    np.testing.assert_allclose(chips.reflectance[0, :, 3], 0.12, rtol=1e-6)
    assert chips.labels[0, 0, 0] == IGNORE and np.isnan(chips.reflectance[0, :, 0, 0]).all()
    assert chips.labels[0, 1, 3] == 1 and chips.labels[0, 2, 3] == IGNORE and chips.labels[0, 5, 5] == 0


def test_smaller_chips_are_padded_with_what_counts_nowhere(folder):
    chips = load_chip_folder(folder)
    assert np.isnan(chips.reflectance[1, :, 6:]).all() and (chips.labels[1, :, 6:] == IGNORE).all()
    assert chips.at(np.array([1])).names == ("b",) and is_chip_folder(folder) and not is_chip_folder(folder / "images")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scale": None}, "scale"),
        ({"bands": ["blue", "green", "red"]}, "channels"),
        ({"classes": {300: "water"}}, "300"),
        ({"classes": {1: "water", 2: "water"}}, "name of its own"),
        ({"classes": {3: "wetland"}}, "no pixel"),
        ({"classes": None}, "bands and classes"),
        ({"colour": "red"}, "colour"),
        ({"scale": "small"}, "scale"),
    ],
)
def test_a_wrong_legend_is_refused_with_what_is_wrong(folder, changes, words):
    legend(folder, **changes)
    with pytest.raises(InvalidChips, match=words):
        load_chip_folder(folder)


def test_a_class_that_no_pixel_has_cannot_be_trained_on(folder):
    """It would get a name, a colour and a threshold, and never be seen; an evaluation may leave it empty."""
    legend(folder, classes={1: "water", 3: "wetland", 7: "tree cover", 8: "bog"})
    assert load_chip_folder(folder).classes == ("water", "wetland", "tree cover", "bog")
    with pytest.raises(InvalidChips, match=r"classes\.yaml: no pixel with data .* is of class 'wetland' \(code 3\), 'bog' \(code 8\), so"):
        load_chip_folder(folder, every_class=True)
    legend(folder)
    assert load_chip_folder(folder, every_class=True).classes == ("water", "tree cover")


def test_an_unknown_band_names_its_nearest(folder):
    legend(folder, bands=["blue", "green", "red", "nirr"])
    with pytest.raises(UnknownBand, match="nir"):
        load_chip_folder(folder)


def test_an_image_without_labels_is_named(folder):
    (folder / "labels" / "b.tif").unlink()
    with pytest.raises(InvalidChips, match=r"labels/b\.tif is missing"):
        load_chip_folder(folder)


def test_labels_of_another_size_or_place_are_refused(folder):
    write(folder / "labels" / "b.tif", np.ones((1, 5, 6), np.uint8))
    with pytest.raises(InvalidChips, match="5 x 6"):
        load_chip_folder(folder)
    write(folder / "labels" / "b.tif", np.ones((1, 6, 6), np.uint8), left=500_030.0)
    with pytest.raises(InvalidChips, match="different grids"):
        load_chip_folder(folder)


def test_labels_of_fractions_are_refused(folder):
    write(folder / "labels" / "b.tif", np.ones((1, 6, 6), np.float32))
    with pytest.raises(InvalidChips, match="whole numbers"):
        load_chip_folder(folder)


def test_nothing_is_refused(tmp_path):
    with pytest.raises(InvalidChips, match=r"classes\.yaml is missing"):
        load_chip_folder(tmp_path)
    legend(tmp_path)
    with pytest.raises(InvalidChips, match=r"no \.tif"):
        load_chip_folder(tmp_path)
