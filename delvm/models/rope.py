"""Rotary position embeddings (RoPE, Su et al. 2021, arXiv 2104.09864).

Each head is split into halves and pairs are (i, i + D / 2), as in GPT-NeoX and LLaMA's Hugging Face
port; they are not interleaved.
"""

import torch
from torch import Tensor

from delvm.models.cpu.elementwise import has_kernels, rotate


def precompute_rope(max_seq_len: int, head_dim: int, base: float) -> Tensor:
    """Cosines and sines of all angles, (2, max_seq_len, head_dim / 2) float32."""
    inv_freq = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(max_seq_len, dtype=torch.float32), inv_freq)
    return torch.stack((angles.cos(), angles.sin()))


def apply_rotary_emb(x: Tensor, rope: Tensor) -> Tensor:
    """Rotate the two halves of each head against each other.

    Args:
        x: queries or keys (B, T, H, D).
        rope: cosines and sines at the T positions, (2, T, 1, D / 2), or (2, B, T, 1, D / 2) where
            the positions differ between rows.

    Returns:
        (B, T, H, D) in the dtype of ``x``; the rotation itself is computed in float32.
    """
    b, t, _, d = x.shape
    # C++ checks no sizes: PyTorch repeats angles, or refuses them.
    if has_kernels(x) and rope.shape[1:] in ((t, 1, d // 2), (b, t, 1, d // 2)):
        return rotate(x, rope)
    cos, sin = rope[0], rope[1]
    x1, x2 = x.float().chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)
