"""Distillation from a teacher whose distributions are stored: see `delvm.data.teacher_cache`."""

import torch
from torch import Tensor

from delvm.training.losses.distillation import DistillationLoss, KLDirection
from delvm.training.losses.tokens import cross_entropy_sum
from delvm.training.losses.top_k import top_k_kl_divergence


class OfflineTopKLoss:
    """gt_weight x CE + kd_weight x KL over a teacher's top k tokens and all others as one class.

    The temperature is 1, at which the distributions are stored. The values are those of
    `DistillationLoss`.
    """

    metric_names = ("total_loss", "loss", "kd")

    def __init__(
        self,
        gt_weight: float = 1.0,
        kd_weight: float = 1.0,
        direction: KLDirection = KLDirection.forward,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        """
        Args:
            gt_weight, kd_weight, direction, label_smoothing, z_loss: as of `DistillationLoss`.
        """
        self.gt_weight, self.kd_weight = gt_weight, kd_weight
        self.label_smoothing, self.z_loss = label_smoothing, z_loss
        self.direction = KLDirection(direction)
        self.reverse = self.direction is KLDirection.reverse

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        return DistillationLoss(
            self.gt_weight,
            self.kd_weight,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
        ).validate()

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor,
        teacher_ids: Tensor,
        teacher_log_probs: Tensor,
    ) -> Tensor:
        """
        Args:
            logits, targets, weights: as for `cross_entropy_sum`.
            teacher_ids: (m, k) int64.
            teacher_log_probs: (m, k + 1) float32, of these and of all others together.

        Returns:
            (3,): the weighted sum, the cross-entropy and the divergence.
        """
        kl = top_k_kl_divergence(logits, teacher_ids, teacher_log_probs, reverse=self.reverse)
        kd = (kl * weights).sum()
        ce = cross_entropy_sum(logits, targets, weights, self.label_smoothing, self.z_loss)
        return torch.stack((self.gt_weight * ce + self.kd_weight * kd, ce, kd))
