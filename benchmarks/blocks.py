"""What a block costs beyond the bare model: slicing, normalising, blending and deciding against the planner's own time for the same windows.

    python benchmarks/blocks.py [--side 768] [--batch 1] [--model models/spex-small] [--runtime auto] [--data ../shared/data]

The block is made of real pixels (the Sentinel-2 scene of Fort McMurray, repeated where the block is larger) or, where the data is missing, of noise.
The planner is the model's; without `--model` it is a small convolution, next to which overhead shows most. Prints the ratio of the two times.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine import Spex
from engine.blocks import BlockExecutor, device_bytes
from engine.runtimes import Windows, open_planner
from engine.windows import padded_span, window_starts

WINDOW, STRIDE = 320, 256
FILES = {"blue": "B02", "green": "B03", "red": "B04", "nir": "B08", "swir16": "B11"}
MOST, MOST_MS = 1.15, 4.0
CLASSES = ("vegetation", "building", "water", "bare")


class Convolution(nn.Module):
    """A planner that costs next to nothing."""

    def __init__(self, bands: int, classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(bands, classes + 1, 3, padding=1)

    def forward(self, reflectance: Tensor) -> Tensor:
        """Return probabilities (n, K, h, w)."""
        return self.convolution(reflectance.nan_to_num(0)).softmax(1)[:, :-1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=768, help="side of the block without its halo, in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--model", help="folder of a model; without it a small convolution")
    parser.add_argument("--runtime", default="auto", help="what computes the model")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SPEXMAP_DATA", "../shared/data")))
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    planner: Callable[[Tensor], Tensor] = Convolution(len(FILES), len(CLASSES)).to(device)
    if arguments.model:
        windows = Windows(WINDOW, len(FILES), arguments.batch)
        planner = open_planner(Spex.load(arguments.model, device), tuple(FILES), CLASSES, windows, arguments.runtime).planner
    executor = BlockExecutor(planner, len(CLASSES), [0.4] * len(CLASSES), WINDOW, STRIDE, arguments.batch, device)
    first, last = padded_span(0, arguments.side, WINDOW, STRIDE)
    block = real_block(arguments.data, last - first)
    calls = -(-(len(window_starts(0, arguments.side, WINDOW, STRIDE)) ** 2) // arguments.batch)
    chips = torch.from_numpy(block[:, :WINDOW, :WINDOW].astype(np.float32) / 1e4 - 0.1).to(device).expand(arguments.batch, -1, -1, -1).contiguous()
    inner = (0, 0, arguments.side, arguments.side)
    whole, bare = shortest([lambda: executor.segment(block, first, first, inner), lambda: run_bare(planner, chips, calls)], arguments.repeat)
    needed = device_bytes(last - first, len(block), len(CLASSES), arguments.batch, WINDOW, STRIDE) / 2**20
    print(f"{device}, block of {arguments.side} px with halo {last - first}, {calls} calls of batch {arguments.batch}")
    over = 1000 * (whole - bare) / calls / arguments.batch
    print(f"executor {whole:.3f} s, bare planner {bare:.3f} s, ratio {whole / bare:.3f}, {over:.1f} ms a window over it")
    print(f"{needed:.0f} MiB besides the model")
    holds = whole / bare <= MOST or over <= MOST_MS
    print(f"claim, at most {MOST:g} times the bare planner or {MOST_MS:g} ms a window over it: {'ok' if holds else 'FAILED'}")
    return 0 if holds else 1


@torch.inference_mode()
def run_bare(planner: Callable[[Tensor], Tensor], chips: Tensor, calls: int) -> None:
    for _ in range(calls):
        planner(chips)


def shortest(works: Sequence[Callable[[], object]], repeat: int) -> list[float]:
    """Return the shortest of `repeat` times of each work in seconds; they take turns, after one round to warm up."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeat + 1):
        for work, each in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            each.append(time.perf_counter() - started)
    return [min(each[1:]) for each in times]


def real_block(data: Path, side: int) -> NDArray[np.uint16]:
    """Return harmonised numbers (bands, side, side) of a real scene, mirrored to fill the block."""
    folder = data / "scenes/fort-mcmurray-s2/S2_L2A_fort-mcmurray_20190522"
    if not folder.is_dir():
        print(f"no scene at {folder}: the block is noise")
        return np.random.default_rng(0).integers(1000, 6000, (len(FILES), side, side)).astype(np.uint16)
    planes = []
    for file in FILES.values():
        with rasterio.open(folder / f"{file}.tif") as dataset:
            planes.append(np.clip(dataset.read(1).astype(np.int32) + 1000, 1, 65535).astype(np.uint16))
    scene = np.stack(planes)[:, :side, :side]
    return np.pad(scene, ((0, 0), (0, side - scene.shape[1]), (0, side - scene.shape[2])), mode="symmetric")


if __name__ == "__main__":
    sys.exit(main())
