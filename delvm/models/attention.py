"""Causal self-attention with rotary positions and several backends.

It runs over full sequences, over documents packed in a row, and on top of a key/value cache.
`ATTENTION` is the registry of backends; to add one, add an entry.

Notation:
    B batch    T tokens    H heads    D dimension of a head    C = H * D
"""

from collections.abc import Callable
from enum import Enum
from functools import cache, cached_property
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.models.norm import RMSNorm
from delvm.models.rope import apply_rotary_emb

# Attention scores that `attend_with_prefix` holds at a time: 64 MB in float32.
MAX_SCORES = 1 << 24


class AttentionBackend(Enum):
    """What computes attention: torch, xformers (GPU) or the C++ kernel (bfloat16 on CPU).

    ``auto`` takes cpu_flash in bfloat16 on CPU, where torch is slow; xformers for packed documents
    on a GPU where it is installed, since it skips the pairs of tokens of different documents; else
    torch's scaled_dot_product_attention.
    """

    auto = "auto"
    sdpa = "sdpa"
    cpu_flash = "cpu_flash"
    xformers = "xformers"


class PackedDocuments:
    """Which tokens of a row belong to the same document, in the forms that attention needs.

    Documents do not attend to each other, and positions restart at 0 in each.
    """

    def __init__(self, document_ids: Tensor) -> None:
        """Read the document of each token.

        Args:
            document_ids: (B, T); the tokens of a document are adjacent and have equal ids.
        """
        self.document_ids = document_ids
        is_new = document_ids[:, 1:] != document_ids[:, :-1]
        self.is_start = F.pad(is_new, (1, 0), value=True)  # (B, T) bool

    @cached_property
    def mask(self) -> Tensor:
        """Block-diagonal causal mask, (B, 1, T, T) bool; True where attention is allowed."""
        ids = self.document_ids
        return (ids[:, :, None] == ids[:, None, :]).tril()[:, None]

    @property
    def positions(self) -> Tensor:
        """Position of each token in its document, (B, T) int64."""
        return torch.arange(self.is_start.shape[1], device=self.is_start.device) - self.start_index

    @cached_property
    def start_index(self) -> Tensor:
        """Index in the row of the first token of each token's document, (B, T) int64."""
        index = torch.arange(self.is_start.shape[1], device=self.is_start.device)
        return torch.where(self.is_start, index, 0).cummax(dim=1).values

    @cached_property
    def seqlens(self) -> list[int]:
        """Length of each document in tokens, row after row."""
        starts = self.is_start.flatten().nonzero()[:, 0].tolist()
        ends = [*starts[1:], self.is_start.numel()]
        return [end - start for start, end in zip(starts, ends, strict=True)]


class KVCache:
    """Keys and values of the tokens seen so far; one buffer (B, H, max_seq_len, D) per layer.

    A cache may continue another one of a single row, its ``prefix``: all rows then attend to the
    same keys and values, which are stored and read once.

    Attributes:
        length: tokens seen, those of the prefix included.
        decoder: what computes a few tokens at once on top of this cache, see
            `delvm.models.cpu.decode`; False = nothing does, None = not known yet.
    """

    length: int
    decoder: Any = None

    def __init__(
        self,
        n_layers: int,
        batch_size: int,
        n_heads: int,
        max_seq_len: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        prefix: "KVCache | None" = None,
    ) -> None:
        """Allocate the buffers.

        Args:
            n_layers, batch_size, n_heads, max_seq_len, head_dim, dtype, device: of the buffers;
                ``max_seq_len`` counts the tokens of the prefix too.
            prefix: cache of one row that all rows continue.
        """
        self.prefix = prefix
        self._start: int = 0 if prefix is None else prefix.length
        self.length = self._start
        rows = batch_size, n_heads, max_seq_len - self._start, head_dim
        self.allocate((n_layers, 2, *rows), dtype, device)

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Make the buffer (layers, 2, B, H, S, D)."""
        self.buffer = torch.empty(shape, dtype=dtype, device=device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k, v (B, T, H, D) in a layer, uncounted; return them as they are kept."""
        start = self.length - self._start
        end = start + k.shape[1]
        self.buffer[layer, 0, :, :, start:end] = k.transpose(1, 2)
        self.buffer[layer, 1, :, :, start:end] = v.transpose(1, 2)
        return k, v

    def own(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) of a layer, after the prefix and before token ``end``."""
        keys, values = self.buffer[layer, :, :, :, : end - self._start]
        return keys, values

    def positions(self, count: int) -> slice | Tensor:
        """Positions of the next tokens of all rows, an index of the rotary table."""
        return slice(self.length, self.length + count)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, backend: AttentionBackend
    ) -> Tensor:
        """Attention of new tokens (B, T, H, D) to all tokens so far; appends them to a layer."""
        return attend_with_cache(q, k, v, self, layer, backend)

    def advance(self, count: int) -> None:
        """Count new tokens, which all layers have seen now."""
        self.length += count

    def rewind(self, lengths: Tensor) -> None:
        """Forget all tokens beyond ``lengths`` (B,), which must be equal: rows share one length."""
        self.length = int(lengths[0])

    def dequantized(self) -> "KVCache":
        """The cache in floating point: this one, unless a subclass keeps integers."""
        return self

    def of_prefix(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the prefix in a layer, (H, P, D)."""
        assert self.prefix is not None
        keys, values = self.prefix.own(layer, self._start)
        return keys[0], values[0]


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection to q, k and v."""

    def __init__(
        self,
        dim: int,
        n_heads: int,
        bias: bool,
        dropout: float,
        qk_norm_eps: float | None = None,
        backend: AttentionBackend = AttentionBackend.auto,
    ) -> None:
        """Create the projections.

        Args:
            dim: C.
            n_heads: H.
            bias: whether the projections have a bias.
            dropout: of the attention weights, in training.
            qk_norm_eps: eps of the RMSNorms of queries and keys; None = no such norms.
            backend: what computes attention.
        """
        super().__init__()
        self.n_heads, self.dropout, self.backend = n_heads, dropout, backend
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        if qk_norm_eps is not None:  # Henry et al. 2020; Dehghani et al. 2023
            self.norm_q = RMSNorm(dim // n_heads, eps=qk_norm_eps)
            self.norm_k = RMSNorm(dim // n_heads, eps=qk_norm_eps)
        self.qk_norm = qk_norm_eps is not None

    def forward(
        self,
        x: Tensor,
        rope: Tensor,
        documents: PackedDocuments | None = None,
        cache: KVCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Attention over x (B, T, C), and over the tokens of ``layer`` in ``cache`` before it."""
        b, t, c = x.shape
        # (B, T, 3C) -> three of (B, T, H, D)
        q, k, v = self.qkv(x).view(b, t, 3, self.n_heads, c // self.n_heads).unbind(2)
        if self.qk_norm:
            q, k = self.norm_q(q), self.norm_k(k)
        q, k = apply_rotary_emb(q, rope), apply_rotary_emb(k, rope)
        dropout = self.dropout if self.training else 0.0
        if cache is not None:
            y = cache.attend(q, k, v, layer, self.backend)
        else:
            backend = select_backend(self.backend, documents, q, dropout)
            y = ATTENTION[backend].attend(q, k, v, documents, dropout)
        return cast(Tensor, self.out(y.reshape(b, t, c)))


# ---------------------------------------------------------------- backends


def sdpa(
    q: Tensor, k: Tensor, v: Tensor, documents: PackedDocuments | None, dropout: float
) -> Tensor:
    """Attention by torch; q, k, v and the result are (B, T, H, D)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    mask = None if documents is None else documents.mask
    y = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, dropout_p=dropout
    )
    return y.transpose(1, 2)


def attend_with_cache(
    q: Tensor, k: Tensor, v: Tensor, cache: KVCache, layer: int, backend: AttentionBackend
) -> Tensor:
    """Attention of new tokens (B, T, H, D) to all tokens so far; extends the cache."""
    past, t = cache.length, q.shape[1]
    k, v = cache.append(layer, k, v)
    is_flash = backend in (AttentionBackend.auto, AttentionBackend.cpu_flash)
    is_flash = is_flash and ATTENTION[AttentionBackend.cpu_flash].supports(q, 0.0)
    if not past:
        return cpu_flash(q, k, v, None, 0.0) if is_flash else sdpa(q, k, v, None, 0.0)
    # That kernel is for many tokens, and has no gradient here.
    is_flash = is_flash and t > 1 and not torch.is_grad_enabled()
    if cache.prefix is not None:
        prefix = cache.of_prefix(layer)
        if is_flash and past == cache._start:  # the prefix may have more tokens by now
            return cpu_flash_after_prefix(q, k, v, *prefix)
        return attend_with_prefix(q, *cache.own(layer, past + t), *prefix)
    keys, values = cache.own(layer, past + t)
    if is_flash and len(q) == 1:
        return cpu_flash_after_prefix(q, k, v, keys[0, :, :past], values[0, :, :past])
    mask = None
    if t > 1:  # query i is at position past + i and attends to everything up to itself
        mask = torch.ones(t, past + t, dtype=torch.bool, device=q.device).tril(past)
    y = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=mask)
    return y.transpose(1, 2)


def attend_with_prefix(
    q: Tensor, keys: Tensor, values: Tensor, prefix_keys: Tensor, prefix_values: Tensor
) -> Tensor:
    """Attention of the last tokens of each row to a prefix that all rows share, and to its own.

    The queries of all rows meet the prefix in one matrix product, which reads it once.

    Args:
        q: (B, T, H, D).
        keys, values: of the row's tokens after the prefix, (B, H, S, D); the last T are q's.
        prefix_keys, prefix_values: (H, P, D).

    Returns:
        (B, T, H, D).
    """
    b, t, h, d = q.shape
    p, s = prefix_keys.shape[1], keys.shape[2]
    if b > 1 and b * t * h * (p + s) > MAX_SCORES:  # in parts of the rows
        rows = max(1, MAX_SCORES // (t * h * (p + s)))
        parts = zip(
            torch.split(q, rows), torch.split(keys, rows), torch.split(values, rows), strict=True
        )
        shared = (prefix_keys, prefix_values)
        return torch.cat([attend_with_prefix(x, k, v, *shared) for x, k, v in parts])
    q = q.permute(2, 0, 1, 3) * d**-0.5  # (H, B, T, D)
    to_prefix = q.reshape(h, b * t, d) @ prefix_keys.mT  # (H, BT, P)
    to_own = q @ keys.permute(1, 0, 3, 2)  # (H, B, T, S)
    if t > 1:  # query i is at position S - T + i and attends to everything up to itself
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)
        to_own = to_own.masked_fill(~mask, -torch.inf)
    scores = torch.cat((to_prefix.view(h, b, t, p), to_own), dim=-1)
    weights = scores.softmax(-1)  # torch sums it in float32
    y = (weights[..., :p].reshape(h, b * t, p) @ prefix_values).view(h, b, t, d)
    y = y + weights[..., p:] @ values.transpose(0, 1)
    return y.permute(1, 2, 0, 3)


def xformers_attention(
    q: Tensor, k: Tensor, v: Tensor, documents: PackedDocuments | None, dropout: float
) -> Tensor:
    """Attention by xformers; q, k, v and the result are (B, T, H, D)."""
    from xformers import ops

    if documents is None:
        bias: Any = ops.LowerTriangularMask()
        return cast(Tensor, ops.memory_efficient_attention(q, k, v, attn_bias=bias, p=dropout))
    bias = ops.fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(documents.seqlens)
    rows = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))  # (1, B T, H, D)
    y = ops.memory_efficient_attention(*rows, attn_bias=bias, p=dropout)
    return cast(Tensor, y.view_as(q))


@cache
def xformers_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether xformers computes on a device in a dtype.

    Its import succeeds on machines where it has no operator, so one small call decides.
    """
    if device.type != "cuda":
        return False
    try:
        probe = torch.zeros(1, 8, 1, 64, device=device, dtype=dtype)
        xformers_attention(probe, probe, probe, None, 0.0)
    except (ImportError, NotImplementedError, RuntimeError, ValueError):
        return False
    return True


def cpu_flash(
    q: Tensor, k: Tensor, v: Tensor, documents: PackedDocuments | None, dropout: float
) -> Tensor:
    """Attention by the C++ kernel; q, k, v and the result are (B, T, H, D) bfloat16."""
    from delvm.models.cpu.attention import cpu_flash_attention

    return cpu_flash_attention(q, k, v, None if documents is None else documents.start_index)


def cpu_flash_after_prefix(
    q: Tensor, k: Tensor, v: Tensor, prefix_keys: Tensor, prefix_values: Tensor
) -> Tensor:
    """Attention to a prefix (H, P, D) and causally to the rows themselves, by the C++ kernel."""
    from delvm.models.cpu.attention import attend_after_prefix

    return attend_after_prefix(q, k, v, prefix_keys, prefix_values)


def _cpu_flash_supports(q: Tensor, dropout: float) -> bool:
    if q.device.type != "cpu" or q.dtype is not torch.bfloat16 or dropout:
        return False
    # Imported here, since nobody else needs the kernel and its build.
    from delvm.models.cpu.attention import cpu_flash_available

    return cpu_flash_available()


class Backend(NamedTuple):
    """An entry of the registry.

    Attributes:
        attend: (q, k, v, documents, dropout) -> result; tensors are (B, T, H, D).
        supports: (q, dropout) -> whether ``attend`` works for such queries on this machine.
    """

    attend: Callable[[Tensor, Tensor, Tensor, PackedDocuments | None, float], Tensor]
    supports: Callable[[Tensor, float], bool]


ATTENTION = {
    AttentionBackend.sdpa: Backend(sdpa, lambda q, dropout: True),
    AttentionBackend.cpu_flash: Backend(cpu_flash, _cpu_flash_supports),
    AttentionBackend.xformers: Backend(
        xformers_attention, lambda q, dropout: xformers_available(q.device, q.dtype)
    ),
}


def select_backend(
    backend: AttentionBackend, documents: PackedDocuments | None, q: Tensor, dropout: float
) -> AttentionBackend:
    """The backend to use for queries (B, T, H, D): the requested one, or what ``auto`` means.

    Raises:
        ValueError: the requested backend does not support such queries on this machine.
    """
    if backend is not AttentionBackend.auto:
        if not ATTENTION[backend].supports(q, dropout):
            raise ValueError(
                f"attention={backend.value} does not support {q.device.type} with {q.dtype} and "
                f"dropout {dropout}: set attention=sdpa in the student's config"
            )
        return backend
    if ATTENTION[AttentionBackend.cpu_flash].supports(q, dropout):
        return AttentionBackend.cpu_flash
    if documents is not None and ATTENTION[AttentionBackend.xformers].supports(q, dropout):
        return AttentionBackend.xformers
    return AttentionBackend.sdpa
