"""A plain U-Net of 2 M parameters on the six bands: the baseline that SPEX is measured against in the same run.

``python -m engine.training.unet --data CHIPS --out FOLDER`` trains it on the same chips with the same clean labels.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from engine.training.augment import Sample, turn
from engine.training.data import CLASSES, IGNORE, Chips, load_chips
from engine.training.schedule import learning_rate, new_optimizer


class Double(nn.Sequential):
    """Two 3x3 convolutions with batch normalisation."""

    def __init__(self, given: int, wanted: int) -> None:
        layers: list[nn.Module] = []
        for a in (given, wanted):
            layers += [nn.Conv2d(a, wanted, 3, padding=1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """Four levels of 32, 64, 128 and 256 channels with skips; 1.9 M parameters."""

    def __init__(self, bands: int = 6, classes: int = len(CLASSES), width: int = 32) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(4)]
        self.down = nn.ModuleList(Double(a, b) for a, b in zip([bands, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * a, a, 2, stride=2) for a in reversed(widths[:-1]))
        self.join = nn.ModuleList(Double(2 * a, a) for a in reversed(widths[:-1]))
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes, h, w) of normalised bands (n, bands, h, w), h and w multiples of 8."""
        skips: list[Tensor] = []
        for level, double in enumerate(self.down):
            x = double(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, reversed(skips[:-1]), strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.head(x)  # type: ignore[no-any-return]


def normalised(reflectance: Tensor) -> Tensor:
    """Return reflectance (n, 6, h, w) as the network reads it."""
    return ((reflectance - 0.15) / 0.15).contiguous(memory_format=torch.channels_last)


def train_unet(chips: Chips, epochs: int, batch: int = 16, rate: float = 2e-3, seed: int = 0) -> UNet:
    """Return a U-Net trained on the clean labels by cross-entropy, with flips and turns."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model = UNet()
    model.train()
    optimizer = new_optimizer(model, rate)
    steps, began = epochs * (len(chips) // batch), time.monotonic()
    order = np.concatenate([generator.permutation(len(chips))[: len(chips) // batch * batch] for _ in range(epochs)])
    for step in range(steps):
        samples = [turn(Sample(chips.reflectance[i], chips.clean[i]), generator) for i in order[step * batch : (step + 1) * batch]]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, rate)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(normalised(torch.from_numpy(np.stack([s.reflectance for s in samples]))))
        loss = F.cross_entropy(logits.float(), torch.from_numpy(np.stack([s.labels for s in samples])).long(), ignore_index=IGNORE)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 50 == 49:
            print(
                json.dumps({"unet step": step + 1, "of": steps, "seconds": round(time.monotonic() - began), "loss": round(loss.item(), 4)}),
                flush=True,
            )
    model.train(False)
    return model


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description="Train the U-Net baseline.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the chips")
    parser.add_argument("--out", type=Path, required=True, help="folder for unet.safetensors")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = train_unet(load_chips(options.data / "hls-worldcover" / "train.npz"), options.epochs, seed=options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, options.out / "unet.safetensors")


if __name__ == "__main__":
    main()
