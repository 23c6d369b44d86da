"""The loss of a student that learns from a frozen teacher.

Notation:
    B batch    T tokens per sentence    V vocabulary    N tokens per image    C hidden dim
    n rows (the predicted tokens of a batch)    m rows of one chunk    f values of a loss
"""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.training.losses.tokens import CrossEntropyLoss, cross_entropy_sum


class KLDirection(Enum):
    """Direction of the divergence: ``forward`` is KL(teacher || student), ``reverse`` swaps them.

    ``inverse`` is DeLVM's word for reverse.
    """

    forward = "forward"
    reverse = "reverse"
    inverse = "reverse"

    @classmethod
    def _missing_(cls, value: object) -> "KLDirection | None":
        return cls.reverse if value == "inverse" else None


class DistillationLoss:
    """gt_weight x CE + kd_weight x T^2 x KL between a frozen teacher and the student.

    The values are their sum, which is minimized, the cross-entropy (``train/loss``, comparable to
    that of a student without a teacher) and the divergence (``train/kd``).
    """

    metric_names = ("total_loss", "loss", "kd")

    def __init__(
        self,
        gt_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 1.0,
        direction: KLDirection = KLDirection.forward,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> None:
        """
        Args:
            gt_weight: weight of the cross-entropy to the true tokens.
            kd_weight: weight of the divergence from the teacher.
            temperature: T > 0, which softens both distributions.
            direction: of the divergence, or its name.
            label_smoothing, z_loss: of the cross-entropy, as for `CrossEntropyLoss`.
        """
        self.gt_weight, self.kd_weight, self.temperature = gt_weight, kd_weight, temperature
        self.label_smoothing, self.z_loss = label_smoothing, z_loss
        self.direction = KLDirection(direction)
        self.reverse = self.direction is KLDirection.reverse

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = CrossEntropyLoss(self.label_smoothing, self.z_loss).validate()
        errors += [
            f"{name}={value} is below 0: set it to 0 or more"
            for name in ("gt_weight", "kd_weight")
            if (value := getattr(self, name)) < 0
        ]
        if self.temperature <= 0:
            errors.append(f"temperature={self.temperature} is not above 0: set it to 1.0")
        return errors

    def __call__(
        self,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor,
        teacher_hidden: Tensor,
        teacher_lm_head: Tensor,
    ) -> Tensor:
        """
        Args:
            logits, targets, weights: as for `cross_entropy_sum`.
            teacher_hidden: (m, C) hidden states of the teacher.
            teacher_lm_head: (V, C).

        Returns:
            (3,): the weighted sum, the cross-entropy and the divergence.
        """
        teacher_logits = F.linear(teacher_hidden, teacher_lm_head).float()
        kl = kl_divergence(logits, teacher_logits, self.temperature, self.reverse)
        kd = (kl * weights).sum()
        ce = cross_entropy_sum(logits, targets, weights, self.label_smoothing, self.z_loss)
        return torch.stack((self.gt_weight * ce + self.kd_weight * kd, ce, kd))


def kl_divergence(
    logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, reverse: bool = False
) -> Tensor:
    """T^2 x KL(teacher || student) per token (n,); KL(student || teacher) if ``reverse``.

    Args:
        logits, teacher_logits: (n, V) float32.
        temperature: T; it softens both distributions (Hinton et al. 2015).
        reverse: whether student and teacher swap roles.
    """
    student = F.log_softmax(logits / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=-1)
    p, q = (student, teacher) if reverse else (teacher, student)
    return temperature**2 * (p.exp() * (p - q)).sum(-1)
