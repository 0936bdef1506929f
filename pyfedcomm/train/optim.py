"""The local optimizer: AdamW with linear warm-up and cosine decay."""

from __future__ import annotations

import math

import torch
from torch import nn

from pyfedcomm.train.config import TrainSteps


def make(model: nn.Module, config: TrainSteps) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) over the trainable parameters; vectors are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
    )


def lr_at(step: float, config: TrainSteps) -> float:
    """Learning rate of step ``step`` (from 0): linear from lr / warmup_steps, cosine to min_lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (
        1 + math.cos(math.pi * min(1.0, done))
    )
