"""How many windows a call has: one on a processor; on a GPU as many as its memory holds beside a block, planned before anything runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from engine.blocks import device_bytes
from engine.description import ClassQuery
from engine.errors import TooLittleMemory
from engine.stored import PlannerSource

MOST = 32
"""Windows a call; more were not measured to be faster anywhere."""
SHARE = 0.8
"""Of the free memory; the rest is for what libraries keep for themselves."""


def calibrated_batch(model: PlannerSource, bands: Sequence[str], classes: Sequence[str | ClassQuery], window: int, stride: int, block: int) -> int:
    """Return windows a call, a power of two: part of the numerical identity, so found once a run and kept with it.

    Parameters
    ----------
    model
        For the device that is to compute.
    block
        Side of a block with its halo, in pixels.

    Raises
    ------
    TooLittleMemory
        Not even one window fits beside the block.
    """
    device = torch.device(model.device)
    if device.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(device)
    used = _activation_bytes(model, bands, classes, window, device)
    return largest_batch(int(free * SHARE), block, len(bands), len(classes), window, stride, used)


def largest_batch(free: int, block: int, bands: int, classes: int, window: int, stride: int, activations: int) -> int:
    """Return the largest power of two up to `MOST` of windows that `free` bytes hold beside a block; raises `TooLittleMemory`."""
    needed = [device_bytes(block, bands, classes, batch, window, stride, activations) for batch in (1 << i for i in range(MOST.bit_length()))]
    fitting = [i for i, size in enumerate(needed) if size <= free]
    if not fitting:
        raise TooLittleMemory(
            f"a block of {block} pixels with {bands} bands and {classes} classes needs {needed[0] / 2**30:.1f} GiB on the device, "
            f"of which {free / 2**30:.1f} may be used: lower --block, or free the device"
        )
    return 1 << max(fitting)


def _activation_bytes(model: PlannerSource, bands: Sequence[str], classes: Sequence[str | ClassQuery], window: int, device: torch.device) -> int:
    """Return what PyTorch takes for one window in float32: more than any compiled runtime does."""
    planner = model.planner(bands, classes)
    chip = torch.full((1, len(bands), window, window), 0.1, device=device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        with torch.inference_mode():
            planner(chip)
    except torch.OutOfMemoryError as error:
        raise TooLittleMemory(f"one window of {window} pixels does not fit the device: free it, or take a smaller model ({error})") from error
    return torch.cuda.max_memory_allocated(device) - before
