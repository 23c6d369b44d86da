"""The tokenizer's encoding, written out plainly: the oracle of the fast one, and its bench peer."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.models.vqgan import VQGAN, PixelRange


def plain_copy(model: VQGAN) -> VQGAN:
    """The same network with its weights in the ordinary order (NCHW)."""
    plain = copy.deepcopy(model)
    plain.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return plain


@torch.no_grad()
def plain_encode(plain: VQGAN, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (B, N) and codes (B, N, d), as taming-transformers computes them.

    Args:
        plain: from `plain_copy`.
        pixels: (B, 3, H, H) in [0, 1], in the ordinary order.
    """
    if plain.config.pixel_range is PixelRange.signed:
        pixels = 2 * pixels - 1
    z = plain.quant_conv(plain.encoder(pixels)).permute(0, 2, 3, 1).contiguous()
    if plain.config.use_l2_norm:
        z = F.normalize(z, dim=-1)
    ids, codes = plain_search(z.view(-1, z.shape[-1]), plain.codebook)
    return ids.view(len(pixels), -1), codes.view(z.shape[0], -1, z.shape[-1])


def plain_search(z: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (M,) and codes (M, d) nearest to z (M, d), through two matrices (M, V)."""
    distances = z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.T
    ids = distances.argmin(1)
    one_hot = torch.zeros(len(z), len(codes)).scatter_(1, ids[:, None], 1)
    return ids, one_hot @ codes
