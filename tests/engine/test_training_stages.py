"""A training must go on where it stopped, do the same on any number of workers, and say what is wrong with its settings."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from training_data import training_spec, write_training_data, write_user_chips

from engine import Spex
from engine.training.config import ImagerySpec, StageSpec, TrainingSpec
from engine.training.distillation import answers_distance
from engine.training.errors import MissingResources, OtherTraining, TrainingDataError, TrainingDiverged
from engine.training.fingerprint import fingerprint
from engine.training.imagery import files_of, load_imagery
from engine.training.pretraining import HiddenBatch, HiddenBatches, hidden_patches, wavelength_weights
from engine.training.runner import Runner, Work
from engine.training.stages import freeze, open_workshop
from engine.training.train import train, train_here
from engine.training.workers import Worker, check_shares, part_of
from pipeline import training
from pipeline.training import train_on_ray


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_training_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def log_of(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def after(steps: int) -> Callable[[], bool]:
    """Return what says stop after so many steps."""
    asked = iter(range(10**6))
    return lambda: next(asked) + 1 >= steps


STAGE = {"batch": 4, "size": 32, "rate": 1e-2, "warm_up": 3}


def test_pretraining_lowers_its_loss(data: Path, tmp_path: Path) -> None:
    assert train(training_spec(data, stages={"pretraining": {"steps": 30, **STAGE}}), tmp_path)
    losses = [line["loss"] for line in log_of(tmp_path)]
    assert len(losses) == 30 and np.mean(losses[-8:]) < 0.85 * np.mean(losses[:4])


@pytest.mark.parametrize("stage", ["alignment", "instruction"])
def test_stages_with_words_lower_their_loss(data: Path, tmp_path: Path, stage: str) -> None:
    """Batches differ in what is asked, so the same ones are compared before and after."""
    spec = training_spec(data, stages={stage: {"steps": 60, **STAGE}})
    workshop = open_workshop(spec)
    work = workshop.work(stage)
    batches = [work.batches(step) for step in range(4)]
    before = sum(work.objective(batch)["loss"].item() for batch in batches)
    assert train(spec, tmp_path)
    workshop.model.load_state_dict(load_file(tmp_path / stage / "model.safetensors"))
    after_it = sum(work.objective(batch)["loss"].item() for batch in batches)
    assert after_it < 0.9 * before
    assert Spex.load(tmp_path, "cpu").known_classes


def distilling(data: Path, **changes: object) -> TrainingSpec:
    return training_spec(data, stages={"distillation": {"steps": 40, **STAGE, "rate": 3e-3, "start_share": 0.0, **changes}})


def test_distillation_brings_the_answers_with_few_bands_to_those_with_all(data: Path, tmp_path: Path) -> None:
    """The teacher is random weights; what it answers is nothing that a label could teach."""
    spec = distilling(data, unlabelled=1.0)
    workshop = open_workshop(spec)
    work = workshop.work("distillation")
    batches = [work.batches(step) for step in range(100, 104)]
    before = sum(work.objective(batch)["distance"].item() for batch in batches)
    assert before > 0 and train(spec, tmp_path)
    workshop.model.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert sum(work.objective(batch)["distance"].item() for batch in batches) < 0.7 * before


def test_a_student_sees_some_of_what_its_teacher_sees(data: Path) -> None:
    batches = open_workshop(distilling(data)).work("distillation").batches
    labelled = set()
    for step in range(16):
        batch, again = batches(step), batches(step)
        seen = batch.seen
        channels = [batch.bands.index(name) for name in seen.bands]
        assert torch.equal(seen.reflectance.nan_to_num(), batch.whole[:, channels].nan_to_num())
        assert torch.equal(batch.whole.nan_to_num(), again.whole.nan_to_num()) and seen.bands == again.seen.bands
        assert batch.labelled == bool((seen.target != 255).any()) and batch.rarity.shape == (4, seen.roots + 1)
        assert batch.labelled or len(seen.bands) < len(batch.bands)
        labelled.add(batch.labelled)
    assert labelled == {True, False}


def test_the_teacher_of_a_distillation_stays_as_it_was(data: Path, tmp_path: Path) -> None:
    spec = distilling(data, steps=3)
    begun = open_workshop(spec).model.state_dict()
    assert not train_here(spec, tmp_path, Worker(), after(2))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    taught = {name.removeprefix("teacher."): value for name, value in state["objective"].items() if name.startswith("teacher.")}
    assert taught.keys() == begun.keys() and all(torch.equal(taught[name], begun[name]) for name in begun)
    assert not all(torch.equal(state["model"][name], begun[name]) for name in begun)


def test_what_is_distilled_is_averaged_with_where_it_began(data: Path, tmp_path: Path) -> None:
    begun = open_workshop(distilling(data)).model.state_dict()
    for share in (0.0, 0.25):
        assert train(distilling(data, steps=3, start_share=share), tmp_path / str(share))
    trained, averaged = (load_file(tmp_path / str(share) / "model.safetensors") for share in (0.0, 0.25))
    assert not all(torch.equal(trained[name], begun[name]) for name in trained)
    for name, value in averaged.items():
        torch.testing.assert_close(value, 0.75 * trained[name] + 0.25 * begun[name])


def test_distillation_without_imagery_of_more_bands_is_refused(data: Path, tmp_path: Path) -> None:
    """The chips that are trained on with their labels do not count."""
    only = training_spec(data).data.model_dump(mode="json")
    spec = training_spec(data, stages=distilling(data).stages.model_dump(mode="json"), data=only | {"unlabelled": only["unlabelled"][:1]})
    with pytest.raises(TrainingDataError, match=r"needs imagery beside the labelled chips with more bands than blue, green, red"):
        train(spec, tmp_path)


def test_answers_are_compared_with_other_among_them() -> None:
    alike, there = torch.tensor([[2.0, -1.0], [0.5, 0.5]]).reshape(2, 2, 1, 1), torch.ones(2, 1, 1, dtype=torch.bool)
    assert answers_distance(alike, alike, there, torch.ones(2, 3)).item() == 0
    logits = torch.tensor([[0.0, 0.0]]).reshape(1, 2, 1, 1)
    shares = torch.softmax(torch.tensor([2.0, -1.0, 0.0]), 0)
    expected = (shares * (shares * 3).log()).sum().item()
    assert answers_distance(logits, alike[:1], there[:1], torch.tensor([[2.0, 2.0, 1.0]])).item() == pytest.approx(expected, rel=1e-5)
    assert answers_distance(logits, alike[:1], ~there[:1], torch.ones(1, 3)).item() == 0


def test_stages_train_their_own_parts(data: Path, tmp_path: Path) -> None:
    spec = training_spec(data)
    begun = {name: value.clone() for name, value in open_workshop(spec).model.state_dict().items()}
    assert train(spec, tmp_path)
    seen, spoken = (load_file(tmp_path / stage / "model.safetensors") for stage in ("pretraining", "alignment"))
    changed = {name.split(".")[0] for name in seen if not torch.equal(seen[name], begun[name])}
    assert changed == {"backbone", "aggregator", "fine_branch"}
    changed = {name.split(".")[0] for name in seen if not torch.equal(seen[name], spoken[name])}
    assert changed == {"projector", "language", "presence_head", "condenser"}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_an_interrupted_training_gives_the_same_bits(data: Path, tmp_path: Path, precision: str) -> None:
    """Stop in the middle of every stage, and at the end of one."""
    spec = training_spec(data, precision=precision)
    assert train(spec, tmp_path / "whole")
    runs = 0
    while not train_here(spec, tmp_path / "pieces", Worker(), after(2)):
        runs += 1
    assert runs >= 3
    whole, pieces = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "pieces"))
    assert whole.keys() == pieces.keys() and all(torch.equal(whole[name], pieces[name]) for name in whole)
    logs = [[(line["stage"], line["step"], line["loss"]) for line in log_of(tmp_path / name)] for name in ("whole", "pieces")]
    assert logs[0] == logs[1]


@pytest.mark.parametrize(("has", "same_as"), [(True, "bf16"), (False, "fp32")])
def test_precision_is_what_the_device_computes_in(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: bool, same_as: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has})
    for precision in ("auto", "bf16", "fp32"):
        assert train(training_spec(data, stages=ONE_STEP, precision=precision), tmp_path / precision)
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in ("auto", "bf16", "fp32")}
    alike = [name for name in ("bf16", "fp32") if all(torch.equal(value, weights["auto"][key]) for key, value in weights[name].items())]
    assert alike == [same_as]


def test_a_finished_training_is_left_alone(data: Path, tmp_path: Path) -> None:
    spec = training_spec(data, stages={"pretraining": {"steps": 1, **STAGE}})
    assert train(spec, tmp_path)
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert train(spec, tmp_path) and (tmp_path / "model.safetensors").stat().st_mtime_ns == before


def test_the_state_of_another_training_is_refused(data: Path, tmp_path: Path) -> None:
    stage = {"steps": 1, **STAGE}
    assert train(training_spec(data, stages={"pretraining": stage}), tmp_path)
    with pytest.raises(OtherTraining, match=r"stages\.pretraining\.size was 32, is 48"):
        train(training_spec(data, stages={"pretraining": stage | {"size": 48}}), tmp_path)
    (tmp_path / "state.pt").write_bytes(b"half a fi")
    with pytest.raises(OtherTraining, match="cannot be read"):
        train(training_spec(data, stages={"pretraining": stage}), tmp_path)


ONE_STEP = {"pretraining": {"steps": 1, **STAGE}}


def test_other_data_are_noticed_and_the_same_data_elsewhere_are_not(data: Path, tmp_path: Path) -> None:
    """A training on other data under the same --out would go on, or claim to be finished."""
    folder = write_training_data(tmp_path / "data")
    assert train(training_spec(folder, stages=ONE_STEP), tmp_path / "out")
    shutil.copytree(folder, tmp_path / "copy")
    assert train(training_spec(tmp_path / "copy", stages=ONE_STEP), tmp_path / "out")
    unused = np.load(tmp_path / "copy" / "red_edge.npz")["digital_numbers"][:1]
    np.savez(tmp_path / "copy" / "red_edge.npz", digital_numbers=unused)
    assert train(training_spec(tmp_path / "copy", stages=ONE_STEP), tmp_path / "out")
    arrays = dict(np.load(tmp_path / "copy" / "train.npz"))
    arrays["reflectance"][0, 0, 0, 0] += 1
    np.savez(tmp_path / "copy" / "train.npz", **arrays)
    with pytest.raises(OtherTraining, match=r"data\.unlabelled\.0\.files was \"1 files of \d+ bytes \(\w+\)\", is \"1 files"):
        train(training_spec(tmp_path / "copy", stages=ONE_STEP), tmp_path / "out")


def test_other_chips_are_noticed(data: Path, tmp_path: Path) -> None:
    words = {"instruction": {"steps": 1, **STAGE}}
    shutil.copytree(data, tmp_path / "data")
    arrays = dict(np.load(data / "train.npz"))
    np.savez(tmp_path / "data" / "other.npz", **{name: values[:5] for name, values in arrays.items()})
    spec = training_spec(tmp_path / "data", stages=words)
    assert train(spec, tmp_path / "out") and train(spec, tmp_path / "out")
    with pytest.raises(OtherTraining, match=r"data\.chips was .* is "):
        train(training_spec(tmp_path / "data", stages=words, data=spec.data.model_dump(mode="json") | {"chips": "other.npz"}), tmp_path / "out")


def test_a_state_from_before_data_counted_is_gone_on_from(data: Path, tmp_path: Path) -> None:
    spec = training_spec(data, stages=ONE_STEP)
    assert train(spec, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    was = json.loads(state["identity"])
    del was["data"]
    torch.save(state | {"identity": json.dumps(was)}, tmp_path / "state.pt")
    assert train(spec, tmp_path)
    torch.save(state | {"identity": "[]"}, tmp_path / "state.pt")
    with pytest.raises(OtherTraining, match="cannot be read as the state"):
        train(spec, tmp_path)


def test_a_changed_label_changes_the_fingerprint_of_a_folder(tmp_path: Path) -> None:
    """Labels without compression keep their size."""
    chips = write_user_chips(tmp_path / "chips", {10: "vegetation", 80: "water"})
    files = sorted(each for each in chips.rglob("*") if each.is_file())
    before = fingerprint(files)
    assert before.startswith("13 files of") and fingerprint(files) == before and fingerprint(files[1:]) != before
    label = chips / "labels" / "chip3.tif"
    stored = label.read_bytes()
    label.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    assert fingerprint(files) != before and fingerprint([]) == "no files"


def test_all_files_of_an_entry_count(tmp_path: Path) -> None:
    for name in ("a_B02.tif", "a_B03.tif", "b_B02.tif", "b_B03.tif", "b_B04.tif"):
        (tmp_path / name).touch()
    spec = ImagerySpec(path="*_{band}.tif", bands={"blue": "B02", "green": "B03"})
    assert [path.name for path in files_of(spec, tmp_path)] == ["a_B02.tif", "a_B03.tif", "b_B02.tif", "b_B03.tif"]


def test_events_for_tensorboard_hold_the_loss(data: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert train(training_spec(data, stages={"pretraining": {"steps": 2, **STAGE}}), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    points = [point.value for point in events.Scalars("pretraining/loss")]
    assert points == pytest.approx([line["loss"] for line in log_of(tmp_path)], rel=1e-4)


def test_sigterm_saves_and_the_same_command_goes_on(data: Path, tmp_path: Path) -> None:
    stages = {"pretraining": {"steps": 100_000, **STAGE, "batch": 1}}
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(training_spec(data, stages=stages).model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "pipeline", "train", str(file), "--out", str(tmp_path / "out")]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    while "step 3:" not in running.stderr.readline():
        assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    said = running.communicate(timeout=120)[1]
    assert running.returncode == 143 and "the same command goes on" in said
    reached = torch.load(tmp_path / "out" / "state.pt", weights_only=True)["step"]
    assert reached >= 3
    spec = training_spec(data, stages={"pretraining": stages["pretraining"] | {"steps": reached + 1}})
    assert train(spec, tmp_path / "out") and log_of(tmp_path / "out")[-1]["step"] == reached + 1


@pytest.mark.cluster
def test_two_workers_see_the_same_batches_as_one(data: Path, tmp_path: Path) -> None:
    """No window has gaps and all have the same number of hidden values, so the mean of two halves is the mean of the whole."""
    spec = training_spec(data, stages={"pretraining": {"steps": 3, "batch": 4, "size": 32, "rate": 1e-3, "micro_batch": 1}}, precision="fp32")
    os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
    assert train(spec, tmp_path / "one") and train_on_ray(spec, tmp_path / "two", 2, None)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=2e-5)
    assert (tmp_path / "two" / "state.pt").is_file()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_gpu_is_said_in_one_sentence(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(training_spec(data, stages=ONE_STEP).model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "pipeline", "train", str(file), "--out", str(tmp_path / "out"), "--set", "device=cuda"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2 and "device is cuda, but PyTorch finds no CUDA device" in done.stderr
    assert "Traceback" not in done.stderr and "defect" not in done.stderr


def test_a_batch_that_workers_cannot_share_evenly_is_refused(data: Path, tmp_path: Path) -> None:
    """Gradients are averaged over workers: a window in the smaller part would weigh more."""
    spec = training_spec(data, stages={"pretraining": {"steps": 1, **STAGE, "batch": 8}})
    for workers in (1, 2, 4, 8):
        check_shares(spec, workers)
    with pytest.raises(TrainingDataError, match=r"stages\.pretraining\.batch is 8, which 3 workers cannot share evenly; give batch 9, or"):
        train_on_ray(spec, tmp_path, 3, None)
    with pytest.raises(TrainingDataError, match="give batch 16, or"):
        train_here(spec, tmp_path, Worker(0, 16), lambda: False)


@pytest.fixture
def two_cpus() -> Iterator[None]:
    ray.init(address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.cluster
@pytest.mark.usefixtures("two_cpus")
def test_more_workers_than_the_cluster_has_room_for_are_refused(data: Path, tmp_path: Path) -> None:
    """Ray Train would ask for them again and again, without end."""
    spec = training_spec(data, stages={"pretraining": {"steps": 1, **STAGE, "batch": 6}})
    with pytest.raises(MissingResources, match="--workers 3: each worker needs one CPU, and there are 2 here; give at most 2"):
        train_on_ray(spec, tmp_path, 3, None)
    with pytest.raises(MissingResources, match="device cuda: there is no GPU in this cluster"):
        train_on_ray(spec.model_copy(update={"device": "cuda"}), tmp_path, 1, None)


class Endless:
    """A trainer whose workers never come, or never end."""

    def fit(self) -> None:
        Event().wait()


@pytest.mark.parametrize("begun", [False, True])
def test_a_signal_ends_the_wait_for_workers_that_never_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    monkeypatch.setattr(training, "STOP_SECONDS", 0.6)
    if begun:
        (tmp_path / training.BEGUN).touch()
    stopping = Event()
    stopping.set()
    training._wait(Endless(), stopping, tmp_path)
    assert (tmp_path / training.STOP).exists()


def test_an_error_of_a_worker_is_raised_where_the_user_sees_it(tmp_path: Path) -> None:
    class Failing:
        def fit(self) -> None:
            error = RuntimeError("workers failed")
            error.worker_failures = {0: TrainingDiverged("no finite loss")}  # type: ignore[attr-defined]
            raise error

    with pytest.raises(TrainingDiverged, match="no finite loss"):
        training._wait(Failing(), Event(), tmp_path)


class Doubtful(nn.Module):
    """A loss that is no number at some steps."""

    def __init__(self, bad: set[int]) -> None:
        super().__init__()
        self.weight, self.bad, self.calls = nn.Parameter(torch.ones(2, 2)), bad, 0

    def forward(self, batch: HiddenBatch) -> dict[str, Tensor]:
        self.calls += 1
        return {"loss": self.weight.square().sum() * (float("nan") if self.calls in self.bad else 1.0)}


def doubtful_runner(data: Path, out: Path, bad: set[int]) -> tuple[Runner, Doubtful]:
    spec = training_spec(data, stages={"pretraining": {"steps": 6, **STAGE}}, bad_steps=2)
    workshop = open_workshop(spec)
    objective = Doubtful(bad)
    batch = HiddenBatch(torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2), torch.zeros(4, 1, 2, 2, dtype=torch.bool), ("red",), ("red",))
    work = Work("pretraining", StageSpec(steps=6, **STAGE), objective, lambda step: batch)
    return Runner(spec, out, lambda name: work, workshop.model, workshop.processor, Worker(), lambda: False), objective


def test_steps_without_a_finite_loss_are_skipped_and_counted(data: Path, tmp_path: Path) -> None:
    runner, objective = doubtful_runner(data, tmp_path, {2, 5})
    assert runner.run() and torch.isfinite(objective.weight).all() and (objective.weight < 1).all()
    assert [line["skipped"] for line in log_of(tmp_path)] == [0, 1, 1, 1, 2, 2]


def test_a_training_that_diverged_stops_with_a_reason(data: Path, tmp_path: Path) -> None:
    runner, _ = doubtful_runner(data, tmp_path, {2, 3, 4, 5, 6})
    with pytest.raises(TrainingDiverged, match=r"stage pretraining: no finite loss in 3 steps .* lower stages\.pretraining\.rate"):
        runner.run()


def test_parts_of_a_batch_are_the_batch(data: Path) -> None:
    workshop = open_workshop(training_spec(data))
    batch = workshop.work("instruction").batches(0)
    parts = [part_of(batch, 0, 1), part_of(batch, 1, 2)]
    assert torch.equal(torch.cat([part.prompts.tokens for part in parts]), batch.prompts.tokens)
    assert torch.equal(torch.cat([part.target for part in parts]), batch.target) and parts[0].bands == batch.bands


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_workers_share_every_window_once(workers: int) -> None:
    shares = [Worker(rank, workers).share(8) for rank in range(workers)]
    assert [window for share in shares for window in share] == list(range(8)) and max(map(len, shares)) - min(map(len, shares)) <= 1


def test_what_is_hidden_is_not_shown_and_only_that_counts(data: Path) -> None:
    spec = training_spec(data)
    stage = spec.stages.pretraining
    assert stage is not None
    batches = HiddenBatches(load_imagery(spec.data.unlabelled, data, stage.size), stage, open_workshop(spec).model.config.bands, 0)
    shown = set()
    for step in range(12):
        batch, again = batches(step), batches(step)
        assert torch.equal(batch.target, again.target) and torch.equal(batch.hidden, again.hidden)
        for k, name in enumerate(batch.bands):
            where = batch.hidden[:, batch.target_bands.index(name)]
            assert torch.isnan(batch.reflectance[:, k][where]).all() and torch.isfinite(batch.reflectance[:, k][~where]).all()
        for name in set(batch.target_bands) - set(batch.bands):
            assert batch.hidden[:, batch.target_bands.index(name)].all()
        shown.add(batch.bands)
    assert len(shown) >= 3


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.9])
def test_the_share_of_hidden_patches_is_as_asked(ratio: float) -> None:
    hidden = hidden_patches(32, 4, ratio, np.random.default_rng(0))
    assert hidden.mean() == pytest.approx(ratio, abs=0.02) and (hidden.reshape(8, 4, 8, 4).std((1, 3)) == 0).all()


def test_every_band_is_read_off_near_its_wavelength() -> None:
    weights = wavelength_weights(("blue", "nir", "swir22"))
    assert weights.sum(1).tolist() == pytest.approx([1, 1, 1]) and weights.argmax(1).tolist() == [1, 7, 11]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "nothing*.tif", "bands": {"red": 1}}, "no file matches"),
        ({"path": "scene.tif", "bands": {"red": 5}, "scale": 0.01}, "has 4 channels; channel 5"),
        ({"path": "train.npz", "array": "image", "bands": {"red": 1}}, "no array 'image'; it has reflectance"),
        ({"path": "train.npz", "array": "reflectance", "bands": {"red": 8}}, "does not have the channels"),
        ({"path": "train.npz", "array": "reflectance", "bands": {"red": 4}}, "is no reflectance; set scale"),
    ],
)
def test_imagery_that_cannot_be_used_is_refused(data: Path, entry: dict[str, object], message: str) -> None:
    spec = training_spec(data, data=training_spec(data).data.model_dump(mode="json") | {"unlabelled": [entry]})
    with pytest.raises(TrainingDataError, match=message):
        load_imagery(spec.data.unlabelled, data, 32)


def test_no_data_of_imagery_becomes_nan(data: Path) -> None:
    entry = {"path": "scene.tif", "bands": {"red": 1}, "scale": 1 / 255, "nodata": 255}
    spec: TrainingSpec = training_spec(data, data=training_spec(data).data.model_dump(mode="json") | {"unlabelled": [entry]})
    window = load_imagery(spec.data.unlabelled, data, 32)[0].window(64, np.random.default_rng(0))
    assert window.shape == (1, 64, 64) and np.isfinite(window[:, :48, :48]).all() and np.isnan(window[:, 48:]).all()


def test_surveyed_spectra_can_be_left_out(data: Path) -> None:
    def first(surveyed: bool) -> Tensor:
        spec = training_spec(data, stages={"instruction": {"steps": 1, **STAGE, "surveyed": surveyed}})
        maker = open_workshop(spec).work("instruction").batches
        return torch.cat([maker(step).weight for step in range(4)])

    assert torch.equal(first(True), first(True)) and not torch.equal(first(True), first(False))


def test_freezing_a_part_that_is_not_there_is_refused(data: Path) -> None:
    with pytest.raises(TrainingDataError, match="no part 'langauge'; it has vision, backbone"):
        freeze(open_workshop(training_spec(data)).model, ["vision", "langauge"])
