"""Weights in int8: half the memory of bfloat16, and half the time where reading them is the limit.

Each row of a matrix is scaled by its largest value, symmetrically and without calibration
(weight-only quantization, as in LLM.int8() without outliers: Dettmers et al. 2022, arXiv
2208.07339). Activations, norms, the embedding and the head keep their dtype. So does the key-value
cache, but on CPUs that `delvm.models.cpu.decode` supports it is int8 as well (`int8_cache`).
"""

from enum import StrEnum
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.errors import UserError
from delvm.models.precision import has_native_bf16


class WeightPrecision(StrEnum):
    """Of a student's weights when it generates."""

    fp32 = "fp32"
    bf16 = "bf16"
    int8 = "int8"


class Int8Linear(nn.Module):
    """A linear layer (K -> N) whose weight is int8, with one scale per output."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        """Quantize the weight of a linear layer; the bias stays as it is."""
        super().__init__()
        weight = linear.weight.detach().float()  # (N, K)
        scale = weight.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny) / 127
        quantized = (weight / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", quantized)
        self.register_buffer("scale", scale)  # (N,) float32
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """x (..., K) -> (..., N) in the dtype of x, in which all int8 values are exact."""
        y = F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias


def set_weight_precision(student: nn.Module, precision: WeightPrecision | str) -> None:
    """Bring the weights of a student into a precision, in place.

    With int8, what stays in floating point is bfloat16 where that is native, or else float32.

    Raises:
        UserError: int8, and the student is not built of blocks as `delvm.models.transformer` is.
    """
    target = WeightPrecision(precision)
    device = next(student.parameters()).device.type
    is_bf16 = target is WeightPrecision.bf16
    if target is WeightPrecision.int8:
        if not isinstance(getattr(student, "blocks", None), nn.ModuleList):
            raise UserError(
                f"precision=int8 needs a student with blocks, not {type(student).__name__}: "
                "set precision=bf16"
            )
        is_bf16 = has_native_bf16(device)
    student.to(torch.bfloat16 if is_bf16 else torch.float32)
    if target is WeightPrecision.int8:
        quantize_int8(student)


def quantize_int8(student: nn.Module) -> None:
    """Replace the linear layers of all blocks (``student.blocks``) by `Int8Linear`, in place."""
    for block in cast(nn.ModuleList, student.blocks):
        for module in list(block.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, name, Int8Linear(child))


def int8_buffers_to_parameters(student: nn.Module) -> None:
    """Make frozen parameters of int8 weights and their scales, in place.

    `fully_shard` shards parameters alone.
    """
    for module in student.modules():
        if isinstance(module, Int8Linear):
            for name, buffer in list(module.named_buffers(recurse=False)):
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
