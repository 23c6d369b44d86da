"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) and LayerNorm (Ba et al. 2016)."""

from enum import Enum
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.models.cpu.elementwise import has_kernels, rms_norm


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the dtype of its input, also under autocast.

    torch's kernel accumulates in float32 in any case. Under autocast torch would cast input and
    weight to float32 first and keep float32 copies of the activations for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C), each row divided by its root mean square, times the weight (C,)."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.to(x.dtype)
            fits = self.eps is not None and weight.shape == x.shape[-1:]
            if fits and not torch.is_grad_enabled() and has_kernels(x):
                return rms_norm(x, weight, cast(float, self.eps))
            return F.rms_norm(x, list(self.normalized_shape), weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """LayerNorm in the dtype of its input, also under autocast, as `RMSNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C), each row of mean 0 and variance 1, times the weight (C,), plus the bias."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class NormKind(Enum):
    """Which normalization."""

    rmsnorm = "rmsnorm"
    layernorm = "layernorm"


def build_norm(kind: NormKind, dim: int, eps: float) -> RMSNorm | LayerNorm:
    """A normalization of rows of ``dim`` channels."""
    return RMSNorm(dim, eps=eps) if kind is NormKind.rmsnorm else LayerNorm(dim, eps=eps)
