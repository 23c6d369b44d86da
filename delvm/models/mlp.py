"""The MLP of a block: SwiGLU, or two layers with GELU as in a ViT."""

from enum import Enum
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.models.cpu.elementwise import gate_, has_kernels


class MLPKind(Enum):
    """``swiglu``; ``gelu``, the exact one; or ``gelu_tanh``, its approximation by tanh."""

    swiglu = "swiglu"
    gelu = "gelu"
    gelu_tanh = "gelu_tanh"


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool = False) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=bias)
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.down = nn.Linear(hidden_dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate(x), self.up(x)
        # A hook may keep what the kernel overwrites.
        if not (torch.is_grad_enabled() or self.gate._forward_hooks) and has_kernels(gate):
            return cast(Tensor, self.down(gate_(gate, up)))
        return cast(Tensor, self.down(F.silu(gate) * up))


class GELUMLP(nn.Module):
    """down(gelu(up(x)))."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool, approximate: str) -> None:
        """``approximate`` is that of `torch.nn.functional.gelu`: none or tanh."""
        super().__init__()
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.down = nn.Linear(hidden_dim, dim, bias=bias)
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.down(F.gelu(self.up(x), approximate=self.approximate)))


def build_mlp(kind: MLPKind, dim: int, hidden_dim: int, bias: bool) -> SwiGLU | GELUMLP:
    """The MLP of a kind, (..., dim) -> (..., dim)."""
    if kind is MLPKind.swiglu:
        return SwiGLU(dim, hidden_dim, bias)
    return GELUMLP(dim, hidden_dim, bias, "tanh" if kind is MLPKind.gelu_tanh else "none")
