"""Divergences between two distributions, given by their log-probabilities.

Notation:
    m rows (predicted tokens)    K classes: all tokens, or fewer (`delvm.training.losses.classes`)
"""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Divergence(Protocol):
    """What `DistillationLoss` asks of a divergence: any class of this form can be one."""

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """D(p, q) of each row, at least 0 and differentiable in both.

        Args:
            log_p: (m, K) float32, the teacher's, or with ``direction=reverse`` the student's.
            log_q: (m, K) float32, the other's.

        Returns:
            (m,) in nats.
        """


class KLDivergence:
    """KL(p || skew x p + (1 - skew) x q); without a skew, the Kullback-Leibler divergence.

    A skew keeps the logarithms of ratios finite where q is close to 0, at most -log(skew), and with
    them the gradients (DistiLLM, Ko et al. 2024, arXiv 2402.03898).
    """

    def __init__(self, skew: float = 0.0) -> None:
        """
        Args:
            skew: fraction of p in the second distribution, in [0, 1).
        """
        self.skew = skew

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        if not 0 <= self.skew < 1:
            return [f"skew={self.skew} is not in [0, 1): set it to 0.1, or to 0 for KL"]
        return []

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """(m,) nats; arguments as for `Divergence`."""
        if self.skew:
            log_q = log_mixture(log_p, log_q, self.skew)
        return (log_p.exp() * (log_p - log_q)).sum(-1)


class JensenShannon:
    """mix x KL(p || m) + (1 - mix) x KL(q || m) with m = mix x p + (1 - mix) x q.

    The generalized Jensen-Shannon divergence of GKD (Agarwal et al. 2023, arXiv 2306.13649): its
    gradient is close to that of KL(p || q) for a small mix, and to that of KL(q || p) for one near
    1. It is bounded, by log 2 at mix = 0.5.
    """

    def __init__(self, mix: float = 0.5) -> None:
        """
        Args:
            mix: weight of p in the mixture, in (0, 1); 0.5 treats both alike.
        """
        self.mix = mix

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        if not 0 < self.mix < 1:
            return [f"mix={self.mix} is not between 0 and 1: set it to 0.5, or divergence=kl"]
        return []

    def __call__(self, log_p: Tensor, log_q: Tensor) -> Tensor:
        """(m,) nats; arguments as for `Divergence`."""
        mixture = log_mixture(log_p, log_q, self.mix)
        of_p = (log_p.exp() * (log_p - mixture)).sum(-1)
        of_q = (log_q.exp() * (log_q - mixture)).sum(-1)
        return self.mix * of_p + (1 - self.mix) * of_q


def log_mixture(log_p: Tensor, log_q: Tensor, weight: float) -> Tensor:
    """log(weight x p + (1 - weight) x q), elementwise; weight in (0, 1)."""
    return torch.logaddexp(log_p + math.log(weight), log_q + math.log1p(-weight))


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
    return temperature**2 * KLDivergence()(p, q)
