"""Pixels a second of both presets on a CUDA machine, path by path, each held against eager float32 first.

    python benchmarks/gpu.py [--batch 32] [--side 2560] [--repeat 20] [--presets spex-small,spex-1.8b]

Needs PyTorch with CUDA; the TensorRT paths also need ``tensorrt`` or ``tensorrt-rtx``, onnx and onnxscript, and are left out with a word where they
are missing. No network, no data: pixels are random reflectance. spex-small has its shipped weights, spex-1.8b random ones. Pixels are those of the
map: a window of 320 counts for 256 x 256, one of 512 for 384 x 384, since windows overlap. The row "block" is decoded uint16 blocks of ten bands in
host memory to class planes in host memory; "busy" is the share of that time that the model alone takes.
`--device cpu --batch 1 --side 256 --repeat 1` tries the script itself.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from engine import Spex
from engine.blocks import BlockExecutor
from engine.configuration import SpexConfig
from engine.modeling import Prompts, SpexForLandCover
from engine.planner import Planner
from engine.runtimes import Choice, EngineBuildFailed, RuntimeUnavailable, Windows, cached_engine, tensorrt
from engine.runtimes.compiled import CompiledPlanner
from engine.runtimes.cuda_graph import captured
from engine.runtimes.graph import InPrecision, Precision, export_files
from engine.windows import padded_span, window_starts

TEN = ("blue", "green", "red", "rededge071", "rededge075", "rededge078", "nir", "nir08", "swir16", "swir22")
RGB = ("red", "green", "blue")
CLASSES = ("vegetation", "building", "water", "bare")
PATHS = Callable[[Tensor], Tensor]
BLOCKS = 4
MARGIN, LEAST_SAME = 0.05, 0.9995
"""Where the two best classes are farther apart, a path with trained weights must give the class of eager float32 at so many of the pixels."""


@dataclass(frozen=True)
class Subject:
    """A model to be timed."""

    name: str
    planner: Planner
    bands: int
    window: int
    stride: int
    batch: int
    half: Precision
    spex: Spex | None
    """None: no shipped weights."""

    def chips(self, device: torch.device) -> Tensor:
        """Return random reflectance of one batch, the same every time."""
        numbers = torch.rand(self.batch, self.bands, self.window, self.window, generator=torch.Generator().manual_seed(0))
        return (0.02 + 0.4 * numbers).to(device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="spex-small,spex-1.8b")
    parser.add_argument("--batch", type=int, default=32, help="windows a call of spex-small; spex-1.8b has an eighth")
    parser.add_argument("--side", type=int, default=2560, help="side of the block without its halo")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: nothing to measure (--device cpu --batch 1 --side 256 --repeat 1 tries the script itself)")
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{machine}; torch {torch.__version__}, CUDA {torch.version.cuda}; {torch.get_num_threads()} threads")
    print(f"{'preset':10} {'path':26} {'ms a batch':>10} {'Mpx/s':>8} {'same class':>10}")
    wrong: list[str] = []
    for name in arguments.presets.split(","):
        subject = small(device, arguments.batch) if name == "spex-small" else large(device, max(1, arguments.batch // 8))
        fastest, failed = time_paths(subject, device, arguments.repeat)
        wrong += failed
        if subject.spex is not None:
            time_block(subject, fastest, device, arguments.side, max(1, arguments.repeat // 5))
    return 1 if wrong else 0


def small(device: torch.device, batch: int) -> Subject:
    """Return spex-small with its shipped weights."""
    spex = Spex.load("spex-small", str(device))
    return Subject("spex-small", spex.planner(TEN, CLASSES), len(TEN), 320, 256, batch, Precision.FLOAT16, spex)


def large(device: torch.device, batch: int) -> Subject:
    """Return spex-1.8b with random weights, three classes asked in words of random tokens."""
    return Subject("spex-1.8b", large_planner(device), 3, 512, 384, batch, Precision.BFLOAT16, None)


def large_planner(device: torch.device, **changes: object) -> Planner:
    """Return the planner of `large`, in PyTorch's default type; `changes` are of its configuration."""
    torch.manual_seed(0)
    with device:
        model = SpexForLandCover(SpexConfig.preset("spex-1.8b", **changes)).eval()
        for name, parameter in model.named_parameters():
            if "deform.offset" in name or "deform.mask" in name:  # zero at first, where every pixel is sampled at its own place
                torch.nn.init.normal_(parameter, std=0.05)
    tokens = torch.randint(1000, 100_000, (1, 3, 48))
    everywhere, answer = torch.ones_like(tokens, dtype=torch.bool), torch.arange(48).expand(1, 3, 48) >= 40
    prompts = Prompts(tokens, everywhere, answer, torch.full((1, 3), 39), torch.full_like(tokens, -100))
    return Planner(model, prompts, RGB).eval().to(device)


@torch.inference_mode()
def time_paths(subject: Subject, device: torch.device, repeat: int) -> tuple[PATHS, list[str]]:
    """Print a row for each path; return the fastest of those that give the map of the reference, and the names of those that do not."""
    chips = subject.chips(device)
    reference = subject.planner(chips)
    expected, (first, second) = reference.argmax(1), reference.topk(2, 1).values.unbind(1)
    clear, wrong = first - second > MARGIN, []
    best: tuple[float, PATHS] = (float("inf"), subject.planner)
    for name, make in paths(subject, device):
        try:
            path = make()
            same = path(chips).argmax(1) == expected
            spent = median_seconds(lambda path=path: path(chips), device, repeat)
        except (RuntimeUnavailable, EngineBuildFailed) as error:
            print(f"{subject.name:10} {name:26} left out: {error}")
            continue
        except RuntimeError as error:
            print(f"{subject.name:10} {name:26} failed: {(str(error).strip() or type(error).__name__).splitlines()[0][:90]}")
            continue
        row(subject.name, name, spent, subject.batch * subject.stride**2, f"{same.double().mean().item():.6f}")
        if subject.spex is not None and same[clear].double().mean() < LEAST_SAME:
            print(f"{subject.name:10} {name:26} FAILED: it gives another map where the classes are clear")
            wrong.append(name)
            continue
        best = min(best, (spent, path), key=lambda each: each[0])
    return best[1], wrong


def paths(subject: Subject, device: torch.device) -> Iterator[tuple[str, Callable[[], PATHS]]]:
    """Yield every way to compute the model that there is here, by name, and what makes it."""
    windows = Windows(subject.window, subject.bands, subject.batch)
    half = InPrecision(subject.planner, subject.half).eval()
    yield "eager float32", lambda: subject.planner
    yield f"eager {subject.half}", lambda: half
    yield f"compiled {subject.half}", lambda: CompiledPlanner(subject.planner, windows, subject.half, device)
    if device.type != "cuda":
        return
    yield f"CUDA graph {subject.half}", lambda: captured(half, subject.chips(device))
    for name in ("tensorrt", "tensorrt-rtx"):
        yield f"{name} {subject.half}", partial(engine_planner, subject, name, windows, device)


def engine_planner(subject: Subject, name: str, windows: Windows, device: torch.device) -> PATHS:
    """Return the planner of a TensorRT engine of the whole model."""
    if subject.spex is not None:
        engine, _ = cached_engine(subject.spex, TEN, CLASSES, windows, Choice(name, subject.half, "measured"))
    else:
        with TemporaryDirectory() as folder:
            graph = export_files(copy.deepcopy(subject.planner).cpu(), windows, subject.half, Path(folder))
            capability = "sm{}{}".format(*torch.cuda.get_device_capability(device)) if name == "tensorrt-rtx" else None
            engine = tensorrt.build_engine(graph, name, capability)
    return tensorrt.TensorRTPlanner(engine, name, windows.shape, device)


@torch.inference_mode()
def time_block(subject: Subject, planner: PATHS, device: torch.device, side: int, repeat: int) -> None:
    """Print the row of the whole block, through the fastest path."""
    executor = BlockExecutor(planner, len(CLASSES), [0.3] * len(CLASSES), subject.window, subject.stride, subject.batch, device)
    first, last = padded_span(0, side, subject.window, subject.stride)
    block = np.random.default_rng(0).integers(1200, 5000, (subject.bands, last - first, last - first)).astype(np.uint16)

    def blocks() -> None:
        list(threads.map(lambda _: executor.segment(block, first, first, (0, 0, side, side)), range(BLOCKS)))

    # As in an actor: of two threads one prepares and uploads while the other computes.
    with ThreadPoolExecutor(2) as threads:
        whole = median_seconds(blocks, device, repeat) / BLOCKS
    calls = -(-(len(window_starts(0, side, subject.window, subject.stride)) ** 2) // subject.batch)
    chips = subject.chips(device)
    bare = median_seconds(lambda: [planner(chips) for _ in range(calls)], device, repeat)
    row(subject.name, f"block {side} px", whole, side**2, "")
    print(f"{subject.name:10} {'':26} busy {100 * bare / whole:.0f} %")


def row(preset: str, path: str, spent: float, pixels: int, same: str) -> None:
    print(f"{preset:10} {path:26} {1000 * spent:10.1f} {pixels / spent / 1e6:8.2f} {same:>10}", flush=True)


def median_seconds(work: Callable[[], object], device: torch.device, repeat: int) -> float:
    """Return the median time of a call, all of it done, after two to warm up."""
    times = []
    for _ in range(repeat + 2):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[2:])


if __name__ == "__main__":
    sys.exit(main())
