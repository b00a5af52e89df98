"""An actor whose graph is in the node's cache starts without the libraries of the model's weights, and computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import Spex
from engine.runtimes import Windows, open_planner
from engine.stored import StoredModel

BANDS = ("blue", "green", "red", "nir")
CHIP = torch.linspace(0, 0.4, 4 * 64 * 64).reshape(1, 4, 64, 64)
PROGRAM = """
import json, sys, torch
from engine.runtimes import Windows, open_planner
from engine.stored import StoredModel
opened = open_planner(StoredModel("models/spex-small", "cpu"), ["blue", "green", "red", "nir"], ["water"], Windows(64, 4), "openvino", 1)
answer = opened.planner(torch.linspace(0, 0.4, 4 * 64 * 64).reshape(1, 4, 64, 64))
print(json.dumps([sorted({"transformers", "torch._dynamo"} & set(sys.modules)), answer.tolist()]))
"""


def test_a_kept_graph_needs_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    monkeypatch.setenv("SPEXMAP_CACHE", str(tmp_path))
    built = open_planner(StoredModel("models/spex-small", "cpu"), BANDS, ["water"], Windows(64, 4), "openvino", 1)
    ended = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert ended.returncode == 0, ended.stderr
    loaded, answer = json.loads(ended.stdout.splitlines()[-1])
    assert loaded == []
    np.testing.assert_array_equal(np.float32(answer), built.planner(CHIP).numpy())


def test_its_planner_is_that_of_the_loaded_model() -> None:
    models = (StoredModel("models/spex-small", "cpu"), Spex.load("models/spex-small", "cpu"))
    with torch.inference_mode():
        stored, loaded = (model.planner(BANDS, ["water"])(CHIP) for model in models)
    torch.testing.assert_close(stored, loaded, rtol=0, atol=0)


def test_an_identity_is_plain_text() -> None:
    """A subclass of PyTorch's in it makes every process that reads it load PyTorch."""
    opened = open_planner(StoredModel("models/spex-small", "cpu"), BANDS, ["water"], Windows(64, 4), "torch", 1)
    assert {type(value) for value in opened.identity.values()} == {str}
