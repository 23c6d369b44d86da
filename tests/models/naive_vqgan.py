"""Naive VQGAN encoding: the expected values of tests, and the baseline of the benchmark."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.models.vqgan import VQGAN, PixelRange


def contiguous_copy(model: VQGAN) -> VQGAN:
    """The same network with its weights in contiguous (NCHW) layout."""
    naive = copy.deepcopy(model)
    naive.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return naive


@torch.no_grad()
def naive_encode(naive: VQGAN, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (B, N) and their codes (B, N, d), as taming-transformers computes them.

    Args:
        naive: from `contiguous_copy`.
        pixels: (B, 3, H, H) in [0, 1], contiguous.
    """
    if naive.config.pixel_range is PixelRange.signed:
        pixels = 2 * pixels - 1
    z = naive.quant_conv(naive.encoder(pixels)).permute(0, 2, 3, 1).contiguous()
    if naive.config.use_l2_norm:
        z = F.normalize(z, dim=-1)
    ids, codes = naive_search(z.view(-1, z.shape[-1]), naive.codebook)
    return ids.view(len(pixels), -1), codes.view(z.shape[0], -1, z.shape[-1])


def naive_search(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (M,) and codes (M, d) nearest to z (M, d), with two matrices (M, V) in memory."""
    distances = z.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * z @ codebook.T
    ids = distances.argmin(1)
    one_hot = torch.zeros(len(z), len(codebook)).scatter_(1, ids[:, None], 1)
    return ids, one_hot @ codebook
