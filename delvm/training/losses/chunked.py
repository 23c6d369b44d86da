"""Losses of logits, computed without ever holding all logits.

Notation:
    B batch    T tokens per sentence    V vocabulary    N tokens per image    C hidden dim
    n rows (the predicted tokens of a batch)    m rows of one chunk    f values of a loss
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from delvm.models.precision import autocast_dtype

MAX_LOGITS_BYTES = 1 << 25  # of logits that are held at once, in the matmul dtype
# Number of logits per float32 loss chunk on CPU (sized to the L2 cache).
LOSS_CHUNK_ELEMENTS = {"cpu": 1 << 20}

# loss_fn(logits (m, V) float32, *token_inputs of those rows, *shared_inputs) -> sums over the rows,
# () or (f,): the differentiable loss first, then auxiliary metrics, not differentiated.
LossFn = Callable[..., Tensor]


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


@torch.no_grad()
def chunked_linear_map(
    hidden: Tensor,
    weight: Tensor,
    function: Callable[..., Tensor],
    token_inputs: Sequence[Tensor] = (),
    shared_inputs: Sequence[Tensor] = (),
    *,
    max_logits_bytes: int = MAX_LOGITS_BYTES,
) -> Tensor:
    """A value of each row of ``hidden @ weight.T``, in chunks and without gradients.

    Args:
        hidden, weight, token_inputs, shared_inputs, max_logits_bytes: as for
            `chunked_linear_loss`.
        function: of logits (m, V) float32 and the inputs of these rows; returns (m,).

    Returns:
        (n,).
    """
    weight = weight.to(autocast_dtype(weight))
    elements = max_logits_bytes // weight.dtype.itemsize
    elements = min(elements, LOSS_CHUNK_ELEMENTS.get(weight.device.type, elements))
    rows = max(1, elements // len(weight))
    values = [hidden.new_zeros(0, dtype=torch.float32)]
    for start in range(0, len(hidden), rows):
        chunk = slice(start, start + rows)
        logits = (hidden[chunk].to(weight.dtype) @ weight.T).float()
        values.append(function(logits, *(each[chunk] for each in token_inputs), *shared_inputs))
    return torch.cat(values)


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
        needs_grad, needs_weight = any(ctx.needs_input_grad[:2]), ctx.needs_input_grad[1]
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
            if needs_weight:  # a student with an adapter has a frozen head
                added = logits.T @ cast_hidden
                # Summed in float32, as half precision would lose the small ones.
                grad_weight = added.float() if grad_weight is None else grad_weight.add_(added)
        if needs_weight:
            if grad_weight is None:  # there are no rows
                grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            grad_weight = grad_weight.to(weight.dtype)
        if needs_grad:
            ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # In place: they are as large as the head, and nothing else holds them.
        scale = grad_output.flatten()[0]
        grads = (None if each is None else each.mul_(scale) for each in ctx.saved_tensors)
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
