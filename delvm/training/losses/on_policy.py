"""The loss of sentences in which the student sampled some of the tokens itself.

Notation:
    n rows (the predicted tokens of a batch)    m rows of one chunk    f values of a loss
    V vocabulary    C hidden dim
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delvm.training.losses.distillation import DistillationLoss
from delvm.training.losses.selection import Selection
from delvm.training.losses.tokens import cross_entropy_sum


class OnPolicyLoss(nn.Module):
    """A `DistillationLoss` of true tokens, and its divergence alone of tokens that were sampled.

    A sampled token is not a truth, so it has no cross-entropy and no matching of hidden states; the
    divergence is over the same classes, in the same direction and at the same temperature. Of the
    sampled tokens only those that are trusted and selected count. All is divided by the weights of
    all tokens.

    The values are those of the other loss, averaged over true tokens and so comparable to those
    without sampled ones (the sum alone is over all); then the divergence of sampled tokens
    (``train/on_policy_kd``) and the fraction of them that counts (``train/on_policy_kept``).
    """

    def __init__(self, loss: DistillationLoss, selection: Selection | None = None) -> None:
        """
        Args:
            loss: of true tokens; its own selection is of these.
            selection: of the sampled tokens that are compared; None = all that are trusted.
        """
        super().__init__()
        self.loss, self.selection = loss, selection

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the values."""
        names, hidden = self.loss.metric_names, ("hidden",) if self.loss.hidden else ()
        return (*names[: len(names) - len(hidden)], "on_policy_kd", "on_policy_kept", *hidden)

    def connect_codebook(self, codebook: Tensor) -> None:
        """Hand the tokenizer's codebook (V, d) to the parts that ask for it."""
        self.loss.connect_codebook(codebook)
        if (connect := getattr(self.selection, "connect_codebook", None)) is not None:
            connect(codebook)

    def connect_networks(self, student: Any, teacher: Any) -> None:
        """Hand both networks to the matching of hidden states."""
        self.loss.connect_networks(student, teacher)

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        weights: Tensor,
        teacher_hidden: Tensor,
        is_sampled: Tensor,
        is_trusted: Tensor,
        teacher_lm_head: Tensor,
        *thresholds: Tensor,
    ) -> Tensor:
        """
        Args:
            logits, targets, weights, teacher_hidden, teacher_lm_head: as for `DistillationLoss`.
            is_sampled: (m,) bool, whether the student sampled the target.
            is_trusted: (m,) bool, the sampled ones of them on which the teacher is trusted.
            thresholds: from `batch_inputs`.

        Returns:
            (f,): the weighted sum, the cross-entropy, the divergence of true tokens, with a
            selection of these the weight that it keeps, the divergence of sampled tokens, and the
            weight of those that count.
        """
        loss, left = self.loss, list(thresholds)
        teacher, student = loss.log_probs(logits, teacher_hidden, teacher_lm_head)
        true_weights, sampled_weights = weights * ~is_sampled, weights * is_trusted
        ce = cross_entropy_sum(logits, targets, true_weights, loss.label_smoothing, loss.z_loss)
        pair = teacher.detach(), student.detach()
        kept: tuple[Tensor, ...] = ()
        if loss.selection is not None:
            threshold = None if loss.selection.fraction is None else left.pop(0)
            true_weights = true_weights * loss.selection(*pair, threshold)
            kept = (true_weights.sum(),)
        if self.selection is not None:
            threshold = None if self.selection.fraction is None else left.pop(0)
            sampled_weights = sampled_weights * self.selection(*pair, threshold)
        divergences = loss.divergences(teacher, student)
        kd, sampled_kd = (divergences * true_weights).sum(), (divergences * sampled_weights).sum()
        total = loss.gt_weight * ce + loss.kd_weight * (kd + sampled_kd)
        return torch.stack((total, ce, kd, *kept, sampled_kd, sampled_weights.sum()))

    def batch_inputs(
        self,
        hidden: Tensor,
        head: Tensor,
        token_inputs: Sequence[Tensor],
        shared_inputs: Sequence[Tensor],
    ) -> Sequence[Tensor]:
        """The thresholds () of selections that keep a fraction: of true tokens, of sampled ones.

        Args:
            hidden, head, shared_inputs: as for `DistillationLoss.batch_inputs`.
            token_inputs: targets and weights (n,), and the further inputs of `forward` per token.
        """
        _, weights, teacher_hidden, is_sampled, is_trusted = token_inputs
        return [
            self.loss.threshold(
                selection,
                hidden[rows],
                head,
                weights[rows],
                (teacher_hidden[rows],),
                shared_inputs,
            )
            for selection, rows in (
                (self.loss.selection, ~is_sampled),
                (self.selection, is_trusted),
            )
            if selection is not None and selection.fraction is not None
        ]

    def hidden_loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        weights: Tensor,
        teacher_hidden: Tensor,
        is_sampled: Tensor,
        *inputs: Tensor,
    ) -> Tensor | None:
        """What the matching of hidden states adds, over true tokens; see `DistillationLoss`."""
        return self.loss.hidden_loss(hidden, targets, weights * ~is_sampled, teacher_hidden)

    def denominators(
        self, weights: Tensor, teacher_hidden: Tensor, is_sampled: Tensor, is_trusted: Tensor
    ) -> Tensor:
        """The weights (f,) that each value is divided by: of all, of true or of sampled tokens."""
        true, sampled = (weights * ~is_sampled).sum(), (weights * is_sampled).sum()
        found = {"total_loss": weights.sum(), "on_policy_kd": sampled, "on_policy_kept": sampled}
        counts = torch.stack([found.get(name, true) for name in self.metric_names])
        return counts.clamp(min=torch.finfo(counts.dtype).tiny)  # there may be none
