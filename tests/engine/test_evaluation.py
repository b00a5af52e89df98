"""Arms, baselines and the command: what is compared must be comparable, and an oracle must never pass as the model."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.evaluation import command, lessons, unet
from engine.evaluation.arms import ARMS, SpexPredictor, another_place, answered_classes, possible_arms
from engine.evaluation.assess import assess, difference_document, label_views, place_document, reliability_document, score_document
from engine.evaluation.baselines import Boosting, Thresholds, pixel_features, sampled_pixels
from engine.evaluation.command import UNET_STEPS, Evaluation, evaluate
from engine.evaluation.datasets import default_band_sets, find_chips, labelled, labelled_kinds, load_split, parse_bands, training_chips
from engine.evaluation.errors import InvalidEvaluation
from engine.evaluation.fitting import Fit, fit
from engine.evaluation.metrics import IGNORE
from engine.evaluation.offsets import best_offsets, mean_overlap, training_logits
from engine.evaluation.page import error_picture, natural_colour, palette
from engine.evaluation.predictors import Prediction, in_bands, padded, predict
from engine.evaluation.tables import figure
from engine.training.batches import BatchMaker
from engine.training.chip_folder import InvalidChips, LabelledChips
from engine.training.data import CLASSES, TRAINING_BANDS, Chips, load_chips
from engine.training.rededge import RedEdge

SPECTRA = {
    "vegetation": (0.03, 0.07, 0.04, 0.40, 0.20, 0.10),
    "building": (0.18, 0.19, 0.20, 0.24, 0.26, 0.24),
    "water": (0.06, 0.05, 0.03, 0.02, 0.01, 0.01),
    "bare": (0.12, 0.16, 0.22, 0.28, 0.38, 0.33),
}
SIZE = 32


def made_up(count: int = 4, seed: int = 0) -> LabelledChips:
    """Chips of four quarters, one of each class, with noise; the first two are one place."""
    generator = np.random.default_rng(seed)
    quarters = np.kron(np.array([[0, 1], [2, 3]], np.uint8), np.ones((SIZE // 2, SIZE // 2), np.uint8))
    labels = np.stack([np.rot90(quarters, k) for k in range(count)])
    spectra = np.array(list(SPECTRA.values()), np.float32)
    reflectance = spectra[labels].transpose(0, 3, 1, 2) * generator.normal(1, 0.03, (count, 6, SIZE, SIZE)).astype(np.float32)
    places = tuple(str(max(k - 1, 0)) for k in range(count))
    clean = labels.copy()
    clean[:, 0, 0] = IGNORE
    return LabelledChips(reflectance, TRAINING_BANDS, labels, CLASSES, places, tuple(map(str, range(count))), clean)


@pytest.fixture(scope="module")
def chips():
    return made_up()


def test_every_arm_says_where_its_attributes_come_from(untrained, chips):
    for arm, source in ARMS.items():
        predictor = SpexPredictor(untrained, TRAINING_BANDS, CLASSES, arm)
        prediction = predict(predictor, in_bands(chips, TRAINING_BANDS).at(np.array([0, 2])), "six", arm)
        assert (prediction.arm, prediction.source) == (arm, source) and prediction.guess.shape == (2, SIZE, SIZE)
        assert (prediction.guess < len(CLASSES)).all() and np.isfinite(prediction.probabilities).all()


def test_arms_differ_in_the_prompt_and_nowhere_else(untrained, chips):
    predictors = {arm: SpexPredictor(untrained, TRAINING_BANDS, CLASSES, arm) for arm in ARMS}
    plain, index = predictors["none"].planner, predictors["index"]._with_attributes([""] * len(predictors["index"].asked))
    assert torch.equal(plain.tokens, index.tokens) and torch.equal(plain.offsets, index.offsets) and plain.queries == index.queries
    texts = {arm: predictors[arm].attributes(chips, 0) for arm in ("index", "labels", "shuffled")}
    assert texts["index"] != texts["shuffled"] and all("Attributes" in text for text in texts["labels"][:4])


def test_the_oracle_tells_the_region_of_the_label_and_the_index_arm_never_sees_it(untrained, chips):
    swapped = LabelledChips(chips.reflectance, chips.bands, 3 - chips.labels, chips.classes, chips.places, chips.names, None)
    for arm, same in (("index", True), ("shuffled", True), ("labels", False)):
        predictor = SpexPredictor(untrained, TRAINING_BANDS, CLASSES, arm)
        assert (predictor.attributes(chips, 1) == predictor.attributes(swapped, 1)) == same


def test_queries_are_read_back_from_the_prompt(untrained):
    asked = answered_classes(untrained, untrained.planner(TRAINING_BANDS, CLASSES))
    assert set(CLASSES) <= set(asked)


def test_shuffled_attributes_come_from_another_place():
    places = ("a", "a", "b", "c")
    assert all(places[another_place(places, i, seed)] != places[i] for i in range(4) for seed in range(5))
    with pytest.raises(InvalidEvaluation, match="two places"):
        another_place(("a", "a"), 1, 0)


def test_chips_of_one_place_have_no_shuffled_arm_and_the_log_says_so(untrained, chips, caplog):
    """Their own attributes under the name of another arm would pass for a finding that words do not matter."""
    assert possible_arms(tuple(ARMS), chips.places) == tuple(ARMS) and not caplog.records
    assert possible_arms(tuple(ARMS), ("lake", "lake")) == ("none", "index", "labels") and "shuffled left out" in caplog.text
    with pytest.raises(InvalidEvaluation, match="leave the arm out"):
        SpexPredictor(untrained, TRAINING_BANDS, CLASSES, "shuffled").attributes(chips.at(np.array([0, 1])), 0)


def test_spex_without_offsets_has_the_logits_of_the_weights(untrained, chips, monkeypatch):
    monkeypatch.setitem(untrained.config.classes[0], "offset", -1.2)
    given = SpexPredictor(untrained, TRAINING_BANDS, CLASSES)
    plain = SpexPredictor(untrained, TRAINING_BANDS, CLASSES, offsets=False)
    assert (given.name, plain.name, plain.has_offsets) == ("spex", "spex, no offsets", True) and not plain.planner.offsets.any()
    name = untrained.config.classes[0]["name"]
    share = CLASSES.index(name)
    assert given(chips, 0)[share].mean() < plain(chips, 0)[share].mean()


def test_thresholds_find_clear_classes_and_leave_the_rest_to_none(chips):
    prediction = predict(Thresholds(CLASSES), chips, "six")
    water, vegetation = CLASSES.index("water"), CLASSES.index("vegetation")
    for k in (water, vegetation):
        assert (prediction.guess[chips.labels == k] == k).mean() > 0.95
    assert prediction.probabilities is None and (prediction.guess <= len(CLASSES)).all()
    grey = LabelledChips(np.full_like(chips.reflectance, 0.1), chips.bands, chips.labels, CLASSES, chips.places, chips.names)
    assert (predict(Thresholds(CLASSES), grey, "six").guess == len(CLASSES)).all()


def test_boosting_learns_classes_and_gives_probabilities(chips):
    train = made_up(4, seed=1)
    for bands in (TRAINING_BANDS, TRAINING_BANDS[:3]):
        prediction = predict(Boosting(in_bands(train, bands), pixels=800), in_bands(chips, bands), "x")
        assert (prediction.guess == chips.labels).mean() > 0.9
        np.testing.assert_allclose(prediction.probabilities.sum(1), 1.0, atol=1e-5)


def test_sampled_pixels_weigh_places_alike_keep_the_classes_frequencies_and_are_never_unlabelled(chips):
    """Chip 1 is one place with chip 0; classes balanced by hand would be a handicap in a score that counts pixels."""
    labels = np.full_like(chips.labels, CLASSES.index("vegetation"))
    labels[:, :, :4] = CLASSES.index("water")
    labels[2] = CLASSES.index("building")
    gappy = LabelledChips(chips.reflectance.copy(), chips.bands, labels, chips.classes, chips.places, chips.names)
    gappy.reflectance[:, :, :4] = np.nan
    gappy.reflectance[:, :, 0, 0] = 0.2
    features, sampled = sampled_pixels(gappy, 600, seed=0)
    counts = np.bincount(sampled, minlength=4)
    assert len(sampled) == 600 and np.isfinite(features).all() and counts[CLASSES.index("building")] == pytest.approx(200, abs=40)
    assert counts[CLASSES.index("bare")] == 0 and counts[CLASSES.index("vegetation")] == pytest.approx(350, abs=60)
    assert features.shape[1] == pixel_features(chips.reflectance[0], chips.bands).shape[1] == 6 + 6
    assert Boosting(gappy, pixels=200).model.class_weight is None


def test_the_unet_is_as_large_as_spex_small_and_takes_any_band_set_and_gaps():
    model = unet.UNet().eval()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.9e6, rel=0.05)
    for bands in (TRAINING_BANDS, TRAINING_BANDS[:3], ("blue", "green", "red", "nir08")):
        chip = torch.full((1, len(bands), 16, 24), 0.2)
        chip[..., :5] = torch.nan
        with torch.inference_mode():
            assert model(chip, bands).isfinite().all()


def test_kinds_of_vegetation_are_vegetation_to_the_unet():
    assert unet.roots_of(np.array([0, 1, 2, 3, 4, 7, IGNORE], np.uint8)).tolist() == [0, 1, 2, 3, 0, 0, IGNORE]


@pytest.fixture(scope="module")
def maker(chips, processor) -> BatchMaker:
    places, numbers = np.array([0, 0, 1, 2], np.int16), np.arange(4)
    roots = Chips(chips.reflectance, chips.labels, chips.clean, chips.clean, places, numbers)
    return BatchMaker(roots, processor, RedEdge(np.zeros((23, 3)), np.eye(3) * 0.01), batch=2, size=SIZE, seed=5)


def test_the_unet_sees_the_windows_that_spex_is_asked_about(maker):
    for step in range(4):
        windows, batch = unet.labelled_windows(maker)(step), maker(step)
        assert windows.bands == batch.bands and torch.equal(windows.reflectance.nan_to_num(-1), batch.reflectance.nan_to_num(-1))
        known = windows.labels != IGNORE
        assert torch.equal(known, batch.target != IGNORE)


def test_a_unet_learns_and_an_interrupted_fit_goes_on_to_the_same_weights(maker, tmp_path):
    whole = unet.train_unet(maker, Fit(8, 2e-3, seed=1, device="cpu"))
    torch.manual_seed(1)
    model, stopped = unet.UNet(), Fit(8, 2e-3, seed=1, device="cpu", state=tmp_path / "state.pt", save_seconds=0.0)

    def interrupted(step: int) -> unet.Windows:
        if step == 5:
            raise KeyboardInterrupt
        return unet.labelled_windows(maker)(step)

    with pytest.raises(KeyboardInterrupt):
        fit(model, interrupted, unet.unet_loss, stopped)
    again = unet.train_unet(maker, stopped)
    for (name, first), second in zip(whole.state_dict().items(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(first, second, msg=name)
    losses = [
        unet.unet_loss(unet.UNet().eval(), unet.labelled_windows(maker)(0)).item(),
        unet.unet_loss(whole.eval(), unet.labelled_windows(maker)(0)).item(),
    ]
    assert all(later < earlier for earlier, later in pairwise(losses))


def test_views_are_those_that_the_card_shows(chips):
    views = {view.name: view for view in label_views(chips, ("2",))}
    assert list(views) == ["raw", "clean", "clean, borders of one pixel left out", "clean without chip 2", "raw without chip 2"]
    assert views["clean without chip 2"].chips.tolist() == [0, 1, 3]
    assert (views["clean, borders of one pixel left out"].labels == IGNORE).sum() > (chips.clean == IGNORE).sum()


def scored(chips, guess, method="spex"):
    probabilities = np.eye(len(CLASSES), dtype=np.float32)[np.minimum(guess, 3)].transpose(0, 3, 1, 2)
    return assess(Prediction(method, "six", "none", "none", guess, probabilities), chips, label_views(chips)[0], resamples=200)


def test_documents_hold_what_was_counted(chips):
    worse = chips.labels.copy()
    worse[:, :4] = 0
    good, bad = scored(chips, chips.labels), scored(chips, worse, "unet")
    document = score_document(good, CLASSES)
    assert document["mean"]["iou"] == {"value": 1.0, "low": 1.0, "high": 1.0} and document["overall"]["ece"]["value"] == 0.0
    places = place_document(bad, chips)
    assert list(places) == ["0", "1", "2"] and places["0"]["chips"] == ["0", "1"] and places["0"]["pixels"] == 2 * SIZE * SIZE
    gap = difference_document(good, bad, CLASSES)["iou"]
    assert gap["mean"]["value"] > 0 and gap["mean"]["low"] > 0 and gap["mean"]["low"] <= gap["mean"]["value"] <= gap["mean"]["high"]
    assert sum(row["pixels"] for row in reliability_document(good, CLASSES)["winner"]) == chips.labels.size
    json.dumps([document, places, gap], allow_nan=False)


def test_band_sets_are_read_and_refused_by_name():
    assert parse_bands("rgb+nir", TRAINING_BANDS) == ("blue", "green", "red", "nir") and parse_bands("all", ("nir", "red")) == ("nir", "red")
    assert default_band_sets(TRAINING_BANDS) == ("six", "rgb+nir+swir16", "rgb+nir", "rgb")
    assert default_band_sets(("blue", "green", "red", "nir", "coastal")) == ("all", "rgb+nir", "rgb")
    with pytest.raises(ValueError, match="swir16"):
        parse_bands("rgb+swir16", ("blue", "green", "red"))


def test_pictures_tell_wrong_from_right_from_unknown():
    picture = error_picture(np.array([[0, 1, IGNORE]]), np.array([[0, 0, 0]]))
    assert len({tuple(colour) for colour in picture[0].tolist()}) == 3
    assert palette(["#102030"])[0].tolist() == [16, 32, 48]
    chip = np.full((3, 2, 2), np.nan, np.float32)
    chip[:, 0] = 0.1
    assert natural_colour(chip, ("blue", "green", "red")).shape == (2, 2, 3)


def test_padding_is_no_data():
    assert np.isnan(padded(np.zeros((2, 5, 16), np.float32), 16)[:, 5:]).all() and padded(np.zeros((2, 5, 16), np.float32), 16).shape == (2, 16, 16)


def test_figures_show_a_dash_where_there_is_none():
    assert figure({"value": None, "low": None, "high": None}, True) == "–"
    assert figure({"value": 0.1, "low": -0.05, "high": 0.2}, True, True) == "+0.100 (-0.050 to +0.200)"


def test_a_baseline_never_learns_from_what_it_is_scored_on(tmp_path):
    (tmp_path / "classes.yaml").write_text("bands: [blue]\nclasses: {1: water}\n")
    with pytest.raises(InvalidChips, match="--train"):
        training_chips(tmp_path, "val", None)
    for name in ("train", "mine"):
        (tmp_path / f"{name}.npz").touch()
    assert training_chips(tmp_path / "mine.npz", "val", None).name == "train.npz" and find_chips(tmp_path / "mine.npz", "val").name == "mine.npz"
    with pytest.raises(InvalidChips, match="--train"):
        training_chips(tmp_path / "train.npz", "val", None)


def test_what_cannot_be_evaluated_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InvalidChips, match=r"val\.npz"):
        evaluate(Evaluation("models/spex-small", tmp_path, out=tmp_path / "out"))
    with pytest.raises(InvalidEvaluation, match="oracle"):
        evaluate(Evaluation("models/spex-small", tmp_path, out=tmp_path / "out", arms=("oracle",)))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def never_predicts(monkeypatch):
    def early(*_):
        raise AssertionError("predicted before everything was checked")

    monkeypatch.setattr(command, "predict", early)


@pytest.fixture
def beside(few_real: Path, shared_data: Path, tmp_path) -> Path:
    """The folder of shared chips as docs/evaluation.md shows it, made of links."""
    chips = tmp_path / "data" / "chips"
    for folder, source in (("hls-worldcover", few_real), ("s2-unlabelled", shared_data / "chips" / "s2-unlabelled")):
        (chips / folder).mkdir(parents=True)
        for file in source.glob("*.npz"):
            (chips / folder / file.name).symlink_to(file)
    (tmp_path / "data" / "spectra").mkdir()
    (tmp_path / "data" / "spectra" / "lucas-s2-toa.npz").symlink_to(shared_data / "spectra" / "lucas-s2-toa.npz")
    return chips


MODEL = str(Path(__file__).parents[2] / "models" / "spex-small")


@pytest.mark.parametrize("missing", ["s2-unlabelled/bigearthnet.npz", "../spectra/lucas-s2-toa.npz", "hls-worldcover/train.npz"])
def test_what_the_unet_needs_is_looked_for_before_the_first_prediction(beside: Path, tmp_path, never_predicts, missing):
    (beside / missing).unlink()
    asked = Evaluation(MODEL, beside, out=tmp_path / "out", baselines=("boosting", "unet"), device="cpu")
    with pytest.raises(InvalidChips, match=r"train\.npz" if "train" in missing else Path(missing).name):
        evaluate(asked)
    assert not (tmp_path / "out").exists()


def test_files_that_hold_something_else_are_refused_before_the_first_prediction(beside: Path, tmp_path, never_predicts):
    spectra = beside.parent / "spectra" / "lucas-s2-toa.npz"
    spectra.unlink()
    np.savez(spectra, other=np.zeros(3))
    with pytest.raises(InvalidChips, match=r"lucas-s2-toa\.npz is not what"):
        evaluate(Evaluation(MODEL, beside, out=tmp_path / "out", baselines=("unet",), device="cpu"))


def test_training_chips_must_have_the_classes_and_the_bands_of_the_evaluated_ones(chips, few_real: Path, tmp_path):
    train, sets = few_real / "train.npz", {"six": TRAINING_BANDS}
    assert lessons.read_lessons(("thresholds",), train, chips, sets) == lessons.Lessons()
    other = LabelledChips(chips.reflectance, chips.bands, chips.labels, ("water", "trees", "road", "roof"), chips.places, chips.names)
    with pytest.raises(InvalidChips, match="evaluated ones water, trees"):
        lessons.read_lessons(("boosting",), train, other, sets)
    with pytest.raises(InvalidEvaluation, match="use boosting"):
        lessons.read_lessons(("unet",), train, other, sets)
    with pytest.raises(InvalidChips, match=r"no coastal, which band set 'all' has"):
        lessons.read_lessons(("boosting",), train, chips, {"all": (*TRAINING_BANDS, "coastal")})
    with pytest.raises(InvalidChips, match="windows of the shared chips"):
        lessons.read_lessons(("unet",), tmp_path, chips, sets)


def test_a_state_of_other_training_chips_another_seed_or_other_steps_is_not_gone_on_with(beside: Path, maker, tmp_path, monkeypatch):
    """The file's name says nothing: everyone's training chips are called train.npz."""
    fits: list[Fit] = []
    monkeypatch.setattr(unet, "train_unet", lambda _, how: fits.append(how))
    train = beside / "hls-worldcover" / "train.npz"

    def identity(seed=0, steps=UNET_STEPS):
        asked = Evaluation(MODEL, beside, out=tmp_path / "out", seed=seed, unet_steps=steps, device="cpu")
        command.fit_unet(asked, lessons.Windows(maker, lessons.training_key(train)))
        return fits[-1].identity

    first = identity()
    assert first == identity() and len({first, identity(seed=1), identity(steps=10)}) == 3
    with np.load(train) as data:
        fewer = {name: data[name][:4] for name in data}
    train.unlink()
    np.savez(train, **fewer)
    assert identity() != first


@pytest.fixture(scope="module")
def few_real(shared_data: Path, tmp_path_factory) -> Path:
    """A folder of chips like the shared one, with four of val's and eight of train's."""
    folder = tmp_path_factory.mktemp("chips")
    for split, kept in (("val", [0, 1, 2, 20]), ("train", range(0, 80, 10))):
        with np.load(shared_data / "chips" / "hls-worldcover" / f"{split}.npz") as data:
            np.savez(folder / f"{split}.npz", **{name: data[name][list(kept)] for name in data})
    return folder


def test_the_command_writes_scores_tables_and_a_page(few_real: Path, tmp_path):
    model = Path(__file__).parents[2] / "models" / "spex-small"
    out = tmp_path / "out"
    asked = Evaluation(
        str(model), few_real, out=out, bands=("six", "rgb"), arms=("index",), baselines=("thresholds", "boosting"), left_out=("1",), device="cpu"
    )
    names = load_split(few_real, "val").names
    document = evaluate(Evaluation(**{**vars(asked), "left_out": (names[1],)}))
    written = json.loads((out / "evaluation.json").read_text())
    assert written == json.loads(json.dumps(document)) and find_chips(few_real, "train").name == "train.npz"
    methods = [(row["method"], row["bands"], row["arm"]) for row in written["results"]]
    assert methods[:3] == [("spex", "six", "none"), ("spex", "six", "index"), ("spex", "rgb", "none")] and len(methods) == 8
    assert methods[3] == ("spex, no offsets", "six", "none")
    spex = written["results"][0]["views"]["clean"]
    assert spex["mean"]["iou"]["low"] <= spex["mean"]["iou"]["value"] and spex["overall"]["accuracy"]["value"] > 0.5
    assert {each["first"] for each in written["differences"]} == {"spex", "spex, attributes index"}
    assert f"clean without chip {names[1]}" in (out / "tables.md").read_text()
    page = (out / "index.html").read_text()
    assert page.count("<svg") == 3 and page.count('<div class="chip">') == 4 and "http" not in page.replace("http://www.w3.org", "")


def test_shared_chips_keep_their_places(shared_data: Path):
    chips = load_chips(shared_data / "chips" / "hls-worldcover" / "val.npz")
    found = labelled(chips)
    assert found.names == tuple(map(str, chips.chip_id)) and len(set(found.places)) == 31 and found.bands == TRAINING_BANDS


def test_offsets_undo_a_shift_between_classes():
    """Logits whose water is 0.8 too low: the offset that is chosen gives it back."""
    generator = np.random.default_rng(0)
    labels = np.tile(np.arange(4, dtype=np.uint8), 200)
    logits = (np.eye(4)[labels].T * 1.2 + generator.normal(0, 0.2, (4, 800))).astype(np.float32)
    logits[2] -= 0.8
    before = mean_overlap(logits, labels, (0.0,) * 4)
    offsets, after = best_offsets(logits, labels)
    assert offsets["water"] > 0 and after > before and offsets["vegetation"] == 0.0


def test_logits_of_training_windows_follow_the_probabilities(untrained, maker):
    logits, labels = training_logits(untrained, maker, 1)
    windows = unet.labelled_windows(maker)(0)
    with torch.inference_mode():
        shares = untrained.planner(windows.bands, CLASSES)(windows.reflectance).numpy()
    known = np.flatnonzero(windows.labels.numpy().ravel() != IGNORE)[::7]
    assert logits.shape == (4, len(labels)) == (4, len(known))
    assert (logits.argmax(0) == shares.argmax(1).ravel()[known]).all()


def test_kinds_of_vegetation_are_classes_of_their_own_where_asked(shared_data: Path):
    chips = load_chips(shared_data / "chips" / "hls-worldcover" / "val.npz")
    kinds = labelled_kinds(chips)
    assert kinds.classes == ("tree_cover", "cropland", "grass_or_shrub", "wetland", "building", "water", "bare")
    assert (kinds.labels == 5).sum() == (chips.clean == CLASSES.index("water")).sum()
    assert (kinds.labels <= 3).sum() <= (chips.clean == 0).sum() and (kinds.labels <= 2).any()
    with pytest.raises(InvalidEvaluation, match="four roots"):
        evaluate(Evaluation("models/spex-small", shared_data / "chips", kinds=True, baselines=("unet",)))
