"""OpenVINO: a planner's graph compiled for the processor."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import EngineBuildFailed, RuntimeUnavailable
from engine.runtimes.graph import Precision

_HINTS = {Precision.FLOAT32: "f32", Precision.BFLOAT16: "bf16", Precision.FLOAT16: "f16"}


@cache
def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise RuntimeUnavailable(f"OpenVINO cannot be loaded ({error}): pip install 'spexmap[openvino]', or ask for the runtime torch") from error
    return openvino.Core()


def is_installed() -> bool:
    """Return whether OpenVINO can be loaded here."""
    try:
        _core()
    except RuntimeUnavailable:
        return False
    return True


def version() -> str:
    """Return OpenVINO's version; raises `RuntimeUnavailable` where it is not installed."""
    return str(_core().get_versions("CPU")["CPU"].build_number)


def best_precision() -> Precision:
    """Return bfloat16 where this processor computes in it, else float32."""
    return Precision.BFLOAT16 if "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else Precision.FLOAT32


class OpenVinoPlanner:
    """A compiled planner on the CPU.

    Parameters
    ----------
    graph
        What `engine.runtimes.graph.export_graph` gives, in float32: OpenVINO lowers the precision itself, keeping what must not lose digits.
    precision
        In what to compute.
    threads
        Of one call; they are not pinned to cores, for several planners may share a machine.
    """

    def __init__(self, graph: bytes, precision: Precision, threads: int) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        core = _core()
        try:
            self._request = core.compile_model(core.read_model(graph, b""), "CPU", options).create_infer_request()
        except RuntimeError as error:
            raise EngineBuildFailed(f"OpenVINO refused the graph: {error}") from error
        self.device = torch.device("cpu")

    def __call__(self, reflectance: Tensor) -> Tensor:
        """Return probabilities (n, K, h, w) float32 of reflectance (n, C, h, w) float32, NaN = no data, of the shape that the graph was made for."""
        answer = self._request.infer({0: np.ascontiguousarray(reflectance.numpy())}, share_inputs=True)
        return torch.from_numpy(answer[0])
