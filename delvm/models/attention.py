"""Causal self-attention with rotary positions, over a whole sequence or on top of a cache.

Notation:
    B batch    T tokens    H heads    D width of a head    C = H * D
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotary_table(context: int, width: int, base: float) -> Tensor:
    """Angles' cosine and sine, (2, context, width / 2) float32 (Su et al. 2021)."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    return torch.stack((angles.cos(), angles.sin()))


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each head's first half against its second half.

    Args:
        x: (B, H, T, D).
        table: (2, T, D / 2), the angles of the T positions; or (2, B, 1, T, D / 2), of each row's.
    """
    cos, sin = table[0], table[1]
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


def document_positions(documents: Tensor) -> Tensor:
    """The place of each token within its document, (B, T) int64.

    Args:
        documents: (B, T), alike for the tokens of one document, which lie together.
    """
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = F.pad(documents[:, 1:] != documents[:, :-1], (1, 0), value=True)
    return places - torch.where(begins, places, 0).cummax(dim=1).values


def document_mask(documents: Tensor) -> Tensor:
    """Who sees whom, (B, 1, T, T) bool: each token itself and what is before it in its document."""
    same = documents[:, None, :, None] == documents[:, None, None, :]
    return same.tril()


class KeyValueCache:
    """Keys and values of the tokens seen so far, one buffer a layer, (B, H, context, D)."""

    def __init__(
        self,
        layers: int,
        batch: int,
        heads: int,
        context: int,
        width: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (layers, 2, batch, heads, context, width)
        self.buffer = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H, T, D) behind the known ones; return all, (B, H, length + T, D)."""
        end = self.length + k.shape[2]
        self.buffer[layer, 0, :, :, self.length : end] = k
        self.buffer[layer, 1, :, :, self.length : end] = v
        return self.buffer[layer, 0, :, :, :end], self.buffer[layer, 1, :, :, :end]


class Attention(nn.Module):
    """Multi-head causal self-attention, bias on q, k, v and the output as the reference has it."""

    def __init__(self, width: int, heads: int, bias: bool, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        cache: KeyValueCache | None = None,
        layer: int = 0,
        mask: Tensor | None = None,
    ) -> Tensor:
        b, t, c = x.shape
        # (B, T, 3C) -> three of (B, H, T, D)
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, table), rotate(k, table)
        causal = mask is None
        if cache is not None:
            past = cache.length
            k, v = cache.extend(layer, k, v)
            if past:  # query i stands at position past + i and sees everything up to itself
                causal = False
                if t > 1:
                    mask = torch.ones(t, past + t, dtype=torch.bool, device=x.device).tril(past)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=causal,
            dropout_p=self.dropout if self.training else 0.0,
        )  # (B, H, T, D)
        return self.out(y.transpose(1, 2).reshape(b, t, c))
