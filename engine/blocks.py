"""From a block of harmonised numbers to land cover and confidence, all of it on the device.

The block goes to the device once, while the one before it is computed. Windows are views of it; they are normalised batch by batch, the planner
gives probabilities, these are rounded to uint16 and added up with integer weights, and the winner is chosen there too. Four uint8 planes come back.
Sums of integers do not depend on their order and windows lie on a global lattice, so a pixel gets the same answer whichever block computed it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.errors import PlannerFailed
from engine.windows import blend_total, blend_weights, padded_span

NO_DATA, OTHER, NO_CONFIDENCE = 0, 255, 255
"""Codes of the planes: land cover without data, land cover that is none of the classes, confidence without data."""
FULL = 65535
"""A probability of one as uint16."""
_STRIP = 512


@dataclass(frozen=True)
class Planes:
    """What a block becomes."""

    landcover: NDArray[np.uint8]
    """(h, w), 1..K in the order of the classes, 255 other, 0 no data."""
    confidence: NDArray[np.uint8]
    """(h, w), percent 0..100 of the winner (of other: one minus the highest), 255 no data."""
    runner_up: NDArray[np.uint8]
    """(h, w), 1..K: the class with the second highest probability (lowest on ties); 0 no data, or only one class."""
    margin: NDArray[np.uint8]
    """(h, w), whole percent 0..100 by which the second lies below the highest, rounded down."""


class BlockExecutor:
    """Runs one planner over blocks. Several threads may call `segment`: one computes while the others' blocks go to the device.

    Parameters
    ----------
    planner
        Maps (n, C, window, window) float32 reflectance with NaN = no data to (n, K, window, window) float32 probabilities 0..1, on `device`: a
        `Planner`, or what `engine.runtimes` makes of one.
    n_classes
        K, at most 254.
    thresholds
        K probabilities: where no class reaches its own, the pixel is other.
    window, stride
        In pixels; stride at most window.
    batch
        Windows a call of the planner; the last call is filled up, so that the planner always sees this shape. Keep 1 on a CPU.
    device
        Where to compute; by default where the parameters of a PyTorch planner are, else the CPU.

    Raises
    ------
    ValueError
        For sizes or thresholds that do not fit each other.
    """

    def __init__(
        self,
        planner: Callable[[Tensor], Tensor],
        n_classes: int,
        thresholds: Sequence[float],
        window: int = 320,
        stride: int = 256,
        batch: int = 1,
        device: str | torch.device | None = None,
    ) -> None:
        if not 0 < n_classes < OTHER or len(thresholds) != n_classes:
            raise ValueError(f"{n_classes} classes with {len(thresholds)} thresholds: give 1 to 254 classes and one threshold for each")
        if batch < 1:
            raise ValueError(f"batch {batch}: at least one window a batch")
        self.planner, self.n_classes, self.window, self.stride, self.batch = planner, n_classes, window, stride, batch
        self.device = torch.device(device) if device is not None else _device_of(planner)
        weight = blend_total(window, stride) ** 2
        self._total = FULL * weight
        # Rounded down as a uint16 probability is, so that a probability equal to its threshold reaches it.
        self._thresholds = [int(threshold * FULL) * weight for threshold in thresholds]
        axis = torch.from_numpy(blend_weights(window, stride)).to(self.device, _sum_dtype(window, stride))
        self._weights = axis[:, None] * axis[None, :]
        self._computing = threading.Lock()

    @torch.inference_mode()
    def segment(self, block: NDArray[np.uint16], top: int, left: int, inner: tuple[int, int, int, int]) -> Planes:
        """Return land cover and confidence of `inner`.

        Parameters
        ----------
        block
            uint16 (C, H, W): round((reflectance + 0.1) * 10000) in 1..65535, 0 no data; covers at least `padded_span` of `inner` on both axes.
        top, left
            Global pixel index of ``block[:, 0, 0]``.
        inner
            Global (top, left, bottom, right) of the pixels wanted.

        Raises
        ------
        ValueError
            Where the block does not cover what the windows of `inner` need.
        PlannerFailed
            Where a probability of a pixel with data is not a number.
        """
        if inner[0] >= inner[2] or inner[1] >= inner[3]:
            empty = np.zeros((max(inner[2] - inner[0], 0), max(inner[3] - inner[1], 0)), np.uint8)
            return Planes(empty, empty.copy(), empty.copy(), empty.copy())
        rows, columns = self._span(inner[0], inner[2]), self._span(inner[1], inner[3])
        padded = _cut(block, rows[0] - top, rows[1] - top, columns[0] - left, columns[1] - left)
        crop = slice(inner[0] - rows[0], inner[2] - rows[0]), slice(inner[1] - columns[0], inner[3] - columns[0])
        numbers = self._upload(torch.from_numpy(np.ascontiguousarray(padded).view(np.int16)))
        with self._computing:
            valid = (numbers != 0).any(0)
            return self._decide(self._blend(numbers, valid)[:, *crop], valid[crop])

    def _upload(self, numbers: Tensor) -> Tensor:
        """Return the numbers on the device; to a GPU they go from pinned memory on a stream of their own, beside what it computes."""
        if self.device.type != "cuda":
            return numbers.to(self.device)
        beside = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(beside):
            there = numbers.pin_memory().to(self.device, non_blocking=True)
        beside.synchronize()
        there.record_stream(torch.cuda.current_stream(self.device))
        return there

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        return padded_span(start, stop, self.window, self.stride)

    def _blend(self, numbers: Tensor, valid: Tensor) -> Tensor:
        """Return the weighted sums of probabilities, integer (K, H, W), of numbers int16 (C, H, W) (uint16 bits) on the device."""
        sums = torch.zeros((self.n_classes, *valid.shape), dtype=self._weights.dtype, device=self.device)
        failed = torch.zeros((), dtype=torch.bool, device=self.device)
        views = self._views(numbers)
        of_valid = self._views(valid)
        for corners in _batched(self._windows_with_data(valid), self.batch):
            filled = corners + corners[-1:] * (self.batch - len(corners))
            chips = torch.stack([views[:, row, column] for row, column in filled])
            probabilities = self.planner(_reflectance(chips))[: len(corners)]
            # What is not a number at a pixel without data becomes some integer, which nothing reads.
            rounded = (probabilities.float() * FULL).round_().clamp_(0, FULL).to(sums.dtype)
            unknown = probabilities.sum(1).isnan()
            for (row, column), chip, lost in zip(corners, rounded, unknown, strict=True):
                failed |= (lost & of_valid[row, column]).any()
                y, x = row * self.stride, column * self.stride
                sums[:, y : y + self.window, x : x + self.window].addcmul_(chip, self._weights)
        if failed.item():
            raise PlannerFailed("the model gave probabilities that are not numbers for pixels with data: check the weights, or run it in float32")
        return sums

    def _views(self, planes: Tensor) -> Tensor:
        """Return (..., rows, columns, window, window): every window of (..., H, W) as a view."""
        return planes.unfold(-2, self.window, self.stride).unfold(-2, self.window, self.stride)

    def _windows_with_data(self, valid: Tensor) -> list[tuple[int, int]]:
        """Return row and column on the block's lattice of the windows that hold a pixel with data."""
        occupied = torch.stack([row.any(-1).any(-1) for row in self._views(valid)])
        return [(int(row), int(column)) for row, column in occupied.nonzero().cpu()]

    def _decide(self, sums: Tensor, valid: Tensor) -> Planes:
        strips = [self._decide_strip(sums[:, y : y + _STRIP], valid[y : y + _STRIP]) for y in range(0, valid.shape[0], _STRIP)]
        return Planes(*(torch.cat(planes).cpu().numpy() for planes in zip(*strips, strict=True)))

    def _decide_strip(self, sums: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Compared one class at a time: argmax does not promise which of two equal maxima it gives.
        best, passes = torch.full_like(sums[0], -1), torch.zeros(valid.shape, dtype=torch.bool, device=self.device)
        landcover = torch.zeros(valid.shape, dtype=torch.uint8, device=self.device)
        second, runner_up = best.clone(), landcover.clone()
        for code, (plane, threshold) in enumerate(zip(sums, self._thresholds, strict=True), start=1):
            better = plane > best
            runner_up = torch.where(better, landcover, runner_up.masked_fill(plane > second, code))
            second = torch.where(better, best, torch.maximum(second, plane))
            landcover.masked_fill_(better, code)
            best = torch.maximum(best, plane)
            passes |= plane >= threshold
        landcover.masked_fill_(~passes, OTHER)
        # Exact in float64, which divides many times faster than int64: quotients lie at least 2**-31 from the next whole number, or on it.
        share = torch.where(passes, best, self._total - best).double()
        confidence = share.mul_(100).add_(self._total // 2).div_(self._total).to(torch.uint8)
        margin = (best - second.clamp_(min=0)).double().mul_(100).div_(self._total).to(torch.uint8)
        return (
            landcover.masked_fill(~valid, NO_DATA),
            confidence.masked_fill(~valid, NO_CONFIDENCE),
            runner_up.masked_fill(~valid, NO_DATA),
            margin.masked_fill(~valid, 0),
        )


def device_bytes(side: int, bands: int, classes: int, batch: int = 1, window: int = 320, stride: int = 256, activations: int = 0) -> int:
    """Return about how many bytes of device memory a block needs.

    Parameters
    ----------
    side
        Side of the block with its halo, in pixels.
    activations
        Bytes that the planner itself uses for one window.
    """
    sums = 8 if _sum_dtype(window, stride) is torch.int64 else 4
    block = side**2 * (2 * bands * 2 + sums * classes + 2)
    return block + batch * (4 * bands * window**2 + 4 * classes * window**2 + activations)


def _sum_dtype(window: int, stride: int) -> torch.dtype:
    """Return int32 where the largest sum fits it (overlaps of up to 180 pixels), else int64; percent fits int64 for any window under a million."""
    return torch.int32 if FULL * blend_total(window, stride) ** 2 < 2**31 else torch.int64


def _device_of(planner: Callable[[Tensor], Tensor]) -> torch.device:
    parameter = next(planner.parameters(), None) if isinstance(planner, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _cut(block: NDArray[np.uint16], top: int, bottom: int, left: int, right: int) -> NDArray[np.uint16]:
    if block.ndim != 3 or block.dtype != np.uint16:
        raise ValueError(f"block is {block.dtype} {block.shape}: give uint16 (bands, rows, columns)")
    if top < 0 or left < 0 or bottom > block.shape[1] or right > block.shape[2]:
        missing = f"rows {top}..{bottom} of {block.shape[1]}, columns {left}..{right} of {block.shape[2]}"
        raise ValueError(f"the windows need {missing} of the block: read it over padded_span of the inner pixels")
    return block[:, top:bottom, left:right]


def _reflectance(numbers: Tensor) -> Tensor:
    """Return float32 reflectance, NaN where there is no data, of int16 tensors that carry the bits of uint16 numbers."""
    return numbers.view(torch.uint16).float().sub_(1000).mul_(1e-4).masked_fill_(numbers == 0, torch.nan)


def _batched(corners: list[tuple[int, int]], size: int) -> Iterator[list[tuple[int, int]]]:
    remaining = iter(corners)
    while chunk := list(islice(remaining, size)):
        yield chunk
