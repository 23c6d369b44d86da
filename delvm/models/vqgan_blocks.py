"""Blocks of the VQGAN's encoder and decoder, with taming-transformers' names of the weights.

Notation:
    B batch    C channels    h, w height and width of a feature map
"""

from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm with 32 groups; ``channels`` must be a multiple of 32."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Twice (norm, SiLU, convolution), with a residual connection."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return cast(Tensor, y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x))


class AttnBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        # (B, C, h, w) -> (B, h*w, C)
        q, k, v = (layer(y).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        # Written out as in taming-transformers: the fused kernel rounds differently in float32.
        y = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1) @ v
        return x + cast(Tensor, self.proj_out(y.transpose(1, 2).reshape(x.shape)))


class Downsample(nn.Module):
    """Halve a feature map: a strided convolution, padded right and below, or mean pooling."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        return cast(Tensor, self.conv(F.pad(x, (0, 1, 0, 1))))


class Upsample(nn.Module):
    """Double a feature map: nearest neighbor, then optionally a convolution."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else cast(Tensor, self.conv(x))


class Stage(nn.Module):
    """The residual blocks of one resolution, with or without attention, then a resampling."""

    def __init__(
        self,
        channels: list[int],
        attention: bool,
        dropout: float,
        resample: nn.Module | None,
        resample_name: str,
        attn_in_single_block: bool,
    ) -> None:
        """Create the blocks.

        Args:
            channels: before the first block, and after each.
            attention: whether an attention block follows each residual block.
            dropout: in the residual blocks.
            resample: what comes last; None = nothing.
            resample_name: its attribute, which is part of the names of its weights.
            attn_in_single_block: whether attention is applied where there is only one block.
        """
        super().__init__()
        pairs = list(pairwise(channels))
        self.block = nn.ModuleList(ResBlock(a, b, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attention)
        self.resample_name = resample_name
        self.has_attention = len(self.attn) > (0 if attn_in_single_block else 1)
        if resample is not None:
            self.add_module(resample_name, resample)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.has_attention:
                x = self.attn[i](x)
        resample = self._modules.get(self.resample_name)
        return x if resample is None else resample(x)


class MidBlock(nn.Module):
    """Residual block, optional attention, residual block, at the lowest resolution."""

    def __init__(self, channels: int, attention: bool, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels) if attention else None
        self.block_2 = ResBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        return cast(Tensor, self.block_2(x if self.attn_1 is None else self.attn_1(x)))
