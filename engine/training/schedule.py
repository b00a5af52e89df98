"""Learning rate and optimizer that every training here uses."""

from __future__ import annotations

import math

import torch


def learning_rate(step: int, steps: int, peak: float, warm_up: int = 100) -> float:
    """Return the rate of a step: linear warm-up, then cosine to zero."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1.0 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1)))


def new_optimizer(model: torch.nn.Module, rate: float, weight_decay: float = 0.05) -> torch.optim.AdamW:
    """Return AdamW over the parameters that are not frozen, with weight decay on matrices only."""
    free = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in free if p.ndim > 1], [p for p in free if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=rate, betas=(0.9, 0.98))
