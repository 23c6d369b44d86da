"""Causal attention on a processor in bfloat16, a block of queries at a time.

torch's own attention there multiplies small tiles, at a tenth to a sixth of the processor's speed.
Here each product is a large one over all heads. The backward pass computes a block's weights again
from q and k, so that memory stays linear in tokens (Rabe and Staats 2021).

Notation:
    B batch    T tokens    H heads    D width of a head    N = B * H
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

LARGEST = 256  # queries of a block; smaller ones skip more, larger ones multiply faster


def blockwise(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
    """Causal attention; q, k, v and the result are (B, T, H, D).

    Args:
        q, k, v: queries, keys and values.
        starts: (B, T) int64, where in its row the document of each token begins; documents do not
            see each other. None = each row is one.
    """
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return _attend(q, k, v, starts)


# Operators of their own, so that a compiler takes each for one step and does not unroll its loop.
@torch.library.custom_op("delvm::blockwise", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
    """The result (B, T, H, D) of q, k, v (B, H, T, D)."""
    b, h, t, d = q.shape
    out = q.new_empty(b, t, h, d)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (N, T, D)
    with torch.autocast("cpu", enabled=False):
        for rows, keys in _blocks(t, starts):
            weights = _weights(q, k, rows, keys, starts)
            out[:, rows] = torch.bmm(weights, v[:, keys]).unflatten(0, (b, h)).transpose(1, 2)
    return out


@torch.library.custom_op("delvm::blockwise_backward", mutates_args=())
def _slopes(
    slope: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (B, H, T, D) of q, k and v, given that of the result (B, T, H, D)."""
    shape = q.shape
    slope = slope.transpose(1, 2).contiguous()
    q, k, v, slope = (x.flatten(0, 1) for x in (q, k, v, slope))  # (N, T, D)
    to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    with torch.autocast("cpu", enabled=False):
        for rows, keys in _blocks(q.shape[1], starts):
            weights = _weights(q, k, rows, keys, starts)
            to_v[:, keys].baddbmm_(weights.mT, slope[:, rows])
            to_weights = torch.bmm(slope[:, rows], v[:, keys].contiguous().mT)
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            to_q[:, rows] = _scaled(to_scores, k[:, keys], q.shape[-1])
            to_k[:, keys].baddbmm_(to_scores.mT, q[:, rows], alpha=q.shape[-1] ** -0.5)
    return to_q.view(shape), to_k.view(shape), to_v.view(shape)


def _blocks(length: int, starts: Tensor | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, each with all keys that any of them sees."""
    size = min(LARGEST, max(64, length // 4))
    for begin in range(0, length, size):
        end = min(begin + size, length)
        first = 0 if starts is None else int(starts[:, begin].min())
        yield slice(begin, end), slice(first, end)


def _weights(q: Tensor, k: Tensor, rows: slice, keys: slice, starts: Tensor | None) -> Tensor:
    """How much each query of a block looks at each key, (N, rows, keys).

    Args:
        q, k: (N, T, D).
        rows, keys: from `_blocks`.
        starts: as for `blockwise`.
    """
    # A slice between others, transposed, would be multiplied a third slower than a copy of it.
    scores = _scaled(q[:, rows], k[:, keys].contiguous().mT, q.shape[-1])
    place = torch.arange(keys.start, keys.stop)
    query = torch.arange(rows.start, rows.stop)[:, None]
    if starts is None:
        later = rows.start - keys.start  # no query sees less than what lies before the block
        unseen = torch.zeros(query.shape[0], query.shape[0], dtype=scores.dtype)
        scores[..., later:] += unseen.masked_fill_(place[later:] > query, -math.inf)
    else:
        unseen = (place > query) | (place < starts[:, rows, None])  # (B, rows, keys)
        by_row = scores.unflatten(0, (len(starts), -1))
        by_row.masked_fill_(unseen[:, None], -math.inf)
    return scores.softmax(-1)


def _scaled(a: Tensor, b: Tensor, width: int) -> Tensor:
    """a @ b / sqrt(width), rounded once."""
    nothing = a.new_zeros(()).expand(len(a), a.shape[1], b.shape[2])
    return torch.baddbmm(nothing, a, b, beta=0, alpha=width**-0.5)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> Tensor:
    b, h, t, d = q.shape
    return q.new_empty(b, t, h, d)


@_slopes.register_fake
def _(
    slope: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
    return *_slopes(slope, *ctx.saved_tensors), None


_attend.register_autograd(_backward, setup_context=_keep)
