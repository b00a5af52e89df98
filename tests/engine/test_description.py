"""What a run's driver reads of a model: the same as the loaded model says, and damage is found before anything is planned."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine import ClassQuery, ModelNotFound, Spex
from engine.description import ModelDescription
from engine.models import MODEL_FILES, find_model
from engine.stored import StoredModel

FOLDER = find_model("models/spex-small")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    for name in MODEL_FILES:
        shutil.copy(FOLDER / name, tmp_path)
    return tmp_path


def test_it_says_what_the_loaded_model_says() -> None:
    read, loaded = StoredModel(FOLDER, "cpu"), Spex.load(FOLDER, device="cpu")
    assert read.card == loaded.model_card
    assert read.parameters == sum(parameter.numel() for parameter in loaded.model.parameters())
    asked = ["trees or water", ClassQuery("houses", instruction="Segment the buildings.")]
    assert read.resolve(asked) == loaded.resolve(asked)


def test_a_loaded_model_says_what_its_configuration_says_now() -> None:
    """Training sets thresholds and adds classes while it holds the model."""
    loaded = Spex.load(FOLDER, device="cpu")
    before = loaded.resolve(["water"])[0].threshold
    loaded.config.classes = [{**row, "threshold": 0.9} for row in loaded.config.classes]
    assert before != loaded.resolve(["water"])[0].threshold == 0.9


@pytest.mark.parametrize("name", ["config.json", "lexicon.json", "model.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_file_that_is_cut_off_is_named(copied: Path, name: str, kept: float) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ModelNotFound, match=name):
        StoredModel(copied, "cpu")


def test_files_of_another_kind_of_model_are_refused(copied: Path) -> None:
    (copied / "config.json").write_text('{"model_type": "qwen2"}')
    with pytest.raises(ModelNotFound, match=r"config\.json .* is not of a SPEX model"):
        ModelDescription.read(copied)


def test_a_driver_does_without_pytorch() -> None:
    """It costs seconds of every start, also where there is nothing to do."""
    program = "import sys, pipeline.run, pipeline.cli; print({'torch', 'transformers'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.stdout.strip() == "set()", ended.stderr
