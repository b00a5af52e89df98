"""A call of fixed shape on a GPU as one CUDA graph: captured once, replayed from any thread, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3


def captured(call: Callable[[Tensor], Tensor], example: Tensor) -> Callable[[Tensor], Tensor]:
    """Return `call` as a graph.

    Parameters
    ----------
    call
        Of one tensor on the device; what it allocates or compiles on its first use is done before the capture.
    example
        Of the shape and type of every call, on the device.

    Returns
    -------
    Callable
        Copies its input and returns the same tensor each time, overwritten by the next call.

    Raises
    ------
    RuntimeError
        It does something that cannot be captured.
    """
    given, aside = example.clone(), torch.cuda.Stream(example.device)  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream(example.device))
    with torch.inference_mode(), torch.cuda.stream(aside):
        for _ in range(WARM_UPS):
            call(given)
    torch.cuda.current_stream(example.device).wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        answer = call(given)

    def replay(x: Tensor) -> Tensor:
        given.copy_(x)
        graph.replay()
        return answer

    return replay
