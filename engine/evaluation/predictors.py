"""What is evaluated: anything that turns a chip into classes and, if it can, probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.training.chip_folder import LabelledChips


class Predictor(Protocol):
    """A method under evaluation, for one band set and one list of K classes."""

    name: str
    """Of the method: ``spex``, ``unet`` ..."""
    source: str
    """Where the attributes in its prompts come from: ``none``, ``index`` or ``labels``."""
    calibrated: bool
    """Whether its numbers are probabilities; without, the calibration error is left out."""

    def __call__(self, chips: LabelledChips, index: int) -> NDArray[np.float32]:
        """Return probabilities (K, H, W) of a chip; a pixel whose K numbers are all 0 is given to none of the classes."""
        ...


@dataclass(frozen=True)
class Prediction:
    """What a method makes of all chips."""

    method: str
    bands: str
    """Name of the band set."""
    arm: str
    source: str
    guess: NDArray[np.uint8]
    """(N, H, W): argmax over the K classes, K for none of them."""
    probabilities: NDArray[np.float32] | None
    """(N, K, H, W), None for a method that has none."""


def predict(predictor: Predictor, chips: LabelledChips, band_set: str, arm: str = "none") -> Prediction:
    """Return the argmax over the classes, and the probabilities, of every chip, one chip at a time."""
    probabilities = np.stack([predictor(chips, index) for index in range(len(chips))])
    nothing = (probabilities <= 0).all(1)
    guess = np.where(nothing, np.uint8(len(chips.classes)), probabilities.argmax(1).astype(np.uint8))
    return Prediction(predictor.name, band_set, arm, predictor.source, guess, probabilities if predictor.calibrated else None)


def in_bands(chips: LabelledChips, bands: Sequence[str]) -> LabelledChips:
    """Return the chips as a sensor with fewer bands sees them; raises `ValueError` where a band is not among the chips' own."""
    channels = [chips.bands.index(name) for name in bands]
    return LabelledChips(chips.reflectance[:, channels], tuple(bands), chips.labels, chips.classes, chips.places, chips.names, chips.clean)


def padded(chip: NDArray[np.float32], multiple: int) -> NDArray[np.float32]:
    """Return a chip (C, H, W) with no data added at the bottom and right up to a multiple of pixels."""
    return np.pad(chip, ((0, 0), *((0, -side % multiple) for side in chip.shape[1:])), constant_values=np.nan)
