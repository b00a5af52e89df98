"""A training file must be refused with the line and the key to change, and its paths must mean what their writer meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import JobError
from pipeline.training_file import load_training

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "train").glob("*.yaml"))

GOOD = """model: {preset: spex-small}
data:
  root: data
  unlabelled: [{path: "*.tif", bands: {red: 1}}]
stages:
  pretraining: {steps: 10, rate: 7e-4}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "train.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid(path: Path) -> None:
    spec = load_training(path)
    assert spec.stages.chosen and all(stage.rate < 1e-2 for stage in spec.stages.chosen.values())


def test_numbers_may_be_written_as_people_write_them(tmp_path: Path) -> None:
    """YAML 1.1 takes 7e-4 for text."""
    spec = load_training(write(tmp_path, GOOD))
    assert spec.stages.chosen["pretraining"].rate == 7e-4 and spec.data.root == str(tmp_path / "data")


def test_overrides_win_and_their_paths_are_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    spec = load_training(write(folder, GOOD), ["stages.pretraining.steps=20", "data.root=here", "data.chips=mine", "stages.pretraining.batch=3"])
    assert (spec.stages.chosen["pretraining"].steps, spec.stages.chosen["pretraining"].batch) == (20, 3)
    assert spec.data.root == str(tmp_path / "here") and spec.data.path("chips") == tmp_path / "mine"


def test_a_stage_can_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no stage is there; name at least one of pretraining, alignment, instruction, distillation, finetuning"):
        load_training(write(tmp_path, GOOD), ["stages.pretraining=null"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rate: 7e-4", "rato: 7e-4", r"train\.yaml line 6: stages\.pretraining\.rato: unknown key; did you mean rate\?"),
        ("rate: 7e-4", "rate: fast", r"line 6: stages\.pretraining\.rate: must be a number"),
        ("rate: 7e-4", "rate: 0", r"line 6: stages\.pretraining\.rate: .*greater than 0"),
        ("steps: 10, ", "", r"line 6: stages\.pretraining\.steps: this key is missing"),
        ("  pretraining", "  pretrainig", r"line 6: stages\.pretrainig: unknown key; did you mean pretraining\?"),
        ("{preset: spex-small}", "{preset: spex-small, start: x}", "line 1: model: name one of preset"),
        ("{preset: spex-small}", "{start: spex-small, changes: {dims: []}}", "line 1: model: changes are for a new model"),
        ("pretraining:", "finetuning:", "stage finetuning needs data.chips"),
        ("pretraining:", "instruction:", "stage instruction needs data.chips, data.red_edge, data.spectra"),
        ("stages:", "seed: -1\nstages:", "line 5: seed: .*greater than or equal to 0"),
        (GOOD, "- a list", "a training file is a mapping of keys"),
    ],
)
def test_mistakes_are_named_with_their_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        load_training(write(tmp_path, GOOD.replace(old, new)))


FIELDS = GOOD.replace("{preset: spex-small}", "\n  preset: spex-small\n  changes:\n    decoder_dim: 16")


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        (
            FIELDS.replace("decoder_dim", "decoder_dmi"),
            [],
            r"line 4: model\.changes\.decoder_dmi: a model has no field .*; did you mean decoder_dim\?",
        ),
        (FIELDS, ["model.changes.decoder_dmi=3"], r"^--set model\.changes\.decoder_dmi: a model has no field"),
        (GOOD, ["model.changes.decoder_dmi=3"], r"^--set model\.changes\.decoder_dmi: a model has no field"),
        (GOOD, ["stages.instruktion.steps=3"], r"^--set stages\.instruktion: unknown key; did you mean instruction\?"),
        (GOOD, ["stages.pretraining.rato=3"], r"^--set stages\.pretraining\.rato: unknown key"),
        (GOOD, ["stages.alignment.rate=1e-3"], r"^--set stages\.alignment\.steps: this key is missing"),
        (GOOD, ["moddel.changes.name=x"], r"^--set moddel: unknown key; did you mean model\?"),
        (GOOD.replace("rate", "rato"), ["stages.pretraining.steps=3"], r"train\.yaml line 6: stages\.pretraining\.rato"),
    ],
)
def test_a_mistake_is_named_where_it_was_made(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    """A line of the file that does not hold it would be searched in vain."""
    with pytest.raises(JobError, match=message):
        load_training(write(tmp_path, text), overrides)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"there is no training file .*nothing\.yaml$"):
        load_training(tmp_path / "nothing.yaml")
