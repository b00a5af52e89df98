"""The Python call of the product, on the untrained design and on the shipped weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from engine import ClassQuery, InvalidReflectance, ModelNotFound, Spex, UnknownBand, UnknownClass
from engine.models import MODEL_FILES, find_model
from engine.processing import SpexProcessor
from engine.reflectance import FLOOR, check_reflectance
from engine.spex import MARGIN, WINDOW, UnusedBand
from engine.training.data import load_chips

RGBN = ("blue", "green", "red", "nir")
SIX = (*RGBN, "swir16", "swir22")
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


def passes(spex: Spex, monkeypatch, chips: np.ndarray) -> list[tuple[int, ...]]:
    """Return the shapes that the model saw while it segmented some chips."""
    seen, real = [], spex.model.forward
    monkeypatch.setattr(spex.model, "forward", lambda x, *rest: (seen.append(tuple(x.shape)), real(x, *rest))[1])
    spex.segment(chips, RGBN, FOUR)
    return seen


def test_a_strip_of_few_rows_costs_few_rows(untrained, monkeypatch):
    """Else 5 x 1000 pixels, a road or a flight line, take as long as 1000 x 1000."""
    seen = passes(untrained, monkeypatch, scene(5, 1000))
    assert len(seen) == 5 and all(height <= 5 + MARGIN + 16 and width == WINDOW for *_, height, width in seen)
    monkeypatch.undo()
    assert {shape[::-1][:2] for shape in seen} == {shape[2:] for shape in passes(untrained, monkeypatch, scene(5, 1000).swapaxes(2, 3))}


@pytest.mark.parametrize("rows", [5, 40])
def test_a_strip_is_mapped_as_well_as_it_is_in_whole_windows(shipped, shared_data: Path, monkeypatch, rows):
    chips = load_chips(shared_data / "chips" / "hls-worldcover" / "val.npz")
    strip = np.concatenate(list(chips.reflectance[:6]), -1)[None, :, :rows]
    truth = np.concatenate(list(chips.clean[:6]), -1)[:rows]
    scores = []
    for margin in (MARGIN, WINDOW):
        monkeypatch.setattr("engine.spex.MARGIN", margin)
        guess = shipped.segment(strip, SIX, FOUR).probabilities[0].argmax(0)
        scores.append((guess == truth)[truth != 255].mean())
    assert scores[0] > 0.85 and scores[0] > scores[1] - 0.01


@pytest.mark.parametrize("side", [1, 255, 320, 321, 640, 1000])
def test_the_windows_of_a_side_share_every_pixel_of_it_out(untrained, side):
    """Else a seam, or a probability above one."""
    total = np.zeros(side + 2 * WINDOW)
    for first, weights in untrained._windows_along(side).items():
        total[WINDOW + first : WINDOW + first + len(weights)] += weights
    np.testing.assert_allclose(total[WINDOW : WINDOW + side], 1, atol=1e-6)


def test_presence_of_a_large_chip_is_the_most_that_a_window_says(untrained, monkeypatch):
    """Else a lake at one end of a long image is not there, or nobody can tell."""
    said, real = [], untrained._pass
    monkeypatch.setattr(untrained, "_pass", lambda *given: (said.append(real(*given)), said[-1])[1])
    presence = untrained.segment(scene(8, 700), RGBN, FOUR).presence
    assert len(said) > 1
    np.testing.assert_array_equal(presence, np.max([each for _, each in said], 0))


@pytest.mark.parametrize("width", [56, 700])
def test_without_data_nothing_is_said_to_be_there(untrained, width):
    both = np.concatenate([scene(8, width), np.full((1, 4, 8, width), np.nan, np.float32)])
    presence = untrained.segment(both, RGBN, FOUR).presence
    assert np.isfinite(presence[0]).all() and np.isnan(presence[1]).all()


def test_same_input_same_bits(untrained):
    first, second = (untrained.segment(scene(), RGBN, FOUR).probabilities for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_a_chip_does_not_depend_on_its_neighbours_in_the_batch(untrained):
    both = np.concatenate([scene(), scene()[:, :, ::-1]])
    assert untrained.segment(both, RGBN, FOUR).probabilities[1].tobytes() == untrained.segment(both[1:], RGBN, FOUR).probabilities[0].tobytes()


@pytest.mark.parametrize(("device", "side", "together"), [("cpu", 64, 1), ("cuda", 640, 2), ("cuda:1", 625, 2), ("cuda", 64, 200), ("cuda", 1, 3200)])
def test_only_a_gpu_takes_chips_together_and_no_more_than_fit(untrained, monkeypatch, device, side, together):
    monkeypatch.setattr(untrained, "device", device)
    assert untrained._together(side, side) == together


@pytest.mark.parametrize("together", [2, 3, 100])
def test_chips_that_share_a_pass_come_back_in_their_order(untrained, monkeypatch, together):
    """What a GPU does, here on the CPU; the last chips are fewer than a pass takes."""
    five = np.concatenate([scene() * factor for factor in (1.0, 0.8, 0.6, 0.5, 0.4)])
    five[1, :, :7] = np.nan
    alone = untrained.segment(five, RGBN, FOUR)
    monkeypatch.setattr(untrained, "_together", lambda height, width: together)
    assert [shape[0] for shape in passes(untrained, monkeypatch, five)] == {2: [2, 2, 1], 3: [3, 2], 100: [5]}[together]
    shared = untrained.segment(five, RGBN, FOUR)
    np.testing.assert_allclose(shared.probabilities, alone.probabilities, atol=1e-4)
    np.testing.assert_allclose(shared.presence, alone.presence, atol=1e-4)


@pytest.mark.parametrize("width", [56, 700])
@pytest.mark.parametrize("holed", [[3], [0, 2]])
def test_a_pixel_without_data_in_one_band_is_no_data(untrained, width, holed):
    """Else the model answers about a pixel of which it was told that the band reflects 0.15."""
    some, whole = scene(8, width), scene(8, width)
    some[:, holed, 2:4, 5:9] = np.nan
    whole[:, :, 2:4, 5:9] = np.nan
    result, expected = (untrained.segment(each, RGBN, FOUR) for each in (some, whole))
    assert np.isnan(result.probabilities[..., 2:4, 5:9]).all() and np.isnan(result.probabilities).mean() == np.isnan(whole).mean()
    assert result.probabilities.tobytes() == expected.probabilities.tobytes()
    np.testing.assert_array_equal(result.reflectance, whole)


def test_a_hole_or_fill_in_a_band_that_is_not_used_costs_nothing(untrained):
    bands = (*RGBN, "nir09")
    five = np.concatenate([scene(), np.full((1, 1, 40, 56), -9999, np.float32)], 1)
    five[:, 4, :3] = np.nan
    with pytest.warns(UnusedBand, match="nir09"):
        assert np.isfinite(untrained.segment(five, bands, FOUR).probabilities).all()


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


def four_chips(height: int = 16, width: int = 24) -> np.ndarray:
    """Water and plants in six bands, (4, 6, H, W)."""
    return np.repeat(scene(height, width)[:, [0, 1, 2, 3, 3, 3]], 4, 0)


def changed(where: object, change: object) -> np.ndarray:
    """Return the four chips with `change`, a factor or a value to set, at `where`."""
    chips = four_chips()
    chips[where] = change(chips[where]) if callable(change) else change
    return chips


def digital(numbers: np.ndarray) -> np.ndarray:
    return numbers * np.float32(1e4)


@pytest.mark.parametrize(
    ("where", "change", "says"),
    [
        (np.s_[2], digital, ("chip 2, band blue", "digital numbers")),
        (np.s_[:, 4:], digital, ("chip 0, band swir16", "digital numbers")),
        (np.s_[1, 5], digital, ("chip 1, band swir22", "digital numbers")),
        (np.s_[1, 5, :5], digital, ("chip 1, band swir22", "120 pixels", "digital numbers")),
        (np.s_[3, :, :4], -9999, ("chip 3, band blue", "96 pixels", "lowest -9999", "fill value", "by NaN")),
        (np.s_[3, 3, 1, 1], -0.9999, ("chip 3, band nir", "1 pixels", "lowest -0.9999", "by NaN")),
        (np.s_[1, 3, :12], -9999, ("chip 1, band nir", "288 pixels", "lowest -9999", "by NaN")),
        (np.s_[0, :, 0, 0], np.float32(0 * 2.75e-5 - 0.2), ("chip 0, band blue", "lowest -0.2", "by NaN")),
        (np.s_[0, 1, 0, :3], 65535, ("chip 0, band green", "3 pixels", "highest 65535", "by NaN")),
        (np.s_[1], lambda chip: chip * 1e-4, ("chip 1:", "applied twice")),
        (np.s_[2], 0, ("chip 2:", "384 of 384 pixels", "zero in every band looks like a fill value", "by NaN")),
        (np.s_[2, :, :9], 0, ("chip 2:", "216 of 384 pixels", "zero in every band")),
    ],
)
def test_a_chip_or_band_that_cannot_be_reflectance_is_named(untrained, where, change, says):
    """One wrong chip of a batch, or the bands of another sensor, would be mapped as if they were seen."""
    with pytest.raises(InvalidReflectance) as caught:
        untrained.segment(changed(where, change), SIX, FOUR)
    assert all(each in str(caught.value) for each in says), str(caught.value)


@pytest.mark.parametrize(
    ("where", "change"),
    [
        (np.s_[:], lambda chips: chips),
        (np.s_[1], np.float32([0.018, 0.012, 0.006, 0.002, 0.001, 0.001])[:, None, None]),  # dark water
        (np.s_[1, 2:], 0),  # dark water, clipped at 0
        (np.s_[1, :, :6], 0),  # shadow, clipped at 0 in every band
        (np.s_[1, :, :6], -0.1),  # the lowest of harmonised numbers
        (np.s_[1, :, :6], 1.6),  # cloud and snow
        (np.s_[1, :, :, :23], np.nan),
        (np.s_[1], np.nan),
    ],
)
def test_dark_bright_clipped_and_missing_reflectance_is_taken(where, change):
    check_reflectance(changed(where, change), SIX)


@pytest.mark.parametrize("chips", ["train", "val"])
def test_every_real_chip_is_taken(shared_data: Path, chips):
    with np.load(shared_data / "chips" / "hls-worldcover" / f"{chips}.npz") as file:
        values = file["reflectance"] * np.float32(1e-4)
    check_reflectance(values, ("coastal", *SIX))
    check_reflectance(np.maximum(values - np.float32(0.01), 0), ("coastal", *SIX))  # corrected too far and clipped
    assert values.min() > FLOOR


def test_hiding_a_band_of_the_darkest_water_is_no_error(untrained):
    dark = np.full((1, 4, 16, 16), 1e-3, np.float32)
    dark[:, 3] = 0.01
    result = untrained.segment(dark, RGBN, FOUR)
    assert np.isfinite(untrained.occlude(result, 0)["nir"]).all()


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
    assert shipped.known_classes[:4] == FOUR and card["classes"] == list(shipped.known_classes)
