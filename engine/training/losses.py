"""What training minimises."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.modeling import SpexOutput
from engine.training.batches import Batch
from engine.training.data import IGNORE

BCE_WEIGHT, DICE_WEIGHT, TEXT_WEIGHT, PRESENCE_WEIGHT, KINDS_WEIGHT = 0.25, 0.5, 0.1, 0.05, 1.0

KIND_WEIGHTS = (1.0, 1.0, 1.5, 3.0)
"""Weight of a pixel by its kind of vegetation, in the order of `engine.training.data.KINDS`."""


def spex_loss(output: SpexOutput, batch: Batch) -> dict[str, Tensor]:
    """Return the parts of the loss and their weighted sum under ``loss``."""
    logits, presence = output.logits.float(), output.presence.float()
    parts = mask_losses(logits[:, : batch.roots], batch.target, batch.weight)
    parts["presence"] = presence_loss(presence[:, : batch.roots], batch.target)
    if batch.kinds is not None and batch.kind_order is not None:
        parts["kinds"] = kinds_loss(logits[:, batch.roots :], batch.kinds, batch.kind_order)
        parts["presence"] = parts["presence"] + presence_loss(presence[:, batch.roots :], batch.kinds)
    total = parts["classes"] + BCE_WEIGHT * parts["bce"] + DICE_WEIGHT * parts["dice"] + PRESENCE_WEIGHT * parts["presence"]
    total = total + KINDS_WEIGHT * parts.get("kinds", 0.0)
    if output.text is not None:
        parts["text"] = text_loss(output.text.float(), batch.prompts.labels)
        total = total + TEXT_WEIGHT * parts["text"]
    return {**parts, "loss": total}


def mask_losses(logits: Tensor, target: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Return cross-entropy over the K asked classes and `other` (logit 0), and per-class binary cross-entropy and Dice.

    Parameters
    ----------
    logits, target
        (n, K, h, w), and (n, h, w) with the position of the class asked, K for `other`, 255 ignored.
    weight
        (n, h, w) weight of each pixel in the cross-entropy.
    """
    count = logits.shape[1]
    known = (target != IGNORE).unsqueeze(1).float()
    with_other = torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)
    each = F.cross_entropy(with_other, target, ignore_index=IGNORE, reduction="none")
    classes = (each * weight).sum() / (weight * known[:, 0]).sum().clamp(min=1.0)
    truth = (target.unsqueeze(1) == torch.arange(count, device=target.device).view(1, -1, 1, 1)).float()
    bce = (F.binary_cross_entropy_with_logits(logits, truth, reduction="none") * known).sum() / (known.sum() * count).clamp(min=1.0)
    guess = logits.sigmoid() * known
    overlap, size = (guess * truth).sum((2, 3)), (guess.square().sum((2, 3)) + truth.square().sum((2, 3)))
    dice = 1.0 - (2.0 * overlap + 1.0) / (size + 1.0)
    return {"classes": classes, "bce": bce, "dice": dice.mean()}


def kinds_loss(logits: Tensor, target: Tensor, order: Tensor) -> Tensor:
    """Return cross-entropy among the kinds of one class, over the pixels whose kind is known.

    Parameters
    ----------
    logits, target
        (n, K, h, w), and (n, h, w) with the position of the pixel's kind among those asked, 255 where it has none.
    order
        (n, K) the kind asked at each position.
    """
    weight = torch.tensor(KIND_WEIGHTS, device=order.device)[order]
    known = target != IGNORE
    each = F.cross_entropy(logits, target, ignore_index=IGNORE, reduction="none")
    pixel = weight.to(logits).gather(1, torch.where(known, target, 0).flatten(1)).reshape(target.shape) * known
    return (each * pixel).sum() / pixel.sum().clamp(min=1.0)


def presence_loss(presence: Tensor, target: Tensor) -> Tensor:
    """Return binary cross-entropy of "the class is in this chip" (n, K)."""
    there = torch.stack([(target == k).flatten(1).any(1) for k in range(presence.shape[1])], 1)
    return F.binary_cross_entropy_with_logits(presence, there.float())


def text_loss(text: Tensor, labels: Tensor) -> Tensor:
    """Return next-token cross-entropy of the descriptions; `labels` lie at their own position, so they are shifted here."""
    return F.cross_entropy(text[:, :, :-1].flatten(0, 2), labels[:, :, 1:].flatten(), ignore_index=-100)
