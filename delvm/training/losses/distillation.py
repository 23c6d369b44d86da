"""The loss of a student that learns from a frozen teacher.

Notation:
    B batch    T tokens per sentence    V vocabulary    N tokens per image    C hidden dim
    n rows (the predicted tokens of a batch)    m rows of one chunk    f values of a loss
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.training.losses.chunked import chunked_linear_map
from delvm.training.losses.classes import Classes
from delvm.training.losses.divergences import Divergence, KLDivergence
from delvm.training.losses.hidden_states import HiddenStateMatching
from delvm.training.losses.selection import Selection, threshold_of
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


class DistillationLoss(nn.Module):
    """gt_weight x CE + kd_weight x T^2 x divergence between a frozen teacher and the student.

    The divergence is KL(teacher || student) over all tokens, unless other parts are given. The
    values are the sum, which is minimized, the cross-entropy (``train/loss``, comparable to that of
    a student without a teacher) and the divergence (``train/kd``); with a selection the weight that
    it keeps (``train/kept``), and with hidden states what they add (``train/hidden``).

    It is a `torch.nn.Module` for the sake of its parts, which may have buffers and parameters.
    """

    def __init__(
        self,
        gt_weight: float = 1.0,
        kd_weight: float = 1.0,
        temperature: float = 1.0,
        direction: KLDirection = KLDirection.forward,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        divergence: Divergence | None = None,
        classes: Classes | None = None,
        selection: Selection | None = None,
        hidden: HiddenStateMatching | None = None,
    ) -> None:
        """
        Args:
            gt_weight: weight of the cross-entropy to the true tokens.
            kd_weight: weight of the divergence from the teacher.
            temperature: T > 0, which softens both distributions.
            direction: of the divergence, or its name: which of the two is its first argument.
            label_smoothing, z_loss: of the cross-entropy, as for `CrossEntropyLoss`.
            divergence: of two distributions; None = `KLDivergence`.
            classes: that the distributions are compared over; None = all tokens.
            selection: of the tokens that are compared, by the distributions over all tokens at
                this temperature; None = all.
            hidden: matching of hidden states; None leaves it out.
        """
        super().__init__()
        self.gt_weight, self.kd_weight, self.temperature = gt_weight, kd_weight, temperature
        self.label_smoothing, self.z_loss = label_smoothing, z_loss
        self.direction = KLDirection(direction)
        self.reverse = self.direction is KLDirection.reverse
        # Hydra passes an option without keys, such as classes=none, as an empty dictionary.
        self.divergence: Divergence = divergence or KLDivergence()
        self.classes: Classes | None = classes or None
        self.selection: Selection | None = selection or None
        self.hidden: HiddenStateMatching | None = hidden or None

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the values."""
        kept = ("kept",) if self.selection else ()
        return ("total_loss", "loss", "kd", *kept, *(("hidden",) if self.hidden else ()))

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

    def connect_codebook(self, codebook: Tensor) -> None:
        """Hand the tokenizer's codebook (V, d) to the parts that ask for it."""
        for part in (self.divergence, self.classes, self.selection):
            if (connect := getattr(part, "connect_codebook", None)) is not None:
                connect(codebook)

    def connect_networks(self, student: Any, teacher: Any) -> None:
        """Hand both networks to the matching of hidden states."""
        if self.hidden is not None:
            self.hidden.connect_networks(student, teacher)

    def log_probs(self, logits: Tensor, *teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities (m, V) of teacher and student at the temperature.

        Args:
            logits: (m, V) float32, the student's.
            teacher: hidden states (m, C) of the teacher, and its head (V, C).
        """
        teacher_logits = F.linear(*teacher).float()
        student = F.log_softmax(logits / self.temperature, dim=-1)
        return F.log_softmax(teacher_logits / self.temperature, dim=-1), student

    def divergences(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Log-probabilities (m, V) of both -> T^2 x divergence (m,)."""
        if self.classes is not None:
            teacher, student = self.classes(teacher, student)
        p, q = (student, teacher) if self.reverse else (teacher, student)
        return self.temperature**2 * self.divergence(p, q)

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor,
        teacher_hidden: Tensor,
        teacher_lm_head: Tensor,
        threshold: Tensor | None = None,
    ) -> Tensor:
        """
        Args:
            logits, targets, weights: as for `cross_entropy_sum`.
            teacher_hidden: (m, C) hidden states of the teacher.
            teacher_lm_head: (V, C).
            threshold: () of a selection, from `batch_inputs`.

        Returns:
            (3,): the weighted sum, the cross-entropy and the divergence; (4,) with a selection.
        """
        teacher, student = self.log_probs(logits, teacher_hidden, teacher_lm_head)
        ce = cross_entropy_sum(logits, targets, weights, self.label_smoothing, self.z_loss)
        kept: tuple[Tensor, ...] = ()
        if self.selection is not None:
            weights = weights * self.selection(teacher.detach(), student.detach(), threshold)
            kept = (weights.sum(),)
        kd = (self.divergences(teacher, student) * weights).sum()
        return torch.stack((self.gt_weight * ce + self.kd_weight * kd, ce, kd, *kept))

    def batch_inputs(
        self,
        hidden: Tensor,
        head: Tensor,
        token_inputs: Sequence[Tensor],
        shared_inputs: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        """The threshold () of a selection that keeps a fraction of a batch; else nothing.

        Args:
            hidden: (n, C) of the student.
            head: (V, C), its head's weight.
            token_inputs: targets and weights (n,), and the teacher's per token.
            shared_inputs: of the teacher.
        """
        if self.selection is None or self.selection.fraction is None:
            return ()
        _, weights, *teacher_inputs = token_inputs
        return (
            self.threshold(self.selection, hidden, head, weights, teacher_inputs, shared_inputs),
        )

    def threshold(
        self,
        selection: Selection,
        hidden: Tensor,
        head: Tensor,
        weights: Tensor,
        teacher_inputs: Sequence[Tensor],
        shared_inputs: Sequence[Tensor],
    ) -> Tensor:
        """The score () that the fraction of a selection reaches.

        Args:
            selection: with a ``fraction``.
            hidden, head, shared_inputs: as for `batch_inputs`.
            weights: (n,) of the tokens it is a fraction of.
            teacher_inputs: the teacher's hidden states (n, C).
        """

        def scores(logits: Tensor, *teacher: Tensor) -> Tensor:
            return selection.scores(*self.log_probs(logits, *teacher))

        assert selection.fraction is not None
        found = chunked_linear_map(hidden, head, scores, teacher_inputs, shared_inputs)
        return threshold_of(found, weights, selection.fraction)

    def hidden_loss(
        self, hidden: Tensor, targets: Tensor, weights: Tensor, *inputs: Tensor
    ) -> Tensor | None:
        """What the matching of hidden states adds to the loss, summed (); None without it.

        Args:
            hidden: (n, C) of the student.
            targets, weights: (n,).
            inputs: the teacher's per token, the hidden states first.
        """
        if self.hidden is None:
            return None
        distance: Tensor = self.hidden(hidden, inputs[0], weights)
        return self.hidden.weight * distance
