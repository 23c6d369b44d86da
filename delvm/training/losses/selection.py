"""Selective distillation: from which tokens a student learns of its teacher, and how much.

Notation:
    m rows (predicted tokens)    n those of a batch    V vocabulary
"""

import math
from enum import Enum
from typing import Protocol

from torch import Tensor

from delvm.training.losses.divergences import KLDivergence


class Selection(Protocol):
    """What `DistillationLoss` asks of a selection: any class of this form can be one.

    Attributes:
        fraction: of a batch's tokens that are kept, those of the highest `scores`; None where the
            weight of a token depends on that token alone.
    """

    fraction: float | None

    def scores(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Log-probabilities (m, V) of both -> scores (m,)."""

    def __call__(self, teacher: Tensor, student: Tensor, threshold: Tensor | None = None) -> Tensor:
        """Log-probabilities (m, V) of both -> weights (m,) of the divergence, in [0, 1].

        ``threshold`` () is the least score that is kept, where there is a ``fraction``.
        """


class SelectBy(Enum):
    """What makes a token worth learning from the teacher.

    Attributes:
        confidence: a high probability of the teacher's most likely token.
        entropy: a low entropy of the teacher.
        gap: a high KL(teacher || student), the nats that the student has to gain.
    """

    confidence = "confidence"
    entropy = "entropy"
    gap = "gap"


class TokenSelection:
    """Keeps the tokens of which the teacher is sure, or on which the student is far from it.

    Given a threshold, a token is kept by its own score. Given a fraction, the threshold is that of
    the batch (of this rank), found in a pass over the logits without gradients before the loss is
    computed; so neither depends on the size of chunks. Given neither, each token is weighed: by
    the teacher's probability of its most likely token, or by 1 - entropy / log(V).
    """

    def __init__(
        self,
        by: SelectBy = SelectBy.entropy,
        threshold: float | None = None,
        fraction: float | None = None,
    ) -> None:
        """
        Args:
            by: the score, or its name.
            threshold: least probability (confidence), most nats (entropy) or least nats (gap).
            fraction: of the tokens with a weight that are kept, in (0, 1].
        """
        self.by = SelectBy(by)
        self.threshold, self.fraction = threshold, fraction

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        by, errors = SelectBy(self.by), []
        if self.threshold is not None and self.fraction is not None:
            errors.append(
                f"threshold={self.threshold} and fraction={self.fraction} are two ways to choose: "
                "set one of them to null"
            )
        if self.threshold is not None and not self.threshold >= 0:
            errors.append(f"threshold={self.threshold} is below 0: set it to 0 or more")
        if by is SelectBy.confidence and self.threshold is not None and self.threshold > 1:
            errors.append(f"threshold={self.threshold} is a probability: set it from 0 to 1")
        if self.fraction is not None and not 0 < self.fraction <= 1:
            errors.append(f"fraction={self.fraction} is not in (0, 1]: set it to 0.5")
        if by is SelectBy.gap and self.threshold is None and self.fraction is None:
            errors.append(
                "by=gap needs a fraction of the tokens or a threshold in nats: set fraction=0.5 or "
                "threshold=1.0"
            )
        return errors

    def scores(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Log-probabilities (m, V) of both -> scores (m,); the highest are kept."""
        if self.by is SelectBy.confidence:
            return teacher.amax(-1).exp()
        if self.by is SelectBy.entropy:
            return (teacher.exp() * teacher).sum(-1)  # minus the entropy in nats
        return KLDivergence()(teacher, student)

    def __call__(self, teacher: Tensor, student: Tensor, threshold: Tensor | None = None) -> Tensor:
        """Log-probabilities (m, V) of both -> weights (m,), in [0, 1]."""
        scores = self.scores(teacher, student)
        if threshold is not None:
            return (scores >= threshold).to(scores.dtype)
        if self.threshold is not None:
            least = -self.threshold if self.by is SelectBy.entropy else self.threshold
            return (scores >= least).to(scores.dtype)
        if self.by is SelectBy.entropy:
            return 1 + scores / math.log(teacher.shape[-1])
        return scores


def threshold_of(scores: Tensor, weights: Tensor, fraction: float) -> Tensor:
    """The score () that the given fraction of tokens reach: halfway to the next lower one.

    Halfway, since the scores that are compared with it later may differ in their last bit.

    Args:
        scores: (n,) of all tokens of a batch.
        weights: (n,); tokens without a weight do not count.
        fraction: in (0, 1]; at least one token is kept.
    """
    counted = scores[weights > 0].sort(descending=True).values
    kept = max(1, round(fraction * len(counted)))
    if kept >= len(counted):
        return scores.new_tensor(-math.inf)
    return (counted[kept - 1] + counted[kept]) / 2
