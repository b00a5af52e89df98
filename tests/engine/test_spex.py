"""The Python call of the product, on the untrained design and on the shipped weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine import ClassQuery, InvalidReflectance, ModelNotFound, Spex, UnknownBand, UnknownClass
from engine.models import MODEL_FILES, find_model
from engine.processing import SpexProcessor
from engine.spex import UnusedBand
from engine.training.data import load_chips

RGBN = ("blue", "green", "red", "nir")
FOUR = ("vegetation", "building", "water", "bare")


@pytest.fixture(scope="module")
def shipped() -> Spex:
    return Spex.load("models/spex-small", device="cpu")


def scene(height: int = 40, width: int = 56) -> np.ndarray:
    """Water on the left, plants on the right, (1, 4, H, W)."""
    spectra = np.empty((1, 4, height, width), np.float32)
    spectra[..., : width // 2] = np.float32([0.06, 0.05, 0.03, 0.015])[:, None, None]
    spectra[..., width // 2 :] = np.float32([0.03, 0.06, 0.04, 0.40])[:, None, None]
    return spectra * np.random.default_rng(0).uniform(0.9, 1.1, spectra.shape).astype(np.float32)


def test_the_example_of_the_documentation_works(shipped):
    result = shipped.segment(scene(), bands=RGBN, classes=("vegetation", "water"))
    assert result.probabilities.shape == (1, 2, 40, 56) and result.probabilities.dtype == np.float32
    winner = result.probabilities[0].argmax(0)
    assert (winner[:, :24] == 1).mean() > 0.95 and (winner[:, 32:] == 0).mean() > 0.95
    assert result.explain(0).startswith("Vegetation covers") and "Water covers" in result.explain(0)


def test_the_shipped_weights_beat_a_floor_on_real_chips(shipped, shared_data: Path):
    """A few val chips with water and buildings; the full figures are in the model card."""
    chips = load_chips(shared_data / "chips" / "hls-worldcover" / "val.npz")
    order = np.argsort([-((chip == 1).sum() + (chip == 2).sum()) for chip in chips.clean])[:4]
    result = shipped.segment(chips.reflectance[order], ("blue", "green", "red", "nir", "swir16", "swir22"), FOUR)
    known = chips.clean[order] != 255
    assert (result.probabilities.argmax(1) == chips.clean[order])[known].mean() > 0.75


@pytest.mark.parametrize("shape", [(1, 1), (5, 400), (33, 17)])
def test_any_size_is_answered_in_that_size(untrained, shape):
    assert untrained.segment(scene(*shape)[..., : shape[0], : shape[1]], RGBN, ("water",)).probabilities.shape == (1, 1, *shape)


def test_large_chips_are_blended_without_holes(untrained):
    wide = np.tile(scene(48, 700), (1, 1, 1, 1))
    probabilities = untrained.segment(wide, RGBN, ("water", "bare")).probabilities
    assert np.isfinite(probabilities).all() and (probabilities.sum(1) <= 1 + 1e-5).all()


def test_same_input_same_bits(untrained):
    first, second = (untrained.segment(scene(), RGBN, FOUR).probabilities for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_a_chip_does_not_depend_on_its_neighbours_in_the_batch(untrained):
    both = np.concatenate([scene(), scene()[:, :, ::-1]])
    assert untrained.segment(both, RGBN, FOUR).probabilities[1].tobytes() == untrained.segment(both[1:], RGBN, FOUR).probabilities[0].tobytes()


def test_no_data_stays_no_data(untrained):
    gappy = scene()
    gappy[..., :10] = np.nan
    probabilities = untrained.segment(gappy, RGBN, FOUR).probabilities
    assert np.isnan(probabilities[..., :10]).all() and np.isfinite(probabilities[..., 10:]).all()
    nothing = untrained.segment(np.full_like(gappy, np.nan), RGBN, FOUR)
    assert np.isnan(nothing.probabilities).all() and "no pixels with data" in nothing.explain(0)


def test_numbers_under_no_data_of_other_pixels_do_not_spread(shipped):
    """A window half without data must give nearly the same far from the edge as a whole one."""
    whole = shipped.segment(scene(64, 128), RGBN, FOUR).probabilities
    half = scene(64, 128)
    half[..., 96:] = np.nan
    change = np.abs(shipped.segment(half, RGBN, FOUR).probabilities[..., :64] - whole[..., :64])
    assert change.mean() < 0.05


@pytest.mark.parametrize(
    ("array", "bands", "says"),
    [
        (scene()[0], RGBN, "(N, C, H, W)"),
        (scene()[:, :3], RGBN, "3 channels but 4 bands"),
        (scene()[..., :0], RGBN, "empty"),
        (scene() * 1e4, RGBN, "digital numbers"),
        (np.where(scene() > 0.3, np.inf, scene()), RGBN, "infinite"),
        (scene().astype(complex), RGBN, "floating point"),
    ],
)
def test_what_cannot_be_reflectance_is_refused(untrained, array, bands, says):
    with pytest.raises(InvalidReflectance) as caught:
        untrained.segment(array, bands, FOUR)
    assert says in str(caught.value)


@pytest.mark.parametrize(("bands", "says"), [(("blue", "green", "red", "nearinfrared"), "nir"), (("green", "red", "nir", "swir16"), "missing: blue")])
def test_a_wrong_band_set_is_refused(untrained, bands, says):
    with pytest.raises(UnknownBand, match=says):
        untrained.segment(scene(), bands, FOUR)


def test_a_band_that_the_weights_do_not_use_is_left_out_with_a_warning(untrained):
    with pytest.warns(UnusedBand, match="nir09"):
        result = untrained.segment(scene(), ("blue", "green", "red", "nir09"), ("water",))
    assert result.bands == ("blue", "green", "red")
    with pytest.raises(UnknownBand, match="nir09"):
        untrained.planner((*RGBN, "nir09"), FOUR)


def test_the_planner_gives_what_segment_gives(untrained):
    image = scene(48, 64)
    planner = untrained.planner(RGBN, FOUR)
    with torch.inference_mode():
        planned = planner(torch.from_numpy(image)).numpy()
    np.testing.assert_array_equal(planned, untrained.segment(image, RGBN, FOUR).probabilities)


def test_words_become_complete_queries(untrained):
    water, lakes = untrained.resolve(["Open water", ClassQuery("fields", title="Open fields", instruction="Show the bare soil.", color="#AABBCC")])
    assert (water.name, water.target, water.title, water.color) == ("water", "water", "Water", "#2b83ba")
    assert water.instruction == "Segment the water." and 0 < water.threshold < 1
    assert (lakes.name, lakes.target, lakes.title, lakes.color) == ("fields", "bare", "Open fields", "#aabbcc")


@pytest.mark.parametrize(
    ("classes", "says"),
    [
        (["watter"], "nearest: water"),
        (["water", "open water"], "ask for it once"),
        ([], "no class"),
        ([ClassQuery("water", color="blue")], "#rrggbb"),
    ],
)
def test_classes_that_cannot_be_mapped_are_refused(untrained, classes, says):
    with pytest.raises(UnknownClass) as caught:
        untrained.resolve(classes)
    assert says in str(caught.value) and isinstance(caught.value, ValueError)


def test_a_model_that_is_not_there_is_named(tmp_path):
    for wrong in ("models/spex-smal", tmp_path / "nothing", "file:///nowhere/model"):
        with pytest.raises(ModelNotFound, match=r"spex-smal|nothing|nowhere"):
            Spex.load(wrong)
    (tmp_path / "half").mkdir()
    with pytest.raises(ModelNotFound, match=r"config\.json"):
        Spex.load(tmp_path / "half")


def test_a_shipped_model_answers_to_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_model("models/spex-small") == find_model("spex-small")
    assert all((find_model("spex-small") / name).is_file() for name in MODEL_FILES)


def test_a_saved_model_maps_the_same_from_a_url_and_has_the_same_fingerprint(untrained, tmp_path):
    untrained.model.save_pretrained(tmp_path)
    untrained.processor.save_pretrained(tmp_path)
    local, remote = Spex.load(tmp_path, "cpu"), Spex.load(f"file://{tmp_path}", "cpu")
    assert local.fingerprint == remote.fingerprint and len(local.fingerprint) == 64
    first, second = (spex.segment(scene(), RGBN, FOUR).probabilities for spex in (untrained, remote))
    assert first.tobytes() == second.tobytes()


def test_the_fingerprint_changes_with_the_lexicon(untrained, tmp_path):
    untrained.model.save_pretrained(tmp_path)
    untrained.processor.save_pretrained(tmp_path)
    before = Spex.load(tmp_path, "cpu").fingerprint
    lexicon = tmp_path / "lexicon.json"
    lexicon.write_text(lexicon.read_text(encoding="utf-8").replace("open water", "wide water"), encoding="utf-8")
    assert Spex.load(tmp_path, "cpu").fingerprint != before
    assert isinstance(SpexProcessor.from_pretrained(tmp_path), SpexProcessor)


def test_the_model_card_has_what_a_catalog_needs(shipped):
    card = shipped.model_card
    assert card["architecture"] == "SPEX" and card["total_parameters"] > 1e6 and len(card["fingerprint"]) == 64
    assert [band["name"] for band in card["bands"]] == list(shipped.bands) and set(shipped.required_bands) <= set(shipped.bands)
    assert shipped.known_classes == FOUR
