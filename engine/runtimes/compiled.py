"""PyTorch's own compiler: a planner in half precision, traced whole, with CUDA graphs on a GPU. For GPUs without TensorRT."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException
from torch._inductor.exc import InductorError

from engine.errors import EngineBuildFailed
from engine.planner import Planner
from engine.runtimes.cuda_graph import captured
from engine.runtimes.graph import InPrecision, Precision, Windows


class CompiledPlanner:
    """A planner compiled for one shape; compiling takes a minute.

    Parameters
    ----------
    planner
        On the device, in float32.
    windows
        The shape of every call.
    precision
        Of the weights and of what is computed with them.
    device
        Where the planner is.

    Raises
    ------
    EngineBuildFailed
        The compiler, or what it needs (a C++ compiler for processors, Triton for GPUs), is missing or refused the graph.
    """

    def __init__(self, planner: Planner, windows: Windows, precision: Precision, device: torch.device) -> None:
        module = InPrecision(planner, precision).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        example = torch.full(windows.shape, 0.1, device=device)
        try:
            with torch.no_grad():
                traced = torch.export.export(module, (example,), strict=False).module()
            self._compiled: Callable[[Tensor], Tensor] = torch.compile(traced, fullgraph=True, dynamic=False)
            self(example)
            if device.type == "cuda":
                # PyTorch's own mode for this keeps graphs for each thread, and blocks are computed in two.
                self._compiled = captured(self._compiled, example)
        except (BackendCompilerFailed, TorchDynamoException, InductorError, RuntimeError, ImportError) as error:
            tool = "Triton" if device.type == "cuda" else "a C++ compiler such as g++"
            raise EngineBuildFailed(f"PyTorch's compiler, which needs {tool}, failed: {str(error).strip().splitlines()[0]}") from error

    def __call__(self, reflectance: Tensor) -> Tensor:
        """Return probabilities (n, K, h, w) float32 of reflectance (n, C, h, w) float32, NaN = no data; overwritten by the next call."""
        with torch.inference_mode():
            return self._compiled(reflectance)
