"""TensorRT-RTX engines, built for GPUs that need not be here: how long each takes, how large it is, and which GPUs are refused.

    python benchmarks/engines.py [--models spex-small,vision,spex-1.8b] [--capabilities sm75,sm80,sm86,sm89,sm90,sm100,sm120,sm121]

spex-small has its shipped weights, ten bands, four classes and windows of 320; spex-1.8b random weights, three bands, three classes and windows of
512, for one GPU (sm89); "vision" is its vision tower alone. Each is one graph and one engine, "layers" those that the library read from it. For
machines of 24 GiB spex-1.8b is made in half precision from the start. What is refused and should be (an unknown GPU, bfloat16 before 8.0) says why;
anything else that is refused ends the script with status 1.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from gpu import CLASSES, RGB, TEN, large_planner
from torch import Tensor, nn

from engine import Spex
from engine.configuration import SpexConfig
from engine.errors import EngineBuildFailed, RuntimeUnavailable
from engine.runtimes import Windows, tensorrt
from engine.runtimes.graph import Precision, export_files

LIBRARY = "tensorrt-rtx"
CAPABILITIES = ("sm75", "sm80", "sm86", "sm89", "sm90", "sm100", "sm120", "sm121")
OF_LARGE = "sm89"
NO_LANGUAGE = {**SpexConfig.preset("spex-1.8b").language, "num_hidden_layers": 0}
HALVES = (Precision.FLOAT16, Precision.BFLOAT16)


@dataclass(frozen=True)
class Subject:
    """A graph to be built, for one GPU after the other."""

    name: str
    precision: Precision
    windows: Windows
    planner: Callable[[], nn.Module]
    capabilities: tuple[str, ...]

    def written(self, folder: Path) -> Path:
        """Return the graph's file; the model itself is gone by then."""
        graph = export_files(self.planner(), self.windows, self.precision, folder)  # type: ignore[arg-type]
        gc.collect()
        return graph

    def allows(self, capability: str) -> bool:
        """Return whether an engine must come out of it."""
        return capability in tensorrt.capabilities() and not (self.precision is Precision.BFLOAT16 and capability == "sm75")


class Vision(nn.Module):
    """The part of a planner that only sees: from reflectance to visual tokens."""

    def __init__(self, planner: nn.Module) -> None:
        super().__init__()
        self.model = planner.model
        self.register_buffer("tokens", planner.tokens)

    def forward(self, reflectance: Tensor) -> Tensor:
        """Return tokens (n, N, hidden) of reflectance (n, 3, h, w)."""
        return self.model.see(reflectance, RGB).tokens


def main() -> int:
    """Print a row for each engine and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="spex-small,vision,spex-1.8b")
    parser.add_argument("--capabilities", default=",".join(CAPABILITIES), help="that spex-small is built for")
    arguments = parser.parse_args()
    library = tensorrt.load_library(LIBRARY)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {LIBRARY} {library.__version__}, torch {torch.__version__}")
    print(f"{'model':16} {'precision':9} {'layers':>6} {'export s':>8} {'for':6} {'build s':>8} {'MB':>8}")
    failed = 0
    for subject in subjects(arguments.models.split(","), tuple(arguments.capabilities.split(","))):
        with TemporaryDirectory() as folder:
            started = time.monotonic()
            graph = subject.written(Path(folder))
            spent = time.monotonic() - started
            for capability in subject.capabilities:
                failed += not built(subject, capability, graph, spent)
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB, what is mapped of files included")
    return 1 if failed else 0


def subjects(models: list[str], capabilities: tuple[str, ...]) -> Iterator[Subject]:
    """Yield what is asked for, smallest first."""
    for precision in HALVES:
        if "spex-small" in models:
            windows = Windows(320, len(TEN))
            yield Subject("spex-small", precision, windows, lambda: Spex.load("spex-small", "cpu").planner(TEN, CLASSES), capabilities)
    for precision in HALVES:
        if "vision" in models:
            yield Subject("spex-1.8b vision", precision, Windows(512, 3), partial(vision, precision), (OF_LARGE,))
    for precision in HALVES:
        if "spex-1.8b" in models:
            yield Subject("spex-1.8b", precision, Windows(512, 3), partial(large, precision), (OF_LARGE,))


def large(precision: Precision, **changes: object) -> nn.Module:
    """Return the planner of spex-1.8b with random weights of a precision."""
    with default_type(precision.dtype):
        return large_planner(torch.device("cpu"), **changes)


def vision(precision: Precision) -> nn.Module:
    """Return what sees in `large`."""
    return Vision(large(precision, language=NO_LANGUAGE))


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Let PyTorch make weights in a type."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def built(subject: Subject, capability: str, graph: Path, exported: float) -> bool:
    """Build one engine, print its row and return whether that went as it should."""
    started, expected = time.monotonic(), subject.allows(capability)
    try:
        size, refused = f"{len(tensorrt.build_engine(graph, LIBRARY, capability)) / 1e6:8.1f}", False
    except (EngineBuildFailed, RuntimeUnavailable) as error:
        size, refused = f"{'refused' if not expected else 'FAILED'}: {error}", True
    spent = time.monotonic() - started
    print(f"{subject.name:16} {subject.precision:9} {layers(graph):6d} {exported:8.1f} {capability:6} {spent:8.1f} {size}", flush=True)
    return expected != refused


def layers(graph: Path) -> int:
    """Return how many layers the library makes of a graph."""
    library = tensorrt.load_library(LIBRARY)
    logger = library.Logger(library.Logger.ERROR)
    network = library.Builder(logger).create_network(0)
    if not library.OnnxParser(network, logger).parse_from_file(str(graph)):
        return 0
    return int(network.num_layers)


if __name__ == "__main__":
    sys.exit(main())
