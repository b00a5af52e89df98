"""A training must go on where it stopped, do the same on any number of workers, and say what is wrong with its settings."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from training_data import training_spec, write_training_data

from engine import Spex
from engine.training.config import StageSpec, TrainingSpec
from engine.training.errors import OtherTraining, TrainingDataError, TrainingDiverged
from engine.training.imagery import load_imagery
from engine.training.pretraining import HiddenBatch, HiddenBatches, hidden_patches, wavelength_weights
from engine.training.runner import Runner, Work
from engine.training.stages import freeze, open_workshop
from engine.training.train import train, train_here
from engine.training.workers import Worker, part_of
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


def test_freezing_a_part_that_is_not_there_is_refused(data: Path) -> None:
    with pytest.raises(TrainingDataError, match="no part 'langauge'; it has vision, backbone"):
        freeze(open_workshop(training_spec(data)).model, ["vision", "langauge"])
