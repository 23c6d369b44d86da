"""A loss of next tokens: focal loss (Lin et al. 2017, arXiv 1708.02002)."""

import torch.nn.functional as F
from torch import Tensor


class FocalLoss:
    """Cross-entropy that counts less where the student is sure already."""

    metric_names = ("loss",)

    def __init__(self, gamma: float = 2.0) -> None:
        self.gamma = gamma

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, targets, reduction="none")  # (m,)
        return (weights * (1 - (-losses).exp()) ** self.gamma * losses).sum()
