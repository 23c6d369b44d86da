"""A key-value cache whose shapes never change, and whose rows may be at different positions.

Positions are a tensor, so one compiled graph, or one CUDA graph, serves every token. Attention
reads the complete buffers and masks what is not there yet, which costs more than `KVCache` where
nothing is compiled and all rows have the same length.

Notation:
    B batch    T new tokens    H heads    D dimension of a head    S tokens in a buffer
    P tokens of the prefix
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.models.attention import AttentionBackend, KVCache


class StaticKVCache(KVCache):
    """Continues a `KVCache`, whose keys and values it copies; the prefix stays shared.

    Rows have lengths of their own, so it has no ``length``. Tokens beyond the end of a buffer are
    written to its last slot: whoever computes more tokens than there is room for must ignore them.

    Attributes:
        lengths: tokens that each row has seen, those of the prefix included, (B,) int64.
    """

    decoder = False

    def __init__(self, source: KVCache) -> None:
        """Copy a cache.

        Args:
            source: a cache that has seen all tokens but those to be generated, with room for them.
        """
        _, _, rows, _, own, _ = source.buffer.shape
        device = source.buffer.device
        self.prefix, self._start = source.prefix, source._start
        # One tensor per layer: compiled code writes to a tensor in place, but copies a view's base.
        # Zeros, since weights of 0 do not mask values that are not finite.
        self.keys = [torch.zeros_like(each) for each in source.buffer[:, 0]]  # (B, H, S, D)
        self.values = [torch.zeros_like(each) for each in source.buffer[:, 1]]
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self._rows = torch.arange(rows, device=device)[:, None]
        self._slots = torch.arange(own, device=device)
        self.load(source)

    def load(self, source: KVCache) -> None:
        """Start again from another cache of the same shape."""
        own = source.length - self._start
        for layer, (keys, values) in enumerate(zip(self.keys, self.values, strict=True)):
            keys[:, :, :own] = source.buffer[layer, 0, :, :, :own]
            values[:, :, :own] = source.buffer[layer, 1, :, :, :own]
        self.prefix = source.prefix
        self.lengths.fill_(source.length)

    def tensors(self) -> list[Tensor]:
        """All tensors of its own, which stay where they are."""
        return [*self.keys, *self.values, self.lengths, self._rows, self._slots]

    def fits(self, source: KVCache) -> bool:
        """Whether `load` may copy a cache: its shapes and those of its prefix are the same."""
        own = self.keys[0]
        return (
            source._start == self._start
            and source.buffer.shape[2:] == own.shape
            and (source.buffer.dtype, source.buffer.device) == (own.dtype, own.device)
        )

    def positions(self, count: int) -> Tensor:
        """Positions of the next ``count`` tokens of each row, (B, T)."""
        following = self.lengths[:, None] + torch.arange(count, device=self.lengths.device)
        return following.clamp_max(self._start + len(self._slots) - 1)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, layer: int, backend: AttentionBackend
    ) -> Tensor:
        """Attention of new tokens (B, T, H, D) to all tokens so far; ``backend`` has no effect."""
        slots = self.positions(q.shape[1]) - self._start  # (B, T)
        keys, values = self.keys[layer], self.values[layer]
        keys[self._rows, :, slots] = k.to(keys.dtype)
        values[self._rows, :, slots] = v.to(values.dtype)
        mask = (self._slots <= slots[..., None])[:, None]  # (B, 1, T, S)
        q = q.transpose(1, 2).to(keys.dtype)  # (B, H, T, D)
        if self.prefix is None:
            return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask).transpose(1, 2)
        q = q * q.shape[-1] ** -0.5
        prefix_keys, prefix_values = self.of_prefix(layer)  # (H, P, D), met by all rows at once
        to_prefix = torch.einsum("bhtd,hpd->bhtp", q, prefix_keys)
        to_own = (q @ keys.mT).masked_fill(~mask, -torch.inf)
        weights = torch.cat((to_prefix, to_own), dim=-1).softmax(-1)  # torch sums it in float32
        split = prefix_keys.shape[1]
        y = torch.einsum("bhtp,hpd->bhtd", weights[..., :split], prefix_values)
        return (y + weights[..., split:] @ values).transpose(1, 2)

    def advance(self, count: int) -> None:
        """Count new tokens of each row."""
        self.lengths += count

    def rewind(self, lengths: Tensor) -> None:
        """Forget all tokens beyond ``lengths`` (B,)."""
        self.lengths.copy_(lengths)
