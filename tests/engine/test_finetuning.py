"""A user's chips must teach a new class, name what is wrong with them, and leave the old classes as they were."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from training_data import SALT, SPECTRA, landscape, reflectance_of, training_spec, write_user_chips

from engine import Spex
from engine.class_sets import answering_set, known_to_set
from engine.lexicon import DEFAULT_TERMS, Lexicon, Term
from engine.planner import probabilities
from engine.runtimes.graph import Precision, Windows, export_graph
from engine.runtimes.openvino import OpenVinoPlanner
from engine.training.checkpoint import write_model
from engine.training.chip_folder import IGNORE, InvalidChips, LabelledChips, load_chip_folder
from engine.training.config import TrainingSpec
from engine.training.errors import TrainingDataError
from engine.training.finetuning import Family, pixel_weights
from engine.training.heldout import best_threshold, intersection_over_union, split_chips
from engine.training.newclasses import NewClass, make_legend, read_new_classes
from engine.training.offsets import LabelledLogits, best_offsets, logits_of
from engine.training.stages import open_workshop
from engine.training.train import train, train_here
from engine.training.workers import Worker

BANDS = ("blue", "green", "red", "nir")
LEXICON = Lexicon(DEFAULT_TERMS)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow model that knows vegetation and water when it sees them, and of building and bare ground the words only."""
    torch.set_num_threads(1)
    begun, out = open_workshop(training_spec(tmp_path_factory.mktemp("none"))), tmp_path_factory.mktemp("start")
    write_model(out / "random", begun.model, begun.processor)
    chips = write_user_chips(out / "chips", {10: "vegetation", 80: "water"})
    assert train(finetuning(out / "random", chips, steps=150, rate=3e-3, keep=0.0, pull=0.0), out / "start")
    return out / "start"


@pytest.fixture(scope="module")
def chips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    said = "{salt flat: {synonyms: [salt crust], title: Salt}}"
    return write_user_chips(tmp_path_factory.mktemp("user"), {1: "salt flat", 10: "vegetation", 80: "water"}, said)


@pytest.fixture(scope="module")
def taught(started: Path, chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that knows vegetation and water, taught salt flats by chips that label all three."""
    out = tmp_path_factory.mktemp("taught")
    assert train(finetuning(started, chips), out)
    return out


@pytest.fixture(scope="module")
def unlabelled_water(chips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same chips, with water in the images and no word of it in the legend."""
    folder = tmp_path_factory.mktemp("part")
    for kind in ("images", "labels"):
        (folder / kind).symlink_to(chips / kind)
    legend = (chips / "classes.yaml").read_text()
    assert ", 80: water" in legend
    (folder / "classes.yaml").write_text(legend.replace(", 80: water", ""))
    return folder


def finetuning(start: Path, chips: Path, **changes: object) -> TrainingSpec:
    stage = {"steps": 120, "batch": 4, "size": 32, "rate": 2e-3, "warm_up": 5, "check_steps": 40, "held_out": 0.3, "keep": 3.0} | changes
    spec = {"model": {"start": str(start)}, "data": {"chips": str(chips)}, "stages": {"finetuning": stage}, "threads": 1, "device": "cpu"}
    # A model this narrow learns nothing in bf16 steps or at a rate of 1e-2.
    return TrainingSpec.model_validate(spec | {"precision": "fp32"})


def scenes(spectra: dict[int, tuple[float, ...]], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return chips (4, 4, 48, 48) that no training saw, and their codes."""
    generator = np.random.default_rng(seed)
    codes = np.stack([landscape(48, tuple(spectra), generator) for _ in range(4)])
    return np.stack([reflectance_of(each, spectra, generator)[:4] for each in codes]), codes


def overlap(guess: np.ndarray, truth: np.ndarray) -> float:
    return float((guess & truth).sum() / (guess | truth).sum())


def answers(spex: Spex, spectra: dict[int, tuple[float, ...]], asked: list[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of classes in chips that no training saw, and the chips' codes."""
    seen, codes = scenes(spectra, seed)
    return spex.segment(seen, BANDS, asked).probabilities, codes


def old_score(spex: Spex) -> float:
    """Return the mean intersection over union of vegetation and water."""
    shares, codes = answers(spex, {10: SPECTRA[10], 80: SPECTRA[80]}, ["vegetation", "water"], 12)
    return float(np.mean([overlap(shares.argmax(1) == k, codes == code) for k, code in enumerate((10, 80))]))


def threshold_in_the_log(out: Path) -> float:
    return float(json.loads((out / "log.jsonl").read_text().splitlines()[-1])["threshold_salt_flat"])


def test_a_new_class_is_learnt_and_the_old_ones_stay(started: Path, taught: Path) -> None:
    """Of chips that label old classes beside the new one; measured: salt 0.90, old classes 1.0 before and after."""
    before, after = Spex.load(started, "cpu"), Spex.load(taught, "cpu")
    assert set(after.known_classes) - set(before.known_classes) == {"salt_flat"}
    (salt,) = after.resolve(["salt crust"])
    assert salt.title == "Salt" and salt.target == "salt_flat"
    was, now = ({each["name"]: each["threshold"] for each in spex.config.classes} for spex in (before, after))
    assert {name: now[name] for name in was} == was and salt.threshold == now["salt_flat"] == threshold_in_the_log(taught)

    shares, codes = answers(after, {10: SPECTRA[10], 80: SPECTRA[80], 1: SALT}, ["vegetation", "water", "salt flat"], 11)
    assert overlap(shares.argmax(1) == 2, codes == 1) > 0.8
    scores = [old_score(spex) for spex in (before, after)]
    assert scores[0] > 0.95 and scores[1] > scores[0] - 0.02


def test_lists_of_old_classes_are_answered_bit_for_bit(started: Path, unlabelled_water: Path, tmp_path: Path) -> None:
    """A map that was made before fine-tuning comes out the same after it; the chips taught vegetation, but say nothing of water."""
    assert train(finetuning(started, unlabelled_water, steps=10, check_steps=5), tmp_path)
    before, after = Spex.load(started, "cpu"), Spex.load(tmp_path, "cpu")
    seen, _ = scenes(SPECTRA | {1: SALT}, 12)
    for asked in (["vegetation", "water"], ["vegetation", "building", "water", "bare"], ["tree cover or cropland", "water"]):
        was, now = (spex.segment(seen, BANDS, asked) for spex in (before, after))
        assert np.array_equal(was.probabilities, now.probabilities) and np.array_equal(was.presence, now.presence)
    was, now = (spex.segment(seen, BANDS, ["vegetation"]) for spex in (before, after))
    assert not np.array_equal(was.probabilities, now.probabilities)


def test_an_old_class_beside_a_new_one_is_held(started: Path, unlabelled_water: Path, tmp_path: Path) -> None:
    """In a list with a new class, only the starting model's answers speak for an old one that the chips do not label.

    Measured with two seeds: probabilities move by 0.007 and 0.10 with `keep`, by 0.23 and 0.36 without; water has 0.97 and 0.72, or 0.17 and 0.
    """
    old, asked = {10: SPECTRA[10], 80: SPECTRA[80]}, ["vegetation", "water"]
    was, moved, water = answers(Spex.load(started, "cpu"), old, asked, 12)[0], [], []
    for keep in (3.0, 0.0):
        assert train(finetuning(started, unlabelled_water, keep=keep), tmp_path / str(keep))
        after = Spex.load(tmp_path / str(keep), "cpu")
        moved.append(float(np.abs(answers(after, old, [*asked, "salt flat"], 12)[0][:, :2] - was).mean()))
        shares, codes = answers(after, old | {1: SALT}, [*asked, "salt flat"], 11)
        water.append(overlap(shares.argmax(1) == 1, codes == 80))
    assert moved[0] < 0.15 and moved[1] > 2 * moved[0]
    assert water[0] > 0.6 and water[1] < water[0] - 0.2


def test_taught_twice_it_answers_what_it_was_taught_first_as_before(taught: Path, tmp_path: Path) -> None:
    chips = write_user_chips(tmp_path / "chips", {1: "dry lake", 10: "vegetation"})
    assert train(finetuning(taught, chips, steps=10, check_steps=5), tmp_path / "twice")
    once, twice = Spex.load(taught, "cpu"), Spex.load(tmp_path / "twice", "cpu")
    assert len(twice.taught) == len(once.taught) + 1 and {*twice.known_classes} - {*once.known_classes} == {"dry_lake"}
    seen, _ = scenes(SPECTRA | {1: SALT}, 13)
    for asked in (["salt flat", "vegetation"], ["vegetation", "water"], ["vegetation", "building", "water", "bare"]):
        was, now = (spex.segment(seen, BANDS, asked).probabilities for spex in (once, twice))
        assert np.array_equal(was, now), asked
    both = twice.segment(seen, BANDS, ["salt flat", "dry lake", "water"]).probabilities
    assert np.isfinite(both).all() and both.sum(1).max() <= 1.0 + 1e-6


def test_a_compiled_map_with_a_new_class_is_the_same_map(taught: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed")
    pytest.importorskip("openvino", reason="openvino is not installed")
    spex, seen = Spex.load(taught, "cpu"), torch.from_numpy(scenes(SPECTRA | {1: SALT}, 14)[0])
    for asked in (["salt flat", "vegetation", "water"], ["vegetation", "building", "water", "bare"]):
        planner = spex.planner(BANDS, asked)
        compiled = OpenVinoPlanner(export_graph(planner, Windows(48, len(BANDS))), Precision.FLOAT32, 1)
        for chip in seen:
            torch.testing.assert_close(compiled(chip[None]), planner(chip[None]), atol=1e-4, rtol=0)


def test_parts_that_did_not_train_are_not_written_again(taught: Path, tmp_path: Path) -> None:
    """With ``freeze: [vision]`` a large model's folder grows by the small parts only."""
    spex = Spex.load(taught, "cpu")
    third = copy.deepcopy(spex.taught[-1])
    with torch.no_grad():
        third.decoder.mask_token += 1.0
    spex.config.class_sets = [*spex.config.class_sets, {"added": [], "labelled": ["bare"], "offsets": {"bare": 0.5}}]
    write_model(tmp_path, spex.model, spex.processor, (*spex.taught, third))
    was, now = (set(load_file(folder / "model.safetensors")) for folder in (taught, tmp_path))
    assert now - was == {"class_sets.2.decoder.mask_token"} and was < now
    again = Spex.load(tmp_path, "cpu")
    for written, read in zip((spex.model, *spex.taught, third), (again.model, *again.taught), strict=True):
        assert all(torch.equal(value, written.state_dict()[name]) for name, value in read.state_dict().items())
    shift = [spex.planner(BANDS, ["bare"]).get_buffer("offsets").flatten()[3].item() for spex in (again, Spex.load(taught, "cpu"))]
    assert shift[0] == 0.5 and shift[1] == 0.0


def test_chips_that_teach_nothing_leave_the_weights_alone(started: Path, tmp_path: Path) -> None:
    """Steps on classes that the model knows well would only make it forget; few held-out chips cannot tell a small gain from chance."""
    chips = write_user_chips(tmp_path / "chips", {10: "vegetation", 80: "water"})
    assert train(finetuning(started, chips, steps=10, check_steps=5), tmp_path / "out")
    start, end = (Spex.load(folder, "cpu").taught[-1].state_dict() for folder in (started, tmp_path / "out"))
    assert all(torch.equal(start[name], value) for name, value in end.items())


def test_the_other_stages_refuse_a_model_that_was_taught(taught: Path, tmp_path: Path) -> None:
    """They would train the starting weights only, and the new words would mean nothing."""
    with pytest.raises(TrainingDataError, match="was fine-tuned: only stage finetuning goes on from it"):
        open_workshop(training_spec(tmp_path, model={"start": str(taught)}))


@pytest.mark.parametrize(
    ("asked", "position"),
    [
        ({"water", "bare"}, None),
        ({"vegetation", "building", "water", "bare"}, None),
        ({"water"}, 0),
        ({"orchard"}, 0),
        ({"orchard", "bare", "building"}, 0),
        ({"solar", "orchard"}, 1),
        ({"building"}, 1),
    ],
)
def test_the_latest_set_that_speaks_of_a_list_answers_it(asked: set[str], position: int | None) -> None:
    sets = [{"added": ["orchard"], "labelled": ["orchard", "water"]}, {"added": ["solar"], "labelled": ["solar", "building"]}]
    assert answering_set(asked, sets) == position
    names = ("water", "building", "orchard", "solar")
    assert [len(known_to_set(names, sets, k)) for k in (None, 0, 1)] == [2, 3, 4]


def test_offsets_set_right_what_leans_to_one_class() -> None:
    """Two classes of two roots, told apart well but for a constant; and logits that come back from probabilities are those that made them."""
    family, generator = Family(LEXICON), torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2
    logits = torch.full((1, len(family.names), 1, 400), -4.0)
    water, bare = family.names.index("water"), family.names.index("bare")
    for k, query in enumerate((water, bare)):
        logits[0, query, 0] = torch.where(labels == k, 1.0, -1.0) + 0.3 * torch.randn(400, generator=generator)
    logits[0, bare] += 2.0
    told = LabelledLogits(logits, labels, ((water,), (bare,)), family)
    offsets = best_offsets(told)
    assert told.score([0.0, 0.0]) < 0.7 and told.score(offsets) > 0.95 and offsets[0] - offsets[1] >= 1.0

    shares = family.log_probabilities(logits).exp()[0, :, 0]
    again = family.log_probabilities(logits_of(shares, LEXICON)[None, :, None]).exp()[0, :, 0]
    torch.testing.assert_close(again, shares, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("share", "expected"), [(0.33, [0, 1, 0, 0, 1, 0]), (0.0, [0] * 6)])
def test_made_up_scenes_have_no_label_and_are_spread_over_the_batch(started: Path, chips: Path, share: float, expected: list[int]) -> None:
    """Spread, so that workers and pieces of a batch each get their part of the labels."""
    batches = open_workshop(finetuning(started, chips, batch=6, rehearsal=share)).work("finetuning").batches
    for step in range(3):
        batch = batches(step)
        assert (batch.labels == IGNORE).all(2).all(1).tolist() == [bool(each) for each in expected]
        seen = batch.reflectance[torch.isfinite(batch.reflectance)]
        assert seen.min() > -0.1 and seen.max() < 1.5 and torch.equal(batch.reflectance.nan_to_num(), batches(step).reflectance.nan_to_num())


def test_an_interrupted_fine_tuning_gives_the_same_bits(started: Path, chips: Path, tmp_path: Path) -> None:
    spec = finetuning(started, chips, steps=6, check_steps=2)
    assert train(spec, tmp_path / "whole")
    asked = iter(range(100))
    while not train_here(spec, tmp_path / "pieces", Worker(), lambda: next(asked) % 3 == 2):
        pass
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "pieces")]
    assert files[0] == files[1]


def test_classes_of_the_labels_find_their_place_in_the_model() -> None:
    legend = make_legend(("forest", "orchard", "water"), {"orchard": NewClass(parent="vegetation")}, LEXICON)
    assert legend.added == ("orchard",) and legend.lexicon.terms["orchard"].parent == "vegetation"
    assert legend.parts == (("tree_cover",), ("orchard",), ("water",))
    assert legend.rows[0]["parent"] == "vegetation" and legend.rows[0]["title"] == "Orchard"


def test_a_root_beside_its_own_kind_stands_for_the_rest() -> None:
    """Kinds share all that their root gets, so a single new kind of a root without kinds needs another one."""
    legend = make_legend(("building", "solar panel"), {"solar panel": NewClass(parent="building")}, LEXICON)
    assert legend.added == ("solar_panel", "other_building")
    assert legend.parts == (("other_building",), ("solar_panel",))
    legend = make_legend(("vegetation", "forest"), {}, LEXICON)
    assert legend.added == () and legend.parts[0] == ("cropland", "grass_or_shrub", "wetland")


@pytest.mark.parametrize(
    ("classes", "said", "message"),
    [
        (("a", "b"), {"a": NewClass(parent="forest")}, "parent 'forest' is no root; the roots are vegetation"),
        (("a",), {"a": NewClass(parent="nowhere")}, "parent 'nowhere' is no root"),
        (("forest", "trees"), {}, "'forest', 'trees' all mean tree_cover"),
        (("a",), {"b": NewClass()}, "b is not among the classes a"),
        (("a",), {"a": NewClass(synonyms=("woods",))}, "'woods' already means tree_cover"),
    ],
)
def test_classes_that_make_no_sense_are_refused(classes: tuple[str, ...], said: dict[str, NewClass], message: str) -> None:
    with pytest.raises(InvalidChips, match=message):
        make_legend(classes, said, LEXICON)


def test_what_is_said_of_new_classes_is_checked(tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text("new: {orchard: {parrent: vegetation}}")
    with pytest.raises(InvalidChips, match=r"new: orchard: parrent: Extra inputs are not permitted; known: parent"):
        read_new_classes(tmp_path)


def test_the_loss_speaks_of_the_probabilities_that_maps_get() -> None:
    family = Family(Lexicon([*DEFAULT_TERMS, Term("solar", "solar", (), "building"), Term("other_building", "other buildings", (), "building")]))
    logits = torch.randn(2, len(family.names), 3, 3, generator=torch.Generator().manual_seed(0))
    parents: list[int | None] = [None if family.root_of(k) == k else family.root_of(k) for k in range(len(family.names))]
    torch.testing.assert_close(family.log_probabilities(logits).exp(), probabilities(logits, parents))


def chips_of(labels: np.ndarray, places: tuple[str, ...]) -> LabelledChips:
    count = len(labels)
    return LabelledChips(np.zeros((count, 4, *labels.shape[1:]), np.float32), BANDS, labels, ("a", "b"), places, tuple(map(str, range(count))))


def test_places_are_not_torn_apart_and_classes_are_on_both_sides() -> None:
    labels = np.zeros((10, 4, 4), np.uint8)
    labels[[0, 9]] = 1
    kept, held = split_chips(chips_of(labels, tuple("aabbccddee")), 0.2, 0)
    assert not set(kept.places) & set(held.places) and len(kept) == 8
    assert all((part.labels == 1).any() for part in (kept, held))
    with pytest.raises(TrainingDataError, match="10 chips at 1 place"):
        split_chips(chips_of(labels, ("a",) * 10), 0.2, 0)


def test_scores_leave_out_what_has_no_label() -> None:
    labels = np.array([[[0, 0, 1, IGNORE]]], np.uint8)
    shares = np.array([[[[0.9, 0.2, 0.1, 0.9]], [[0.1, 0.8, 0.9, 0.1]]]], np.float32)
    assert intersection_over_union(shares, labels).tolist() == pytest.approx([0.5, 0.5])
    assert best_threshold(shares[:, 1], labels, 1) == pytest.approx(0.85, abs=0.001)
    assert best_threshold(shares[:, 1], np.zeros_like(labels), 1) is None


def test_rare_classes_weigh_more_and_the_mean_is_one() -> None:
    labels = np.array([[0] * 90 + [1] * 10 + [IGNORE] * 5], np.uint8)
    weights = pixel_weights(labels, 3)
    assert weights[1] == pytest.approx(3 * weights[0]) and weights[2] == 0 and (90 * weights[0] + 10 * weights[1]) / 100 == pytest.approx(1)


def test_chips_without_a_required_band_are_refused(started: Path, chips: Path, tmp_path: Path) -> None:
    legend = (chips / "classes.yaml").read_text().replace("bands: [blue,", "bands: [coastal,")
    for kind in ("images", "labels"):
        (tmp_path / kind).symlink_to(chips / kind)
    (tmp_path / "classes.yaml").write_text(legend)
    with pytest.raises(TrainingDataError, match=r"the model requires blue; classes\.yaml names coastal"):
        open_workshop(finetuning(started, tmp_path))


def test_a_class_without_pixels_is_refused_before_training(started: Path, chips: Path, tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).symlink_to(chips / kind)
    (tmp_path / "classes.yaml").write_text((chips / "classes.yaml").read_text().replace("{1: salt flat", "{2: ice, 1: salt flat"))
    with pytest.raises(InvalidChips, match=r"of class 'ice' \(code 2\), so it cannot be learnt"):
        open_workshop(finetuning(started, tmp_path))


def test_chips_come_back_as_they_were_written(chips: Path) -> None:
    loaded = load_chip_folder(chips)
    assert loaded.classes == ("salt flat", "vegetation", "water") and loaded.bands == BANDS
    salt: Tensor = torch.from_numpy(loaded.reflectance.transpose(0, 2, 3, 1)[loaded.labels == 0])
    assert salt.mean(0).tolist() == pytest.approx(SALT[:4], abs=0.02)
