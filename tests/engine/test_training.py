"""Training must be reproducible, resumable and fed with what its documentation says."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.training.augment import SENSORS, TEN, Sample, as_sensor, draw_sample, other_light, resample, turn, with_gaps
from engine.training.batches import BatchMaker, described, kind_positions, positions
from engine.training.data import CLASSES, IGNORE, KINDS, LEAVES, ROOT_OF, TRAINING_BANDS, Chips, clean_labels, load_chips, sampling_weights
from engine.training.losses import kinds_loss, mask_losses, spex_loss
from engine.training.rededge import RED_EDGE, RedEdge, fit_red_edge
from engine.training.schedule import learning_rate, new_optimizer
from engine.training.survey import Survey, load_survey

NO_RESIDUAL = RedEdge(np.zeros((23, 3)), np.eye(3) * 0.01)


@pytest.fixture(scope="module")
def few() -> Chips:
    """Four made-up chips: water on the left, land on the right."""
    generator = np.random.default_rng(0)
    labels = np.zeros((4, 64, 64), np.uint8)
    labels[:, :, :32] = CLASSES.index("water")
    labels[0, :4] = IGNORE
    spectra = np.where(labels[:, None] == 2, np.float32(0.03), np.float32(0.2)) * generator.uniform(0.9, 1.1, (4, 6, 64, 64)).astype(np.float32)
    return Chips(spectra, labels, labels.copy(), np.where(labels == 0, np.uint8(4), labels), np.array([0, 0, 0, 1], np.int16), np.arange(4))


def test_floods_called_cropland_and_dry_water_are_ignored():
    labels = np.array([[[0, 0, 2, 2]]], np.uint8)
    spectra = {
        "coastal": 0,
        "blue": 0,
        "green": [0.1, 0.1, 0.1, 0.05],
        "red": 0.05,
        "nir": [0.05, 0.3, 0.03, 0.4],
        "swir16": [0.02, 0.2, 0.02, 0.3],
        "swir22": 0,
    }
    reflectance = np.stack([np.broadcast_to(np.float32(v), 4) for v in spectra.values()])[None, :, None]
    fmask = np.array([[[True, False, True, False]]])
    assert clean_labels(labels, reflectance, fmask).ravel().tolist() == [IGNORE, 0, 2, IGNORE]


def test_a_place_with_many_chips_does_not_drown_the_others(few):
    weights = sampling_weights(few)
    assert weights.sum() == pytest.approx(1) and weights[3] > weights[1]


def test_the_same_seed_and_step_give_the_same_batch(few, processor):
    maker = BatchMaker(few, processor, NO_RESIDUAL, batch=2, size=32, seed=3)
    first, again, other = maker(7), maker(7), maker(8)
    assert torch.equal(first.reflectance.nan_to_num(), again.reflectance.nan_to_num()) and torch.equal(first.prompts.tokens, again.prompts.tokens)
    assert first.bands != other.bands or not torch.equal(first.reflectance.nan_to_num(), other.reflectance.nan_to_num())


def test_a_class_that_is_not_asked_is_other():
    labels = np.array([[0, 1, 2, 3, IGNORE]], np.uint8)
    assert positions(labels, np.array([2, 0])).tolist() == [[1, 2, 0, 2, IGNORE]]


def test_every_detailed_label_has_its_root():
    assert [CLASSES[ROOT_OF[leaf]] for leaf in range(len(LEAVES))] == [*CLASSES, *["vegetation"] * len(KINDS)] and ROOT_OF[IGNORE] == IGNORE


def test_kinds_are_asked_of_pixels_whose_kind_is_known():
    labels = np.array([[0, 2, 4, 5, 7, IGNORE]], np.uint8)
    assert kind_positions(labels, np.array([1, 3, 0, 2])).tolist() == [[IGNORE, IGNORE, 2, 0, 1, IGNORE]]


def test_a_perfect_kind_has_no_loss_and_a_pixel_of_no_kind_none():
    order, target = torch.tensor([[2, 0]]), torch.tensor([[[0, 1, IGNORE]]])
    right = torch.tensor([[[[9.0, -9.0, 3.0]], [[-9.0, 9.0, -3.0]]]])
    assert kinds_loss(right, target, order) < 1e-6 < 5 < kinds_loss(-right, target, order)


def test_descriptions_tell_what_the_labels_show_without_a_number():
    labels = np.full((64, 64), LEAVES.index("cropland"), np.uint8)
    labels[:16, :16] = LEAVES.index("tree_cover")
    assert described("tree_cover", labels, "tree cover") == " It covers [share] of the image. The largest region is huge, top-left."
    assert "huge" in described("vegetation", labels, "vegetation") and described("wetland", labels, "wetland") == " There is no wetland."


@pytest.mark.parametrize("scale", [0.25, 0.5, 1.0, 2.0])
def test_scales_keep_the_window_and_the_labels(few, scale):
    piece = resample(few.reflectance[1], few.labels[1], scale, 16, np.random.default_rng(0))
    assert piece.reflectance.shape == (6, 16, 16) and piece.labels.shape == (16, 16)
    assert set(np.unique(piece.labels)) <= {0, 2}


def test_labels_turn_with_their_pixels(few):
    for seed in range(8):
        turned = turn(Sample(few.reflectance[1], few.labels[1]), np.random.default_rng(seed))
        assert ((turned.reflectance.mean(0) < 0.1) == (turned.labels == 2)).all()


def test_every_sensor_gets_its_bands_without_gaps(few):
    generator = np.random.default_rng(0)
    sample = draw_sample(few, sampling_weights(few), few.clean, 32, generator)
    for _, bands in SENSORS:
        lit = other_light(as_sensor(sample, bands, NO_RESIDUAL, generator), bands, generator)
        assert lit.reflectance.shape == (len(bands), 32, 32) and lit.reflectance.dtype == np.float32 and np.isfinite(lit.reflectance).all()
    assert sum(chance for chance, _ in SENSORS) == pytest.approx(1)


def test_gaps_have_neither_numbers_nor_labels(few):
    for seed in range(6):
        gappy = with_gaps(Sample(few.reflectance[1], few.labels[1]), np.random.default_rng(seed), chance=1.0)
        gone = np.isnan(gappy.reflectance).all(0)
        assert (gappy.labels[gone] == IGNORE).all() and np.isfinite(gappy.reflectance[:, ~gone]).all()


def test_simulated_red_edge_lies_close_to_the_real_one(shared_data: Path):
    """On real twelve-band chips the simulated bands must explain the real ones; the model would learn nonsense otherwise."""
    path = shared_data / "chips" / "s2-unlabelled" / "bigearthnet.npz"
    red_edge = fit_red_edge(path, shared_data / "spectra" / "lucas-s2-toa.npz")
    real = np.load(path)["digital_numbers"][:5] * np.float32(1e-4)
    generator = np.random.default_rng(0)
    for chip in real:
        simulated = red_edge.simulate(chip[[1, 2, 3, 7, 10, 11]], generator)
        assert np.abs(simulated - chip[[4, 5, 6]]).mean() < 0.02


def test_real_chips_load_with_classes_and_places(shared_data: Path):
    chips = load_chips(shared_data / "chips" / "hls-worldcover" / "val.npz")
    assert chips.reflectance.shape == (41, len(TRAINING_BANDS), 128, 128) and set(np.unique(chips.labels)) <= {0, 1, 2, 3, IGNORE}
    assert (chips.clean == IGNORE).sum() > (chips.labels == IGNORE).sum()


def test_a_perfect_mask_has_no_loss_and_ignored_pixels_none():
    target = torch.tensor([[[0, 1, 2, IGNORE]]])
    logits = torch.full((1, 2, 1, 4), -30.0)
    logits[0, 0, 0, 0] = logits[0, 1, 0, 1] = logits[0, :, 0, 3] = 30.0
    losses = mask_losses(logits, target, torch.ones(1, 1, 4))
    assert all(value < 0.2 for value in losses.values()) and losses["classes"] < 1e-6


def test_the_rate_warms_up_and_ends_at_nothing():
    rates = [learning_rate(step, 1000, 1.0) for step in range(1001)]
    assert max(rates) == pytest.approx(1.0) and rates[0] < 0.02 and rates[-1] < 1e-5


def test_a_few_steps_of_training_lower_the_loss(few, processor, model):
    learner = copy.deepcopy(model).requires_grad_(True).train()
    maker = BatchMaker(few, processor, NO_RESIDUAL, batch=2, size=32, seed=0)
    optimizer, losses = new_optimizer(learner, 3e-3), []
    batch = next(each for each in map(maker, range(99)) if each.roots == 2)
    for _ in range(15):
        loss = spex_loss(learner(batch.reflectance, batch.prompts, batch.bands), batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_ten_bands_of_sentinel_2_are_trained():
    assert set(RED_EDGE) < set(TEN) and any(bands == TEN for _, bands in SENSORS)


def test_surveyed_patches_bring_their_label_and_their_spectrum(few):
    spectra = tuple(np.full((3, 6), value, np.float32) for value in (0.4, 0.5, 0.6, 0.7, 0.8))
    painted = Survey(spectra).paint(Sample(few.reflectance[1], few.labels[1]), np.random.default_rng(4), chance=1.0)
    changed = np.abs(painted.reflectance - few.reflectance[1]).max(0) > 1e-6
    assert 0.005 < changed.mean() < 0.6 and (painted.labels[~changed] == few.labels[1][~changed]).all()
    for index, level in enumerate((0.4, 0.5, 0.6, 0.7)):
        mine = changed & (painted.labels == index) & (painted.reflectance.mean(0) > 0.33)
        assert not mine.any() or abs(np.median(painted.reflectance[:, mine]) - level) < 0.1


def test_the_survey_has_plausible_surface_spectra(shared_data: Path):
    """Path radiance must be gone: water is dark in the infrared, plants are not bright in blue, and snow is not bare ground."""
    survey = load_survey(shared_data / "spectra" / "lucas-s2-toa.npz")
    vegetation, building, water, bare, _ = (np.median(each, 0) for each in survey.spectra)
    assert water[4] < 0.03 and vegetation[0] < 0.06 and vegetation[3] > 3 * vegetation[2]
    assert bare[4] > bare[1] and len(survey.spectra[3]) > 300 and building[3] < vegetation[3]
