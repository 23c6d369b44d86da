"""Distillation from a teacher whose distributions are stored: see `delvm.data.teacher_cache`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.training.losses.distillation import DistillationLoss, KLDirection
from delvm.training.losses.divergences import Divergence, KLDivergence
from delvm.training.losses.tokens import cross_entropy_sum
from delvm.training.losses.top_k import with_tail


class OfflineTopKLoss:
    """gt_weight x CE + kd_weight x divergence over the top k tokens and all others as one class.

    The divergence is KL(teacher || student), unless another one is given. The temperature is 1, at
    which the distributions are stored. The values are those of `DistillationLoss`.
    """

    metric_names = ("total_loss", "loss", "kd")

    def __init__(
        self,
        gt_weight: float = 1.0,
        kd_weight: float = 1.0,
        direction: KLDirection = KLDirection.forward,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        divergence: Divergence | None = None,
    ) -> None:
        """
        Args:
            gt_weight, kd_weight, direction, label_smoothing, z_loss, divergence: as of
                `DistillationLoss`.
        """
        self.gt_weight, self.kd_weight = gt_weight, kd_weight
        self.label_smoothing, self.z_loss = label_smoothing, z_loss
        self.direction = KLDirection(direction)
        self.reverse = self.direction is KLDirection.reverse
        self.divergence: Divergence = divergence or KLDivergence()

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
        student = with_tail(F.log_softmax(logits, dim=-1), teacher_ids)
        p, q = (student, teacher_log_probs) if self.reverse else (teacher_log_probs, student)
        kd = (self.divergence(p, q) * weights).sum()
        ce = cross_entropy_sum(logits, targets, weights, self.label_smoothing, self.z_loss)
        return torch.stack((self.gt_weight * ce + self.kd_weight * kd, ce, kd))
