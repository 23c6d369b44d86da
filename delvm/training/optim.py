"""Learning rate over a run: linear warm-up, then half a cosine down to a floor."""

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from delvm.training.config import OptimConfig


def warmup_cosine(step: int, total: int, warmup: float, floor: float) -> float:
    """Share of the highest learning rate at ``step`` of ``total``."""
    rise = max(1, round(warmup * total))
    if step < rise:
        return (step + 1) / rise
    done = min(1.0, (step - rise) / max(1, total - rise))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def build_optimizer(
    groups: list[dict[str, object]], config: OptimConfig, total_steps: int
) -> tuple[torch.optim.AdamW, LambdaLR]:
    """AdamW over parameter groups, with its per-step schedule."""
    optimizer = torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.betas[0], config.betas[1]), fused=True
    )
    scheduler = LambdaLR(
        optimizer,
        lambda step: warmup_cosine(step, total_steps, config.warmup, config.min_lr_ratio),
    )
    return optimizer, scheduler
