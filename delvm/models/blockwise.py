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
    if not len(q):
        return torch.empty_like(q)
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return _attend(q, k, v, starts)[0]


# Operators of their own, so that a compiler takes each for one step and does not unroll its loop.
@torch.library.custom_op("delvm::blockwise", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result (B, T, H, D) of q, k, v (B, H, T, D), and the largest scores (N, T, 1)."""
    b, h, t, d = q.shape
    out, top = q.new_empty(b, t, h, d), q.new_empty(b * h, t, 1)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))  # (N, T, D)
    with torch.autocast("cpu", enabled=False):
        for rows, keys in _blocks(t, starts):
            top[:, rows] = _scores(q, k, rows, keys, starts).amax(-1, keepdim=True)
            weights = _scores(q, k, rows, keys, starts, top).softmax(-1)
            out[:, rows] = torch.bmm(weights, v[:, keys]).unflatten(0, (b, h)).transpose(1, 2)
    return out, top


@torch.library.custom_op("delvm::blockwise_backward", mutates_args=())
def _slopes(
    slope: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, top: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients (B, H, T, D) of q, k and v, given that of the result (B, T, H, D)."""
    shape, scale = q.shape, q.shape[-1] ** -0.5
    slope = slope.transpose(1, 2).contiguous()
    q, k, v, slope = (x.flatten(0, 1) for x in (q, k, v, slope))  # (N, T, D)
    to_q, to_k, to_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    with torch.autocast("cpu", enabled=False):
        for rows, keys in _blocks(q.shape[1], starts):
            weights = _scores(q, k, rows, keys, starts, top).softmax(-1)
            to_v[:, keys].baddbmm_(weights.mT, slope[:, rows])
            to_weights = torch.bmm(slope[:, rows], v[:, keys].contiguous().mT)
            to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            to_q[:, rows] = torch.bmm(to_scores, k[:, keys])
            to_k[:, keys].baddbmm_(to_scores.mT, q[:, rows], alpha=scale)
    return to_q.mul_(scale).view(shape), to_k.view(shape), to_v.view(shape)


def _blocks(length: int, starts: Tensor | None) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, each with all keys that any of them sees."""
    size = min(LARGEST, max(64, -(-length // 4)))
    for begin in range(0, length, size):
        end = min(begin + size, length)
        first = 0 if starts is None else int(starts[:, begin].min())
        yield slice(begin, end), slice(first, end)


def _scores(
    q: Tensor,
    k: Tensor,
    rows: slice,
    keys: slice,
    starts: Tensor | None,
    top: Tensor | None = None,
) -> Tensor:
    """q @ k / sqrt(D) - top for a block, (N, rows, keys), -inf where a query does not see a key.

    Half precision rounds a score of 40 by an eighth. Less the largest of its query, which changes
    no weight, those that count are near 0 and exact enough.

    Args:
        q, k: (N, T, D).
        rows, keys: from `_blocks`.
        starts: as for `blockwise`.
        top: (N, T, 1), about the largest score of each query; None = 0.
    """
    # A slice between others, transposed, would be multiplied a third slower than a copy of it.
    transposed = k[:, keys].contiguous().mT
    less = q.new_zeros(1, 1, 1) if top is None else top[:, rows]
    scores = torch.baddbmm(
        less, q[:, rows], transposed, beta=0 if top is None else -1, alpha=q.shape[-1] ** -0.5
    )
    place = torch.arange(keys.start, keys.stop)
    query = torch.arange(rows.start, rows.stop)[:, None]
    if starts is None:
        later = rows.start - keys.start  # no query sees less than what lies before the block
        block = scores.new_zeros(len(query), len(query))
        # Added, since filling by a mask takes four times as long.
        scores[..., later:] += block.masked_fill_(place[later:] > query, -math.inf)
    else:
        unseen = (place > query) | (place < starts[:, rows, None])  # (B, rows, keys)
        by_row = scores.unflatten(0, (len(starts), -1))
        by_row.masked_fill_(unseen[:, None], -math.inf)
    return scores


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    b, h, t, d = q.shape
    return q.new_empty(b, t, h, d), q.new_empty(b * h, t, 1)


@_slopes.register_fake
def _(
    slope: Tensor, q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None, top: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(ctx: Any, slope: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_slopes(slope, *ctx.saved_tensors), None


_attend.register_autograd(_backward, setup_context=_keep)
