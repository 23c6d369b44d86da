"""Causal attention in bfloat16 on a processor, where torch's is slow.

torch's own attention there multiplies small tiles, at a tenth to a sixth of the processor's speed.
This one is written in C++ (blockwise.cpp) and compiled at its first use. Memory is linear in
tokens, and documents that share a row skip each other.

Notation:
    B batch    T tokens    H heads    D width of a head    N = B * H
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delvm.models.cpu import build as native
from delvm.models.precision import has_native_bf16
from delvm.progress import log


def blockwise(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None = None) -> Tensor:
    """Causal attention; q, k, v and the result are (B, T, H, D) bfloat16, D even.

    Args:
        q, k, v: queries, keys and values.
        starts: (B, T) int64, where in its row the document of each token begins; documents do not
            see each other. None = each row is one.

    Raises:
        ValueError: they are of another kind, or do not fit each other.
    """
    if q.dtype is not torch.bfloat16 or q.shape[-1] % 2 or not q.shape == k.shape == v.shape:
        told = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (q, k, v))
        raise ValueError(f"blockwise takes (B, T, H, D) bfloat16, D even, three alike: {told}")
    if starts is not None and (starts.shape != q.shape[:2] or starts.dtype is not torch.int64):
        raise ValueError(f"starts are {tuple(starts.shape)} {starts.dtype}, not (B, T) int64")
    if not q.numel():
        return torch.empty_like(q)
    return _attend(q.contiguous(), k.contiguous(), v.contiguous(), starts)[0]


@torch.compiler.assume_constant_result
def works() -> bool:
    """Whether it can be computed here; where it cannot though bfloat16 is fast, say why, once."""
    return _tried()


@cache
def _tried() -> bool:
    if not has_native_bf16("cpu"):
        return False
    try:
        probe = torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16)
        _attend(probe, probe, probe, None)
    except (OSError, RuntimeError) as error:
        log(f"attention is torch's, at less than half the speed, since {error}")
        return False
    return True


@cache
def _library() -> ctypes.CDLL:
    library = native.library(Path(__file__).with_suffix(".cpp"))
    library.delvm_attend.restype = library.delvm_slopes.restype = ctypes.c_bool
    return library


def _call(name: str, shape: torch.Size, *tensors: Tensor | None) -> None:
    """Compute into the last of some tensors (``None`` = a null pointer)."""
    assert all(each is None or each.is_contiguous() for each in tensors)
    pointers = [None if each is None else ctypes.c_void_p(each.data_ptr()) for each in tensors]
    if not getattr(_library(), name)(*pointers, *map(ctypes.c_int64, shape)):
        raise RuntimeError("oneDNN, by which torch multiplies, is switched off or has no kernel")


# Operators of their own, so that a compiler takes each for one step.
@torch.library.custom_op("delvm::blockwise", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result (B, T, H, D), and the logarithm (N, T) of each query's sum."""
    b, t, h, _ = q.shape
    out, sums = torch.empty_like(q), q.new_empty(b * h, t, dtype=torch.float32)
    _call("delvm_attend", q.shape, q, k, v, _as_read(starts), out, sums)
    return out, sums


@torch.library.custom_op("delvm::blockwise_backward", mutates_args=())
def _slopes(
    slope: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor | None,
    out: Tensor,
    sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, given that of the result; all (B, T, H, D)."""
    found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    given = (slope.contiguous(), q, k, v, _as_read(starts), out, sums)
    _call("delvm_slopes", q.shape, *given, *found)
    return found


def _as_read(starts: Tensor | None) -> Tensor | None:
    return None if starts is None else starts.contiguous()


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    b, t, h, _ = q.shape
    return torch.empty_like(q), q.new_empty(b * h, t, dtype=torch.float32)


@_slopes.register_fake
def _(
    slope: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, slope: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_slopes(slope, *ctx.saved_tensors), None


_attend.register_autograd(_backward, setup_context=_keep)
