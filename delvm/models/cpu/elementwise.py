"""What a transformer computes between its matrix products, in bfloat16 on CPU (elementwise.cpp).

PyTorch makes copies in float32 for each of these, which take a tenth of the time of a prompt.

Notation:
    B batch    T tokens    H heads    D dimension of a head    C channels
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from delvm.models.cpu.build import build_extension, kernel_works
from delvm.models.precision import has_native_bf16


def has_kernels(x: Tensor) -> bool:
    """Whether this module takes a tensor; compilers fuse such operations by themselves."""
    return (
        x.device.type == "cpu"
        and x.dtype is torch.bfloat16
        and not torch.compiler.is_compiling()
        and bool(x.numel())
        and _available()
    )


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """`delvm.models.rope.apply_rotary_emb` for x (B, T, H, D); D is even.

    The result is PyTorch's bit by bit, and so are gradients.
    """
    return cast(Tensor, cast(Any, _Rotation).apply(x, rope, 1))


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rope: Tensor, sign: int) -> Tensor:
        ctx.save_for_backward(rope)
        ctx.sign = sign
        return _rotate(x, rope, sign)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (rope,) = ctx.saved_tensors
        return cast(Any, _Rotation).apply(grads[0], rope, -ctx.sign), None, None


def _rotate(x: Tensor, rope: Tensor, sign: int) -> Tensor:
    b, t, h, d = x.shape
    x = x if x.stride()[2:] == (d, 1) else x.contiguous()
    rope = rope.float() if rope.stride()[-3:] == (d // 2, d // 2, 1) else rope.float().contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    angle_stride = rope.stride(1) if rope.ndim == 5 else 0
    sizes = (b, t, h, d, x.stride(0), x.stride(1), angle_stride, sign)
    _library().delvm_rotate(*_pointers(x, rope[0], rope[1], y), *map(ctypes.c_int64, sizes))
    return y


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm of rows x (..., C) with a weight (C,), without gradient."""
    x, weight, y = x.contiguous(), weight.contiguous(), torch.empty(x.shape, dtype=x.dtype)
    sizes = x.numel() // len(weight), len(weight)
    pointers = _pointers(x, weight, y)
    _library().delvm_rms_norm(*pointers, *map(ctypes.c_int64, sizes), ctypes.c_double(eps))
    return y


def gate_(gate: Tensor, up: Tensor) -> Tensor:
    """Overwrite ``gate`` by silu(gate) * up, both of any equal shape and contiguous."""
    assert gate.shape == up.shape and gate.is_contiguous() and up.is_contiguous()
    _library().delvm_gate(*_pointers(gate, up), ctypes.c_int64(gate.numel()))
    return gate


def _pointers(*tensors: Tensor) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(x.data_ptr()) for x in tensors]


@cache
def _available() -> bool:
    return has_native_bf16("cpu") and kernel_works(_library, "PyTorch between products on CPU")


@cache
def _library() -> ctypes.CDLL:
    return build_extension(Path(__file__).with_suffix(".cpp"))
