"""From a planner to one ONNX graph: everything from reflectance to probabilities, for a fixed batch of fixed windows.

One file holds 2 GiB: the weights of a larger model lie beside its graph, in a second file.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from engine.errors import EngineBuildFailed, RuntimeUnavailable
from engine.processors import computes_in_bfloat16

if TYPE_CHECKING:
    from engine.planner import Planner

OPSET = 20
MOST_BYTES = 2**31 - 2**24
"""Of weights; one ONNX file holds 2 GiB."""
Graph = bytes | Path
"""An ONNX graph: what is in its one file, or the path of a file beside which its weights lie."""


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
    """Return bfloat16 where the device computes in it, else float16 on GPUs and float32 on processors."""
    if computes_in_bfloat16(device):
        return Precision.BFLOAT16
    return Precision.FLOAT16 if device.type == "cuda" else Precision.FLOAT32


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
        from engine.runtimes.convolved import without_transposed

        super().__init__()
        self.planner = planner
        if precision is not Precision.FLOAT32:
            self.planner = _copied(planner, precision.dtype)
            without_transposed(self.planner)

    def forward(self, reflectance: Tensor) -> Tensor:
        """Return probabilities (n, K, h, w) float32 of reflectance (n, C, h, w) float32, NaN = no data."""
        return self.planner(reflectance).float()  # type: ignore[no-any-return]


def of_words_asked(planner: Planner) -> Planner:
    """Return a copy of a planner, sharing its weights, that knows no words but those of its prompts.

    The numbers are the same; a language model's table of words can be an eighth of the weights of a graph.
    """
    copied = _copied(planner, None)
    config, embeddings, tokens = copied.model.config, copied.model.language.get_input_embeddings(), copied.get_buffer("tokens")
    assert isinstance(embeddings, nn.Embedding)
    before = torch.tensor(list(config.preamble), dtype=torch.long)
    words, places = torch.unique(torch.cat([before, tokens.flatten()]), return_inverse=True)
    embeddings.weight, embeddings.padding_idx = nn.Parameter(embeddings.weight.detach()[words]), None
    config.preamble = places[: len(before)].tolist()
    copied.tokens = places[len(before) :].reshape(tokens.shape)
    return copied


def _copied(planner: Planner, dtype: torch.dtype | None) -> Planner:
    """Return a copy whose weights are of a type; None: the very same. There is no second set of them in the old type, even for a moment."""
    weights: dict[int, Any] = {id(each): nn.Parameter(_converted(each.detach(), dtype), each.requires_grad) for each in planner.parameters()}
    weights |= {id(each): _converted(each, dtype) for each in planner.buffers()}
    return copy.deepcopy(planner, weights)


def _converted(numbers: Tensor, dtype: torch.dtype | None) -> Tensor:
    return numbers.to(dtype) if numbers.is_floating_point() else numbers


def fits_one_file(planner: Planner, precision: Precision) -> bool:
    """Return whether one ONNX file can hold the planner's weights in a precision."""
    return weight_bytes(planner, precision) <= MOST_BYTES


def weight_bytes(planner: Planner, precision: Precision) -> int:
    """Return what a planner's weights take in a precision."""
    numbers = (*planner.parameters(), *planner.buffers())
    return sum(each.numel() * (precision.dtype if each.is_floating_point() else each.dtype).itemsize for each in numbers)


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
        size = f"{weight_bytes(planner, precision) / 2**30:.1f} GiB"
        raise EngineBuildFailed(
            f"the weights take {size}, more than the 2 GiB that one ONNX file holds: ask for tensorrt, tensorrt-rtx or torch-compile"
        )
    return bytes(_program(planner, windows, precision).model_proto.SerializeToString())


def export_files(planner: Planner, windows: Windows, precision: Precision, folder: Path) -> Path:
    """Write what `export_graph` gives, whatever its size, with the weights in a file beside it; return the path of the graph.

    Raises
    ------
    RuntimeUnavailable, EngineBuildFailed
        As for `export_graph`; also where there is no room for the files.
    """
    path, program = folder / "graph.onnx", _program(planner, windows, precision)
    try:
        program.save(path, external_data=True)
    except OSError as error:
        size = f"{weight_bytes(planner, precision) / 2**30:.1f} GiB"
        raise EngineBuildFailed(f"a graph with {size} of weights cannot be written in {folder}: {error.strerror or error}") from error
    return path


def _program(planner: Planner, windows: Windows, precision: Precision) -> torch.onnx.ONNXProgram:
    module, example = InPrecision(of_words_asked(planner), precision).eval(), torch.full(windows.shape, 0.1)
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
