"""From a noisy index mask to regions worth naming: opening, closing and a minimum area, in metres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

EIGHT = np.ones((3, 3), bool)
"""Pixels that touch at a corner belong together."""


@dataclass(frozen=True)
class Morphology:
    """What is cleaned off a mask, on the ground; the defaults are 1 pixel, 2 pixels and 50 pixels of a 10 m sensor."""

    opening_m: float = 10.0
    """Radius of the disk of the opening: narrower spurs and specks go."""
    closing_m: float = 20.0
    """Radius of the disk of the closing: narrower gaps are filled."""
    minimum_m2: float = 5_000.0
    """Smaller regions are dropped."""

    @classmethod
    def at(cls, reference: float) -> Morphology:
        """Return 1 pixel, 2 pixels and 50 pixels at a ground sample distance of `reference` metres, as metres."""
        return cls(reference, 2 * reference, 50 * reference**2)

    def radii(self, resolution: float) -> tuple[int, int]:
        """Return the radii of opening and closing in pixels of `resolution` metres, rounded; 0 leaves the step out."""
        return round(self.opening_m / resolution), round(self.closing_m / resolution)

    def minimum_pixels(self, resolution: float) -> int:
        """Return the least area of a region in pixels of `resolution` metres, at least 1."""
        return max(1, round(self.minimum_m2 / resolution**2))

    def halo(self, resolution: float) -> int:
        """Return how many pixels around a chip can change the opened and closed mask inside it."""
        return 2 * sum(self.radii(resolution))

    def opened_and_closed(self, mask: NDArray[np.bool_], resolution: float, valid: NDArray[np.bool_] | None = None) -> NDArray[np.bool_]:
        """Return a mask (H, W) opened and closed at `resolution` metres a pixel; the edge goes on as it is, pixels not `valid` stay out."""
        opening, closing = self.radii(resolution)
        margin = self.halo(resolution)
        grown = np.pad(mask, margin, mode="edge")
        if opening:
            grown = _dilated(_eroded(grown, opening), opening)
        if closing:
            grown = _eroded(_dilated(grown, closing), closing)
        height, width = mask.shape
        cleaned = grown[margin : margin + height, margin : margin + width]
        return cleaned.copy() if valid is None else cleaned & valid

    def without_small(self, mask: NDArray[np.bool_], resolution: float) -> NDArray[np.bool_]:
        """Return a mask without its 8-connected regions below the minimum area; holes stay holes."""
        labels, _ = ndimage.label(mask, EIGHT)
        keep = np.bincount(labels.ravel()) >= self.minimum_pixels(resolution)
        keep[0] = False
        return np.asarray(keep[labels], bool)


def clean_mask(
    mask: NDArray[np.bool_], resolution: float = 10.0, morphology: Morphology | None = None, valid: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """Return a mask (H, W) opened, closed and without small regions.

    Parameters
    ----------
    mask
        (H, W) bool.
    resolution
        Metres a pixel.
    morphology
        Radii and minimum area in metres; without it 1, 2 and 50 pixels of 10 m.
    valid
        (H, W): where there is data; the closing fills nothing else.
    """
    chosen = morphology or Morphology()
    return chosen.without_small(chosen.opened_and_closed(mask, resolution, valid), resolution)


def _dilated(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """Return the pixels within `radius` of the mask, by distance, so that a large radius costs no more than a small one."""
    if not mask.any():
        return mask
    return np.asarray(ndimage.distance_transform_edt(~mask) <= radius, bool)


def _eroded(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    return ~_dilated(~mask, radius)
