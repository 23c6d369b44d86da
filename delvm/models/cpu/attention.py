"""Causal attention in bfloat16 on CPU, as FlashAttention-2 in C++ (attention.cpp).

torch's own CPU attention multiplies small tiles, at 10 to 17% of the CPU's peak. This kernel is
compiled at its first use. Its memory grows linearly with the number of tokens, and it skips pairs
of tokens in different documents of a row.

Notation:
    B batch    T tokens    H heads    D dimension of a head    N = B * H
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from delvm.models.cpu.build import build_extension, kernel_works
from delvm.models.precision import has_native_bf16

FuncT = TypeVar("FuncT", bound=Callable[..., Any])


def cpu_flash_attention(
    q: Tensor, k: Tensor, v: Tensor, start_index: Tensor | None = None
) -> Tensor:
    """Causal attention; q, k, v and the result are (B, T, H, D) bfloat16 with an even D.

    Args:
        q, k, v: queries, keys and values.
        start_index: (B, T) int64, index in its row of the first token of each token's document;
            documents do not attend to each other. None = each row is one document.

    Raises:
        ValueError: a dtype or shape is not supported, or the shapes differ.
    """
    if q.dtype is not torch.bfloat16 or q.shape[-1] % 2 or not q.shape == k.shape == v.shape:
        actual = ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in (q, k, v))
        raise ValueError(
            f"cpu_flash takes three (B, T, H, D) bfloat16 of equal shape with an even D: {actual}"
        )
    if start_index is not None and (
        start_index.shape != q.shape[:2] or start_index.dtype is not torch.int64
    ):
        actual = f"{tuple(start_index.shape)} {start_index.dtype}"
        raise ValueError(f"start_index is {actual}, not (B, T) int64")
    if not q.numel():
        return torch.empty_like(q)
    out, _ = _forward(q.contiguous(), k.contiguous(), v.contiguous(), start_index)
    return cast(Tensor, out)


def attend_after_prefix(
    q: Tensor, k: Tensor, v: Tensor, prefix_keys: Tensor, prefix_values: Tensor
) -> Tensor:
    """Attention of rows to a prefix that all of them share, and causally to themselves.

    Args:
        q, k, v: of the rows, (B, T, H, D) bfloat16 with an even D.
        prefix_keys, prefix_values: (H, P, D) bfloat16; heads may be further apart than P tokens.

    Returns:
        (B, T, H, D) bfloat16, without gradient.
    """
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out, logsumexp = torch.empty_like(q), q.new_empty(_heads_and_tokens(q), dtype=torch.float32)
    h, p, d = prefix_keys.shape
    strides = {prefix_keys.stride(), prefix_values.stride()}
    assert len(strides) == 1 and prefix_keys.stride()[1:] == (d, 1), strides
    tensors = (q, k, v, None, prefix_keys, prefix_values, out, logsumexp)
    _call("delvm_flash_forward", (*q.shape, p, prefix_keys.stride(0)), *tensors)
    return out


def _heads_and_tokens(q: Tensor) -> tuple[int, int]:
    b, t, h, _ = q.shape
    return b * h, t


def _constant_when_compiled(function: FuncT) -> FuncT:
    """torch.compile calls the function once and takes its result as a constant."""
    return cast(FuncT, cast(Any, torch.compiler).assume_constant_result(function))


@_constant_when_compiled
def cpu_flash_available() -> bool:
    """Whether the kernel works here; if not although bfloat16 is native, log why, once."""
    return _probe()


@cache
def _probe() -> bool:
    if not has_native_bf16("cpu"):
        return False
    x = torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16)
    return kernel_works(lambda: _forward(x, x, x, None), "PyTorch SDPA on CPU (over 2x slower)")


@cache
def _library() -> ctypes.CDLL:
    library = build_extension(Path(__file__).with_suffix(".cpp"))
    library.delvm_flash_forward.restype = ctypes.c_bool
    library.delvm_flash_backward.restype = ctypes.c_bool
    return library


def _call(name: str, sizes: Sequence[int], *tensors: Tensor | None) -> None:
    """Call a function of the library; it writes into the last tensors. None = a null pointer."""
    pointers = [None if x is None else ctypes.c_void_p(x.data_ptr()) for x in tensors]
    if not getattr(_library(), name)(*pointers, *map(ctypes.c_int64, sizes)):
        raise RuntimeError("oneDNN, which the kernel multiplies with, is disabled or has no kernel")


# Custom operators, so that torch.compile does not look inside.
@torch.library.custom_op("delvm::cpu_flash", mutates_args=())
def _forward(q: Tensor, k: Tensor, v: Tensor, start_index: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result (B, T, H, D), and log-sum-exp (base 2) of the scores of each query, (N, T)."""
    out, logsumexp = torch.empty_like(q), q.new_empty(_heads_and_tokens(q), dtype=torch.float32)
    tensors = (q, k, v, _contiguous(start_index), None, None, out, logsumexp)
    _call("delvm_flash_forward", (*q.shape, 0, 0), *tensors)
    return out, logsumexp


@torch.library.custom_op("delvm::cpu_flash_backward", mutates_args=())
def _backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    start_index: Tensor | None,
    out: Tensor,
    logsumexp: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, from the gradient of the result; all (B, T, H, D)."""
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    inputs = (grad_out.contiguous(), q, k, v, _contiguous(start_index), out, logsumexp)
    _call("delvm_flash_backward", q.shape, *inputs, *grads)
    return grads


def _contiguous(start_index: Tensor | None) -> Tensor | None:
    return None if start_index is None else start_index.contiguous()


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, start_index: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(_heads_and_tokens(q), dtype=torch.float32)


@_backward.register_fake
def _(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.mark_non_differentiable(output[1])


def _autograd(ctx: Any, grad_out: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(grad_out, *ctx.saved_tensors), None


_forward.register_autograd(_autograd, setup_context=_setup_context)
