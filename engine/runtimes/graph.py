"""From a planner to one ONNX graph: everything from reflectance to probabilities, for a fixed batch of fixed windows."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engine.errors import EngineBuildFailed, RuntimeUnavailable

if TYPE_CHECKING:
    from engine.planner import Planner

OPSET = 20
MOST_BYTES = 2**31 - 2**24
"""Of weights; one ONNX file holds 2 GiB."""


class Precision(StrEnum):
    """In what numbers a graph computes; probabilities come out as float32 in any case."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def dtype(self) -> torch.dtype:
        """PyTorch's type."""
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.value]


def best_precision(device: torch.device) -> Precision:
    """Return bfloat16 on processors and on GPUs that compute in it (8.0 and newer), else float16."""
    old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return Precision.FLOAT16 if old else Precision.BFLOAT16


@dataclass(frozen=True)
class Windows:
    """The fixed shape that a graph is made for."""

    side: int
    """Pixels; a multiple of the model's stride."""
    bands: int
    batch: int = 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (n, C, h, w) of the input."""
        return (self.batch, self.bands, self.side, self.side)


class InPrecision(nn.Module):
    """A planner whose weights are of a lower precision: float32 reflectance in, float32 probabilities out.

    What must not lose digits stays in float32 within the graph: the stem's inputs, the sampling of deformable convolutions, the softmax over classes.
    """

    def __init__(self, planner: Planner, precision: Precision) -> None:
        super().__init__()
        self.planner = copy.deepcopy(planner).to(precision.dtype) if precision is not Precision.FLOAT32 else planner

    def forward(self, reflectance: Tensor) -> Tensor:
        """Return probabilities (n, K, h, w) float32 of reflectance (n, C, h, w) float32, NaN = no data."""
        return self.planner(reflectance).float()  # type: ignore[no-any-return]


def fits_one_file(planner: Planner, precision: Precision) -> bool:
    """Return whether one ONNX file can hold the planner's weights in a precision."""
    return sum(each.numel() for each in (*planner.parameters(), *planner.buffers())) * precision.dtype.itemsize <= MOST_BYTES


def export_graph(planner: Planner, windows: Windows, precision: Precision = Precision.FLOAT32) -> bytes:
    """Return a planner as ONNX (opset 20), input ``reflectance``, output ``probabilities``.

    Parameters
    ----------
    planner
        On the CPU, in float32.
    windows
        The shape that is baked in.
    precision
        Of the weights and of what is computed with them.

    Raises
    ------
    RuntimeUnavailable
        onnx or onnxscript is not installed.
    EngineBuildFailed
        The graph cannot be exported, or is larger than the 2 GiB that one ONNX file can hold.
    """
    if not fits_one_file(planner, precision):
        raise EngineBuildFailed(
            "the model's weights are larger than the 2 GiB that one ONNX file holds: ask for tensorrt, tensorrt-rtx or torch-compile"
        )
    return bytes(_program(planner, windows, precision).model_proto.SerializeToString())


def export_files(planner: Planner, windows: Windows, precision: Precision, folder: Path) -> Path:
    """Write what `export_graph` gives, whatever its size, with the weights in a file beside it; return the path of the graph."""
    path = folder / "graph.onnx"
    _program(planner, windows, precision).save(path, external_data=True)
    return path


def _program(planner: Planner, windows: Windows, precision: Precision) -> torch.onnx.ONNXProgram:
    module = InPrecision(planner, precision).eval()
    example = torch.full(windows.shape, 0.1)
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module, (example,), dynamo=True, opset_version=OPSET, verbose=False, input_names=["reflectance"], output_names=["probabilities"]
            )
    except ImportError as error:
        raise RuntimeUnavailable(f"graphs cannot be exported ({error}): pip install onnx onnxscript, or ask for the runtime torch") from error
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise EngineBuildFailed(f"the model cannot be exported as ONNX: {(str(error).strip() or type(error).__name__).splitlines()[0]}") from error
    assert program is not None
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter tells of itself, hundreds of lines a graph."""
    tellers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir", "onnxscript")]
    levels = [teller.level for teller in tellers]
    try:
        for teller in tellers:
            teller.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for teller, level in zip(tellers, levels, strict=True):
            teller.setLevel(level)
