"""Losses over tokens.

Notation:
    B batch    T tokens    V vocabulary    N tokens a picture
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BYTES_HELD = 1 << 25  # of logits that are there at once, in the precision of products
# Of those, how many have their loss taken at once, in float32: what a processor's cache holds.
LOSSES_HELD = {"cpu": 1 << 20}

# loss(logits (m, V) float32, *columns of those rows, *whole) -> sums over the rows, () or (f,):
# what is learned, and behind it figures that are only told.
Loss = Callable[..., Tensor]


def targets(pictures: Tensor, length: int, tokens_per_image: int) -> Tensor:
    """Which tokens of sentences are of targets: (B, T) bool.

    In pairs every second picture is; of clips, tuples and single pictures all are.

    Args:
        pictures: (B,) pictures an example, k.
        length: tokens a sentence, T.
        tokens_per_image: N.
    """
    number = torch.arange(length, device=pictures.device) // tokens_per_image  # (T,)
    return (pictures[:, None] != 2) | (number % 2 == 1)


def documents(pictures: Tensor, length: int, tokens_per_image: int) -> Tensor:
    """The document that each token of a sentence belongs to: (B, T) int64.

    Single pictures (k = 1) have nothing to do with each other, so each is a document of its own;
    any other sentence is one document.

    Args:
        pictures, length, tokens_per_image: as for `targets`.
    """
    number = torch.arange(length, device=pictures.device) // tokens_per_image
    return torch.where(pictures[:, None] == 1, number, 0)


def token_weights(is_target: Tensor, input_weight: float, document: Tensor | None) -> Tensor:
    """Weight (B, T - 1) of each predicted token of sentences.

    Tokens of inputs have the weight ``input_weight``, those of targets 1. The paper weighs all
    alike. In a small model inputs, which are photographs and hard to predict, would otherwise take
    most of the capacity. The first token of a document is predicted from nothing: weight 0.

    Args:
        is_target: (B, T), from `targets`.
        document: (B, T), from `documents`; None = one document a sentence.
    """
    # In float32 whatever the default is, since they are summed.
    weights = input_weight + (1 - input_weight) * is_target[:, 1:].float()
    return weights if document is None else weights * (document[:, 1:] == document[:, :-1])


def misread(
    ids: Tensor, is_target: Tensor, tokens_per_image: int, share: float, vocab_size: int
) -> Tensor:
    """Ids (B, T) as a student reads them when it must not trust its own answer too far.

    In each target picture a part of the tokens, drawn anew from 0 to ``share``, is replaced by
    random codes. A student that has only ever read true answers follows the tokens it has drawn
    rather than the query, and one wrong colour spreads over the picture.
    """
    rows, length = ids.shape
    picture = torch.arange(length, device=ids.device) // tokens_per_image
    rates = share * torch.rand(rows, int(picture[-1]) + 1, device=ids.device)
    swapped = (torch.rand(ids.shape, device=ids.device) < rates[:, picture]) & is_target
    return torch.where(swapped, torch.randint_like(ids, vocab_size), ids)


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Loss (n,) of next tokens in nats.

    Args:
        logits: (n, V) float32.
        targets: (n,) int64.
        label_smoothing: share of the target spread evenly over the vocabulary.
        z_loss: weight of the squared log-partition, which keeps logits from drifting.
    """
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(-1).square()
    return losses


def distillation(logits: Tensor, teacher: Tensor, temperature: float, inverse: bool) -> Tensor:
    """T^2 x KL(teacher || student), or KL(student || teacher) when ``inverse``, of each token (n,).

    Args:
        logits, teacher: (n, V) float32.
        temperature: T; both distributions are softened by it (Hinton et al. 2015).
    """
    student = F.log_softmax(logits / temperature, dim=-1)
    guide = F.log_softmax(teacher / temperature, dim=-1)
    p, q = (student, guide) if inverse else (guide, student)
    return temperature**2 * (p.exp() * (p - q)).sum(-1)


def next_tokens(
    logits: Tensor, targets: Tensor, weights: Tensor, *, label_smoothing: float, z_loss: float
) -> Tensor:
    """Weighed sum () of `cross_entropy` over some rows: a `Loss`.

    Args:
        logits, targets: as there.
        weights: (n,), from `token_weights`.
        label_smoothing, z_loss: as there.
    """
    return (cross_entropy(logits, targets, label_smoothing, z_loss) * weights).sum()


def guided(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    guide: Tensor,
    head: Tensor,
    *,
    truth: Loss,
    gt_weight: float,
    kd_weight: float,
    temperature: float,
    inverse: bool,
) -> Tensor:
    """What a student learns from a teacher as well as from the truth: a `Loss`.

    Args:
        logits, targets, weights: as for `next_tokens`.
        guide: (n, C) hidden states of the teacher.
        head: (V, C), its head.
        truth: the loss without the teacher.
        gt_weight, kd_weight: weights of that loss and of `distillation`.
        temperature, inverse: as for `distillation`.

    Returns:
        (3,): both together, the loss without the teacher, and `distillation`.
    """
    teacher = F.linear(guide, head).float()
    kd = (distillation(logits, teacher, temperature, inverse) * weights).sum()
    plain = truth(logits, targets, weights)
    return torch.stack((gt_weight * plain + kd_weight * kd, plain, kd))


def product_dtype(weight: Tensor) -> torch.dtype:
    """What products with a weight are taken in: autocast's precision, or else the weight's."""
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def over_logits(
    hidden: Tensor,
    weight: Tensor,
    loss: Loss,
    columns: Sequence[Tensor] = (),
    whole: Sequence[Tensor] = (),
    *,
    held: int = BYTES_HELD,
    compiled: bool = False,
) -> Tensor:
    """Sums of a loss over the logits ``hidden @ weight.T``, which are never all there at once.

    A stretch of rows at a time gets its logits, their loss, and at once the gradients too, so that
    the backward pass has nothing left to do but scale them. Products are taken in autocast's
    precision where it is on, losses in float32, a few rows at a time.

    Args:
        hidden: (n, C).
        weight: (V, C), of the head.
        loss: what is summed; it keeps no state.
        columns: what the loss reads of each row, (n, ...) each.
        whole: what it reads of all rows alike.
        held: bytes of logits that are there at once, at most.
        compiled: whether the loss and its gradient go through torch.compile, which makes one
            operation of them; ``loss`` is then the same object each time.

    Returns:
        The sums, as the loss gives them. The first is differentiable in hidden and weight, once.
    """
    dtype = product_dtype(weight)
    rows = max(1, held // (len(weight) * dtype.itemsize))
    few = _Few(loss, tuple(columns), tuple(whole), compiled)
    return _OverLogits.apply(hidden, weight, few, rows, dtype)


class _OverLogits(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, few: "_Few", rows: int, dtype: torch.dtype
    ) -> Tensor:
        learning = any(ctx.needs_input_grad[:2])
        matrix = weight.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        to_hidden = torch.empty_like(hidden) if learning else hidden
        to_weight: Tensor | None = None
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            states = hidden[part].to(dtype)
            logits = states @ matrix.T
            total = total + few.to_slopes(logits, start, learning)
            if learning:
                to_hidden[part] = logits @ matrix
                added = logits.T @ states
                # Summed in float32, as half precision would lose the small ones.
                to_weight = added.float() if to_weight is None else to_weight.add_(added)
        if learning:
            if to_weight is None:  # there are no rows
                to_weight = torch.zeros_like(weight, dtype=torch.float32)
            ctx.save_for_backward(to_hidden, to_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        # In place: they are as large as the head, and nobody else's.
        to_hidden, to_weight = (each.mul_(slope.flatten()[0]) for each in ctx.saved_tensors)
        return to_hidden, to_weight, None, None, None


@dataclass(frozen=True)
class _Few:
    """The loss of a few rows at a time, as of `over_logits`."""

    loss: Loss
    columns: tuple[Tensor, ...]
    whole: tuple[Tensor, ...]
    compiled: bool

    def to_slopes(self, logits: Tensor, start: int, learning: bool) -> Tensor:
        """The sums of logits (m, V), rows ``start`` on; they become the first's gradient."""
        total = logits.new_zeros((), dtype=torch.float32)
        held = LOSSES_HELD.get(logits.device.type, logits.numel())
        rows = max(1, held // logits.shape[1])
        take = _compiled() if self.compiled else _take
        for first, few in enumerate(logits.split(rows)):
            begin = start + first * rows
            columns = [each[begin : begin + len(few)] for each in self.columns]
            total = total + take(self.loss, few, columns, self.whole, learning)
        return total


def _take(
    loss: Loss, few: Tensor, columns: Sequence[Tensor], whole: Sequence[Tensor], learning: bool
) -> Tensor:
    """The sums of a few logits, which become the gradient of the first in place."""
    if not learning:
        return loss(few.float(), *columns, *whole)
    if not torch.compiler.is_compiling():
        exact = few.float().detach().requires_grad_()
        with torch.enable_grad():
            sums = loss(exact, *columns, *whole)
            few.copy_(torch.autograd.grad(sums.flatten()[0], exact)[0].detach())
        return sums.detach()

    def first(exact: Tensor) -> tuple[Tensor, Tensor]:
        sums = loss(exact, *columns, *whole)
        return sums.flatten()[0], sums

    # The compiler follows this one; uncompiled it would refuse hooks on saved tensors.
    slopes, sums = torch.func.grad(first, has_aux=True)(few.float())
    few.copy_(slopes)
    return sums


@cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_take)
