"""Losses over tokens, and their computation without ever holding all logits.

Notation:
    B batch    T tokens per sentence    V vocabulary    N tokens per image    C hidden dim
    n rows (the predicted tokens of a batch)    m rows of one chunk    f values of a loss
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from delvm.models.precision import autocast_dtype

MAX_LOGITS_BYTES = 1 << 25  # of logits that are held at once, in the matmul dtype
# Number of logits per float32 loss chunk on CPU (sized to the L2 cache).
LOSS_CHUNK_ELEMENTS = {"cpu": 1 << 20}

# loss_fn(logits (m, V) float32, *token_inputs of those rows, *shared_inputs) -> sums over the rows,
# () or (f,): the differentiable loss first, then auxiliary metrics, not differentiated.
LossFn = Callable[..., Tensor]


class TokenLoss(Protocol):
    """What training asks of a loss: any class of this form can be ``module.loss``.

    A loss keeps no state, since it is called on a few rows at a time, and must be differentiable
    in the logits. It may name its values by an attribute ``metric_names: tuple[str, ...]``, one
    name per value, which are logged as ``train/NAME``; without it the first is logged as
    ``train/loss``.
    """

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor, *inputs: Tensor) -> Tensor:
        """Sums over rows.

        Args:
            logits: (m, V) float32.
            targets: (m,) int64, the tokens to predict.
            weights: (m,) float32, the weight of each token.
            inputs: what the module hands on besides; a distillation the teacher's hidden states
                (m, C) and its LM head (V, C).

        Returns:
            () or (f,): the loss to minimize first, then auxiliary metrics.
        """


def metric_names(loss_fn: object) -> tuple[str, ...]:
    """The names of a loss's values; ``("loss",)`` if it does not give any."""
    return cast(tuple[str, ...], getattr(loss_fn, "metric_names", ("loss",)))


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


class CrossEntropyLoss:
    """Weighted sum of the cross-entropy over tokens."""

    metric_names = ("loss",)

    def __init__(self, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        """
        Args:
            label_smoothing: fraction of the target spread evenly over the vocabulary, in [0, 1).
            z_loss: weight of the squared log-partition, which keeps logits from drifting.
        """
        self.label_smoothing, self.z_loss = label_smoothing, z_loss

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = []
        if not 0 <= self.label_smoothing <= 1:
            errors.append(f"label_smoothing={self.label_smoothing} is a fraction: set it to 0.1")
        if self.z_loss < 0:
            errors.append(f"z_loss={self.z_loss} is below 0: set it to 0 or more")
        return errors

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The sum () over rows; arguments as for `cross_entropy_sum`."""
        return cross_entropy_sum(logits, targets, weights, self.label_smoothing, self.z_loss)


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


def target_mask(images_per_example: Tensor, length: int, tokens_per_image: int) -> Tensor:
    """Mask (B, T) bool of the tokens that belong to target images.

    In pairs every second image is a target; in clips, tuples and single images all are.

    Args:
        images_per_example: (B,) images per example, k.
        length: tokens per sentence, T.
        tokens_per_image: N.
    """
    image = torch.arange(length, device=images_per_example.device) // tokens_per_image  # (T,)
    return (images_per_example[:, None] != 2) | (image % 2 == 1)


def document_ids(images_per_example: Tensor, length: int, tokens_per_image: int) -> Tensor:
    """The document that each token of a sentence belongs to, (B, T) int64.

    Single images (k = 1) are unrelated, so each is a document by itself; any other sentence is
    one document.

    Args:
        images_per_example, length, tokens_per_image: as for `target_mask`.
    """
    image = torch.arange(length, device=images_per_example.device) // tokens_per_image
    return torch.where(images_per_example[:, None] == 1, image, 0)


def token_weights(is_target: Tensor, input_weight: float, documents: Tensor | None) -> Tensor:
    """Weight (B, T - 1) of each predicted token of sentences.

    Tokens of input images have the weight ``input_weight``, those of targets 1; the paper weighs
    all alike. In a small model input images, which are photographs and hard to predict, would
    otherwise take most of the capacity. The first token of a document has nothing to be predicted
    from: weight 0.

    Args:
        is_target: (B, T), from `target_mask`.
        input_weight: weight of the tokens of input images.
        documents: (B, T), from `document_ids`; None = one document per sentence. Tokens of a
            document below 0 are padding: weight 0.
    """
    # In float32 whatever the default dtype is, since they are summed.
    weights = input_weight + (1 - input_weight) * is_target[:, 1:].float()
    if documents is None:
        return weights
    return weights * ((documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0))


def cross_entropy(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Next-token loss (n,) in nats.

    Args:
        logits: (n, V) float32.
        targets: (n,) int64.
        label_smoothing: fraction of the target spread evenly over the vocabulary.
        z_loss: weight of the squared log-partition, which keeps logits from drifting.
    """
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=label_smoothing)
    if z_loss:
        losses = losses + z_loss * logits.logsumexp(-1).square()
    return losses


def cross_entropy_sum(
    logits: Tensor,
    targets: Tensor,
    weights: Tensor,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Weighted sum () of `cross_entropy` over rows.

    Args:
        logits: (m, V) float32.
        targets: (m,) int64.
        weights: (m,), from `token_weights`.
        label_smoothing, z_loss: as for `cross_entropy`.
    """
    return (cross_entropy(logits, targets, label_smoothing, z_loss) * weights).sum()


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


def chunked_linear_loss(
    hidden: Tensor,
    weight: Tensor,
    loss_fn: LossFn,
    token_inputs: Sequence[Tensor] = (),
    shared_inputs: Sequence[Tensor] = (),
    *,
    max_logits_bytes: int = MAX_LOGITS_BYTES,
    compiled: bool = False,
) -> Tensor:
    """Loss over ``hidden @ weight.T`` computed in chunks, so the full logits never exist.

    The gradients of a chunk are computed together with its loss, so the backward pass only scales
    them. Matmuls run in autocast's dtype where it is on, losses in float32.

    Args:
        hidden: (n, C).
        weight: (V, C), of the LM head.
        loss_fn: sums a loss over rows, as for `LossFn`; it keeps no state.
        token_inputs: inputs of the loss with one row per token, (n, ...) each.
        shared_inputs: inputs of the loss that are the same for all tokens.
        max_logits_bytes: largest number of bytes of logits held at once.
        compiled: whether the loss and its gradient go through torch.compile, which fuses them;
            ``loss_fn`` must then be the same object in each call.

    Returns:
        The sums, in the shape that the loss gives. The first is differentiable in hidden and
        weight, once.
    """
    dtype = autocast_dtype(weight)
    rows = max(1, max_logits_bytes // (len(weight) * dtype.itemsize))
    chunk_loss = _ChunkLoss(loss_fn, tuple(token_inputs), tuple(shared_inputs), compiled)
    apply = cast(Callable[..., Tensor], _ChunkedLinearLoss.apply)
    return apply(hidden, weight, chunk_loss, rows, dtype)


class _ChunkedLinearLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        chunk_loss: "_ChunkLoss",
        rows: int,
        dtype: torch.dtype,
    ) -> Tensor:
        needs_grad = any(ctx.needs_input_grad[:2])
        cast_weight = weight.to(dtype)
        total = hidden.new_zeros((), dtype=torch.float32)
        grad_hidden = torch.empty_like(hidden) if needs_grad else hidden
        grad_weight: Tensor | None = None
        for start in range(0, len(hidden), rows):
            chunk = slice(start, start + rows)
            cast_hidden = hidden[chunk].to(dtype)
            logits = cast_hidden @ cast_weight.T
            total = total + chunk_loss.backward_into_(logits, start, needs_grad)
            if needs_grad:
                grad_hidden[chunk] = logits @ cast_weight
                added = logits.T @ cast_hidden
                # Summed in float32, as half precision would lose the small ones.
                grad_weight = added.float() if grad_weight is None else grad_weight.add_(added)
        if needs_grad:
            if grad_weight is None:  # there are no rows
                grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # In place: they are as large as the head, and nothing else holds them.
        grads = (each.mul_(grad_output.flatten()[0]) for each in ctx.saved_tensors)
        grad_hidden, grad_weight = grads
        return grad_hidden, grad_weight, None, None, None


@dataclass(frozen=True)
class _ChunkLoss:
    """The loss of `chunked_linear_loss` over a chunk of rows, a few of them at a time."""

    loss_fn: LossFn
    token_inputs: tuple[Tensor, ...]
    shared_inputs: tuple[Tensor, ...]
    compiled: bool

    def backward_into_(self, logits: Tensor, start: int, needs_grad: bool) -> Tensor:
        """The sums over logits (m, V), rows from ``start``; logits become the loss's gradient."""
        total = logits.new_zeros((), dtype=torch.float32)
        elements = LOSS_CHUNK_ELEMENTS.get(logits.device.type, logits.numel())
        rows = max(1, elements // logits.shape[1])
        loss_and_grad = _compiled_loss_and_grad() if self.compiled else _loss_and_grad
        for number, chunk in enumerate(torch.split(logits, rows)):
            first = start + number * rows
            inputs = [each[first : first + len(chunk)] for each in self.token_inputs]
            total = total + loss_and_grad(
                self.loss_fn, chunk, inputs, self.shared_inputs, needs_grad
            )
        return total


def _loss_and_grad(
    loss_fn: LossFn,
    chunk: Tensor,
    token_inputs: Sequence[Tensor],
    shared_inputs: Sequence[Tensor],
    needs_grad: bool,
) -> Tensor:
    """The sums over a chunk of logits (m, V), which becomes the gradient of the first in place."""
    if not needs_grad:
        return loss_fn(chunk.float(), *token_inputs, *shared_inputs)
    if not torch.compiler.is_compiling():
        logits = chunk.float().detach().requires_grad_()
        with torch.enable_grad():
            sums = loss_fn(logits, *token_inputs, *shared_inputs)
            chunk.copy_(torch.autograd.grad(sums.flatten()[0], logits)[0].detach())
        return sums.detach()

    def first_of_sums(logits: Tensor) -> tuple[Tensor, Tensor]:
        sums = loss_fn(logits, *token_inputs, *shared_inputs)
        return sums.flatten()[0], sums

    # The compiler can trace this form; uncompiled it would refuse hooks on saved tensors.
    grad, sums = torch.func.grad(first_of_sums, has_aux=True)(chunk.float())
    chunk.copy_(grad)
    return cast(Tensor, sums)


@cache
def _compiled_loss_and_grad() -> Callable[..., Tensor]:
    return torch.compile(_loss_and_grad)
