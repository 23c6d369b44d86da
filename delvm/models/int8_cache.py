"""A key-value cache in int8: half of what bfloat16 takes, and of what a token has to read.

Each key and each value of a head is scaled by its own largest element, as the weights are in
`delvm.models.weight_precision`. New tokens attend to themselves as they are kept, so it does not
matter which tokens are computed together.

Notation:
    B batch    T new tokens    H heads    D dimension of a head    S tokens in a layer
    P tokens of the prefix
"""

import torch
from torch import Tensor

from delvm.models.attention import KVCache


class Int8KVCache(KVCache):
    """As `KVCache`, with an int8 ``buffer``.

    Attributes:
        scales: of each key and value, float32 (layers, 2, B, H, max_seq_len).
        dtype: of keys and values before and after.
    """

    def allocate(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        """Make the buffer (layers, 2, B, H, S, D), and the scales for it."""
        self.dtype = dtype
        self.buffer = torch.empty(shape, dtype=torch.int8, device=device)
        self.scales = torch.empty(shape[:-1], dtype=torch.float32, device=device)

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep k, v (B, T, H, D) in a layer; return them rounded to what is kept."""
        start = self.length - self._start
        tokens = slice(start, start + k.shape[1])
        for kind, x in enumerate((k, v)):
            ints, scales = quantize_vectors(x.transpose(1, 2))
            self.buffer[layer, kind, :, :, tokens] = ints
            self.scales[layer, kind, :, :, tokens] = scales
        rounded = self._read(layer, tokens).transpose(2, 3).contiguous()
        return rounded[0], rounded[1]

    def own(self, layer: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values (B, H, S, D) of a layer, after the prefix and before token ``end``."""
        keys, values = self._read(layer, slice(end - self._start))
        return keys, values

    def dequantized(self) -> KVCache:
        """A copy in the dtype before quantization."""
        layers, _, rows, heads, own, dim = self.buffer.shape
        prefix = None if self.prefix is None else self.prefix.dequantized()
        size = layers, rows, heads, self._start + own, dim
        copy = KVCache(*size, self.dtype, self.buffer.device, prefix)
        copy.length = self.length
        for layer in range(layers):
            for kind, x in enumerate(self.own(layer, self.length)):
                copy.buffer[layer, kind, :, :, : x.shape[2]] = x
        return copy

    def _read(self, layer: int, tokens: slice) -> Tensor:
        scales = self.scales[layer, :, :, :, tokens, None].to(self.dtype)
        return self.buffer[layer, :, :, :, tokens].to(self.dtype) * scales


def quantize_vectors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (..., D) -> int8 (..., D), and the scales (...) to multiply them by."""
    x = x.float()
    largest = x.abs().amax(-1)
    scales = torch.where(largest > 0, largest / 127, 1.0)
    return (x / scales[..., None]).round().to(torch.int8), scales
