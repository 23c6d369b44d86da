"""Random token replacement: a student's input tokens are corrupted, its targets are not."""

from enum import Enum

import torch
from torch import Tensor


class ImageScope(Enum):
    """Which images of a sentence are changed: those that are targets, or all."""

    targets = "targets"
    all = "all"


def add_token_noise(
    input_ids: Tensor,
    may_change: Tensor,
    tokens_per_image: int,
    max_fraction: float,
    vocab_size: int,
) -> Tensor:
    """Replace a random fraction of the tokens of images by random codes.

    The fraction is sampled per image, uniform in [0, max_fraction]. A student that only ever saw
    true targets follows the tokens that it generated rather than the query, and one wrong color
    spreads over the image.

    Args:
        input_ids: (B, T) int64.
        may_change: (B, T) bool: which tokens are candidates, those of target images for example.
        tokens_per_image: N.
        max_fraction: largest fraction of an image's tokens that are replaced, in [0, 1].
        vocab_size: random codes are in [0, vocab_size).

    Returns:
        (B, T) int64; ``input_ids`` stays as it is.
    """
    batch, length = input_ids.shape
    image = torch.arange(length, device=input_ids.device) // tokens_per_image  # (T,)
    noise_rate = max_fraction * torch.rand(batch, int(image[-1]) + 1, device=input_ids.device)
    replaced = torch.rand(input_ids.shape, device=input_ids.device) < noise_rate[:, image]
    return torch.where(replaced & may_change, torch.randint_like(input_ids, vocab_size), input_ids)
