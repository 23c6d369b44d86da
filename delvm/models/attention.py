"""Causal self-attention with rotary positions: over whole sequences, documents packed in a row,
or on top of a cache.

Notation:
    B batch    T tokens    H heads    D width of a head    C = H * D
"""

from enum import Enum
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.models.cpu import attention as blockwise


class AttentionBackend(Enum):
    """What computes attention: torch, xformers on a GPU, or ours in bfloat16 on a processor.

    ``auto`` is xformers for packed documents where it works, since it skips what lies between
    them; cpu_flash on a CPU in bfloat16, where torch's is slow; else torch.
    """

    auto = "auto"
    sdpa = "sdpa"
    cpu_flash = "cpu_flash"
    xformers = "xformers"


def precompute_rope(context: int, width: int, base: float) -> Tensor:
    """Angles' cosine and sine, (2, context, width / 2) float32 (Su et al. 2021)."""
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    return torch.stack((angles.cos(), angles.sin()))


def apply_rotary_emb(x: Tensor, table: Tensor) -> Tensor:
    """Turn each head's first half against its second half.

    Args:
        x: (B, T, H, D).
        table: (2, T, 1, D / 2), the angles of the T positions; or (2, B, T, 1, D / 2), of each
            row's.
    """
    cos, sin = table[0], table[1]
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)


class PackedDocuments:
    """Which tokens of each row belong together, as attention wants to know it.

    Documents do not see each other, and each begins at position 0.
    """

    def __init__(self, numbers: Tensor) -> None:
        """Take the number of each token's document, (B, T); those of one document lie together."""
        self.document_ids = numbers
        self.is_start = F.pad(numbers[:, 1:] != numbers[:, :-1], (1, 0), value=True)

    @cached_property
    def mask(self) -> Tensor:
        """Who sees whom, (B, 1, T, T) bool."""
        return (self.document_ids[:, :, None] == self.document_ids[:, None, :]).tril()[:, None]

    @property
    def positions(self) -> Tensor:
        """The place of each token in its document, (B, T) int64."""
        return torch.arange(self.is_start.shape[1], device=self.is_start.device) - self.start_index

    @cached_property
    def start_index(self) -> Tensor:
        """The place in its row at which the document of each token begins, (B, T) int64."""
        places = torch.arange(self.is_start.shape[1], device=self.is_start.device)
        return torch.where(self.is_start, places, 0).cummax(dim=1).values

    @cached_property
    def seqlens(self) -> list[int]:
        """Tokens of each document, row after row."""
        starts = self.is_start.flatten().nonzero()[:, 0].tolist()
        ends = [*starts[1:], self.is_start.numel()]
        return [end - start for start, end in zip(starts, ends, strict=True)]


class KVCache:
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


class RMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang and Sennrich 2019), in the precision of what comes in whatever autocast wants.

    torch's kernel adds up in float32 in any case. Given a float32 input or weight for autocast's
    sake, it would keep float32 copies of the activations for the backward pass.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (..., C), each row over the root of its mean square, times the weights."""
        with torch.autocast(x.device.type, enabled=False):
            weight = self.weight.to(x.dtype)
            return F.rms_norm(x, list(self.normalized_shape), weight, self.eps)


class Attention(nn.Module):
    """Multi-head self-attention; one matrix makes q, k and v."""

    def __init__(
        self,
        width: int,
        heads: int,
        bias: bool,
        dropout: float,
        qk_norm: float | None = None,
        backend: AttentionBackend = AttentionBackend.auto,
    ) -> None:
        """Build it; ``qk_norm`` is the eps of the norms of q and k, None for none of them."""
        super().__init__()
        self.heads, self.dropout, self.backend = heads, dropout, backend
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        if qk_norm is not None:  # Henry et al. 2020; Dehghani et al. 2023
            self.norm_q = RMSNorm(width // heads, eps=qk_norm)
            self.norm_k = RMSNorm(width // heads, eps=qk_norm)
        self.qk_norm = qk_norm is not None

    def forward(
        self,
        x: Tensor,
        table: Tensor,
        documents: PackedDocuments | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        b, t, c = x.shape
        # (B, T, 3C) -> three of (B, T, H, D)
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, c // self.heads).unbind(2)
        if self.qk_norm:
            q, k = self.norm_q(q), self.norm_k(k)
        q, k = apply_rotary_emb(q, table), apply_rotary_emb(k, table)
        dropout = self.dropout if self.training else 0.0
        if cache is not None:
            y = sdpa_with_cache(q, k, v, cache, layer)
        else:
            backend = select_backend(self.backend, documents, q, dropout)
            y = ATTENTION[backend](q, k, v, documents, dropout)
        return self.out(y.reshape(b, t, c))


def select_backend(
    backend: AttentionBackend, documents: PackedDocuments | None, q: Tensor, dropout: float
) -> AttentionBackend:
    """The backend that `AttentionBackend.auto` means for these queries.

    Raises:
        ValueError: what was asked for does not work here.
    """
    if backend is AttentionBackend.auto:
        if _is_cpu_flash(q, dropout):
            return AttentionBackend.cpu_flash
        packed = documents is not None and xformers_available(q.device, q.dtype)
        return AttentionBackend.xformers if packed else AttentionBackend.sdpa
    if backend is AttentionBackend.xformers:
        fits = xformers_available(q.device, q.dtype)
    else:
        fits = backend is AttentionBackend.sdpa or _is_cpu_flash(q, dropout)
    if not fits:
        raise ValueError(
            f"attention={backend.value} does not work on {q.device.type} in {q.dtype} with "
            f"dropout {dropout}: set student.net.attention=sdpa"
        )
    return backend


def _is_cpu_flash(q: Tensor, dropout: float) -> bool:
    """Whether `AttentionBackend.cpu_flash` computes this."""
    fits = q.device.type == "cpu" and q.dtype is torch.bfloat16 and not dropout
    return fits and blockwise.works()


@cache
def xformers_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether xformers computes here: it imports where it has no operator, so it is tried once."""
    if device.type != "cuda":
        return False
    try:
        probe = torch.zeros(1, 8, 1, 64, device=device, dtype=dtype)
        xformers(probe, probe, probe, None, 0.0)
    except (ImportError, NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, documents: PackedDocuments | None, dropout: float
) -> Tensor:
    """Attention by torch: q, k, v and the result (B, T, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    mask = None if documents is None else documents.mask
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout
    )
    return y.transpose(1, 2)


def xformers(
    q: Tensor, k: Tensor, v: Tensor, documents: PackedDocuments | None, dropout: float
) -> Tensor:
    """Attention by xformers: q, k, v and the result (B, T, H, D); documents as blocks."""
    from xformers import ops

    if documents is None:
        bias: Any = ops.LowerTriangularMask()
        return ops.memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout)
    bias = ops.fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(documents.seqlens)
    rows = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))  # (1, B T, H, D)
    return ops.memory_efficient_attention(*rows, attn_bias=bias, p=dropout).view_as(q)


def cpu_flash(
    q: Tensor, k: Tensor, v: Tensor, documents: PackedDocuments | None, dropout: float
) -> Tensor:
    """Attention by `delvm.models.cpu.attention`; q, k, v and the result (B, T, H, D)."""
    return blockwise.blockwise(q, k, v, None if documents is None else documents.start_index)


ATTENTION = {
    AttentionBackend.sdpa: sdpa,
    AttentionBackend.cpu_flash: cpu_flash,
    AttentionBackend.xformers: xformers,
}


def sdpa_with_cache(q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int) -> Tensor:
    """Attention of new tokens (B, T, H, D) to all so far; the cache is extended."""
    past, t = cache.length, q.shape[1]
    keys, values = cache.extend(layer, k.transpose(1, 2), v.transpose(1, 2))
    mask = None
    if past and t > 1:  # query i stands at position past + i and sees everything up to itself
        mask = torch.ones(t, past + t, dtype=torch.bool, device=q.device).tril(past)
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, attn_mask=mask, is_causal=not past and t > 1
    )
    return y.transpose(1, 2)
