"""The baseline to beat: a U-Net of SPEX's size that sees what SPEX's stem sees, trained on the same windows.

The same: bands of whatever sensor a batch has, interpolated to the anchors, as reflectance and square root, with brightness, indices, validity
and what is missing (`SpectralStem`); windows, augmentation, surveyed patches, clean labels and pixel weights (`BatchMaker`); batch, optimizer,
schedule, precision, and as many steps as SPEX's instruction tuning has. Not there: words, attributes, presence, kinds of vegetation, offsets of the
logits, and the stages before: SPEX is pretrained on unlabelled imagery and aligned with words first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from engine.configuration import SpexConfig
from engine.evaluation.fitting import Fit, fit
from engine.evaluation.metrics import IGNORE
from engine.evaluation.predictors import padded
from engine.modeling_vision import SpectralStem
from engine.training.augment import SENSORS, pick
from engine.training.batches import ASKED, CLASS_WEIGHTS, BatchMaker
from engine.training.chip_folder import LabelledChips
from engine.training.data import CLASSES, ROOT_OF

RATE = 1.5e-3
DICE_WEIGHT = 0.5
WIDTH = 46
"""Of the first level; gives 3.9 M parameters, as many as spex-small has."""
MULTIPLE = 8


class Double(nn.Sequential):
    """Two 3x3 convolutions with batch normalisation."""

    def __init__(self, given: int, wanted: int) -> None:
        layers: list[nn.Module] = []
        for a in (given, wanted):
            layers += [nn.Conv2d(a, wanted, 3, padding=1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """SPEX's stem, then four levels with skips. After Ronneberger et al., U-Net, MICCAI 2015."""

    def __init__(self, config: SpexConfig | None = None, classes: int = len(CLASSES), width: int = WIDTH) -> None:
        super().__init__()
        config = config or SpexConfig()
        widths = [width * 2**level for level in range(4)]
        self.stem = SpectralStem(config)
        self.down = nn.ModuleList(Double(a, b) for a, b in zip([config.dims[0], *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * a, a, 2, stride=2) for a in reversed(widths[:-1]))
        self.join = nn.ModuleList(Double(2 * a, a) for a in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, reflectance: Tensor, bands: Sequence[str]) -> Tensor:
        """Return logits (n, K, h, w) of reflectance (n, C, h, w), NaN = no data, h and w multiples of 8."""
        valid = (~torch.isnan(reflectance)).any(1, keepdim=True).to(reflectance.dtype)
        x = self.stem(torch.nan_to_num(reflectance, nan=0.15).contiguous(memory_format=torch.channels_last), valid, bands)
        skips: list[Tensor] = []
        for level, double in enumerate(self.down):
            x = double(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.head(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Windows:
    """One step's input."""

    reflectance: Tensor
    """(n, C, h, w)"""
    labels: Tensor
    """(n, h, w) int64, 255 ignored"""
    bands: tuple[str, ...]


def labelled_windows(maker: BatchMaker) -> Callable[[int], Windows]:
    """Return by step the very windows that `maker` asks SPEX about in that step, labels as the four roots."""

    def windows(step: int) -> Windows:
        generator = np.random.default_rng((maker.seed, step))
        bands: tuple[str, ...] = pick(generator, SENSORS)  # type: ignore[assignment]
        pick(generator, ASKED)
        samples = [maker.sample(bands, generator) for _ in range(maker.batch)]
        labels = roots_of(np.stack([sample.labels for sample in samples])).astype(np.int64)
        return Windows(torch.from_numpy(np.stack([sample.reflectance for sample in samples])), torch.from_numpy(labels), bands)

    return windows


def roots_of(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return detailed labels as the four roots: every kind of vegetation is vegetation."""
    return ROOT_OF[labels]


def unet_loss(model: nn.Module, batch: Windows) -> Tensor:
    """Return weighted cross-entropy plus Dice over the classes, as SPEX's masks are trained."""
    device = next(model.parameters()).device
    labels = batch.labels.to(device)
    logits = model(batch.reflectance.to(device), batch.bands).float()
    weight = torch.from_numpy(CLASS_WEIGHTS[: logits.shape[1]]).to(device)
    classes = F.cross_entropy(logits, labels, weight, ignore_index=IGNORE)
    known = (labels != IGNORE).unsqueeze(1).float()
    truth = (labels.unsqueeze(1) == torch.arange(logits.shape[1], device=device).view(1, -1, 1, 1)).float()
    guess = logits.softmax(1) * known
    overlap, size = (guess * truth).sum((2, 3)), guess.square().sum((2, 3)) + truth.square().sum((2, 3))
    dice: Tensor = (1.0 - (2.0 * overlap + 1.0) / (size + 1.0)).mean()
    return classes + DICE_WEIGHT * dice


def train_unet(maker: BatchMaker, how: Fit) -> UNet:
    """Return a U-Net trained on the windows of a maker."""
    torch.manual_seed(how.seed)
    model = UNet()
    fit(model, labelled_windows(maker), unet_loss, how)
    return model


class UNetPredictor:
    """A trained U-Net under evaluation."""

    name = "unet"
    source = "none"
    calibrated = True

    def __init__(self, model: UNet, device: str = "cpu") -> None:
        self.model, self.device = model.to(device).train(False), device

    @torch.inference_mode()
    def __call__(self, chips: LabelledChips, index: int) -> NDArray[np.float32]:
        """Return softmax probabilities (K, H, W)."""
        height, width = chips.reflectance.shape[2:]
        chip = torch.from_numpy(padded(chips.reflectance[index], MULTIPLE))[None].to(self.device)
        result: NDArray[np.float32] = self.model(chip, chips.bands)[0].float().softmax(0)[:, :height, :width].cpu().numpy()
        return result
