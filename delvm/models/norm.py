"""RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.RMSNorm):
    """RMSNorm in the dtype of its input, also under autocast.

    torch's kernel accumulates in float32 in any case. Under autocast torch would cast input and
    weight to float32 first and keep float32 copies of the activations for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C), each row divided by its root mean square, times the weight (C,)."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.to(x.dtype)
            return F.rms_norm(x, list(self.normalized_shape), weight, self.eps)
