"""VQGAN tokenizer: a picture becomes a grid of discrete codes, and back.

The layout (and so the name of each weight) is that of the taming-transformers VQGAN as open-muse
carries it, which is the tokenizer of LVM and DeLVM: pixels in [0, 1] with no further scaling.

Notation:
    B  batch            V  codes in the codebook (num_embeddings)
    H  picture side     d  width of a code (quantized_embed_dim)
    h  grid side        N  tokens a picture, N = h * h, in raster order
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.models.quantizer import VectorQuantizer


class PixelRange(Enum):
    """Range of pixel values inside the network: ``unit`` [0, 1], or taming's ``signed`` [-1, 1]."""

    unit = "unit"
    signed = "signed"


@dataclass
class VQGANConfig:
    """Architecture of the tokenizer; the defaults are f16 with 8,192 codes at 256 px.

    Attributes:
        resolution: picture side H in pixels.
        hidden_channels: channels of the first level; a multiple of 32 (group norm).
        channel_mult: channels of each level over ``hidden_channels``; between two levels the
            picture is halved.
        attn_resolutions: sides of the feature map at which a level has self-attention.
        z_channels: channels of the encoder's output.
        num_embeddings: codes in the codebook, V.
        quantized_embed_dim: width of a code, d.
        commitment_cost: weight of the commitment term in the codebook loss.
        patch_size: side of the pixel blocks folded into channels before the first convolution
            (1 in the reference). Full-resolution convolutions cost most, so small tokenizers
            go down early.
        pixel_range: range of pixel values inside the network. ``encode`` takes and ``decode``
            returns [0, 1] in either case.
        use_l2_norm: whether features and codes are scaled to length 1 first, so that the
            nearest code is the one of the least angle (Yu et al. 2021, arXiv 2110.04627).
        attn_in_single_block_levels: whether attention is applied in a level with a single
            attention block, as in taming-transformers; open-muse skips it, and its weights expect
            that.
    """

    resolution: int = 256
    num_channels: int = 3
    hidden_channels: int = 128
    channel_mult: list[int] = field(default_factory=lambda: [1, 1, 2, 2, 4])
    num_res_blocks: int = 2
    attn_resolutions: list[int] = field(default_factory=lambda: [16])
    no_attn_mid_block: bool = False
    z_channels: int = 256
    num_embeddings: int = 8192
    quantized_embed_dim: int = 256
    dropout: float = 0.0
    resample_with_conv: bool = True
    commitment_cost: float = 0.25
    patch_size: int = 1
    pixel_range: PixelRange = PixelRange.unit
    use_l2_norm: bool = False
    attn_in_single_block_levels: bool = False

    @property
    def downsample_factor(self) -> int:
        """How many pixels a token stands for along a side."""
        return int(self.patch_size * 2 ** (len(self.channel_mult) - 1))

    @property
    def latent_size(self) -> int:
        """Tokens along a side, h."""
        return self.resolution // self.downsample_factor

    @property
    def tokens_per_image(self) -> int:
        """Tokens a picture, N."""
        return self.latent_size**2


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, around a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = _norm(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = _norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.nin_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(self.dropout(F.silu(self.norm2(y))))
        return y + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        # (B, C, h, w) -> (B, h*w, C)
        q, k, v = (layer(y).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        # Written out as in the reference: in float32 the fused kernel rounds otherwise.
        y = torch.softmax(q @ k.transpose(1, 2) * q.shape[-1] ** -0.5, dim=-1) @ v
        return x + self.proj_out(y.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve a feature map: a strided convolution padded right and below, or mean pooling."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double a feature map by repetition, then a convolution."""

    def __init__(self, channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class Stage(nn.Module):
    """Residual blocks (each with attention, or none) of one resolution; then a resampling."""

    def __init__(
        self,
        widths: list[int],
        attention: bool,
        dropout: float,
        resample: nn.Module | None,
        name: str,
        lone: bool,
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.block = nn.ModuleList(ResBlock(a, b, dropout) for a, b in pairs)
        self.attn = nn.ModuleList(AttnBlock(b) for _, b in pairs if attention)
        self.resample = name
        self.attends = len(self.attn) > (0 if lone else 1)
        if resample is not None:
            self.add_module(name, resample)

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attends:
                x = self.attn[i](x)
        resample = self._modules.get(self.resample)
        return x if resample is None else resample(x)


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels: int, attention: bool, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, dropout)
        self.attn_1 = AttnBlock(channels) if attention else None
        self.block_2 = ResBlock(channels, channels, dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        return self.block_2(x if self.attn_1 is None else self.attn_1(x))


class Encoder(nn.Module):
    """Pixels (B, 3, H, H) -> features (B, z_channels, h, h)."""

    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        widths = [c.hidden_channels * m for m in c.channel_mult]
        self.unshuffle = nn.PixelUnshuffle(c.patch_size)
        self.conv_in = nn.Conv2d(c.num_channels * c.patch_size**2, c.hidden_channels, 3, padding=1)
        levels, width, side = [], c.hidden_channels, c.resolution // c.patch_size
        for i, out in enumerate(widths):
            down = Downsample(out, c.resample_with_conv) if i < len(widths) - 1 else None
            blocks = [width] + [out] * c.num_res_blocks
            attends = side in c.attn_resolutions
            levels.append(
                Stage(blocks, attends, c.dropout, down, "downsample", c.attn_in_single_block_levels)
            )
            width, side = out, side // 2
        self.down = nn.ModuleList(levels)
        self.mid = MidBlock(width, not c.no_attn_mid_block, c.dropout)
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, c.z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(self.unshuffle(pixels))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """Features (B, z_channels, h, h) -> pixels (B, 3, H, H), not clamped."""

    def __init__(self, c: VQGANConfig) -> None:
        super().__init__()
        widths = [c.hidden_channels * m for m in c.channel_mult]
        width, side = widths[-1], c.latent_size
        self.conv_in = nn.Conv2d(c.z_channels, width, 3, padding=1)
        self.mid = MidBlock(width, not c.no_attn_mid_block, c.dropout)
        levels: list[Stage] = []
        for i, out in reversed(list(enumerate(widths))):
            up = Upsample(out, c.resample_with_conv) if i > 0 else None
            blocks = [width] + [out] * (c.num_res_blocks + 1)
            attends = side in c.attn_resolutions
            levels.append(
                Stage(blocks, attends, c.dropout, up, "upsample", c.attn_in_single_block_levels)
            )
            width, side = out, side * 2
        self.up = nn.ModuleList(reversed(levels))  # indexed as the encoder's levels are
        self.norm_out = _norm(width)
        self.conv_out = nn.Conv2d(width, c.num_channels * c.patch_size**2, 3, padding=1)
        self.shuffle = nn.PixelShuffle(c.patch_size)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.shuffle(self.conv_out(F.silu(self.norm_out(x))))


class VQGAN(nn.Module):
    """The tokenizer: ``encode`` pixels to ids, ``decode`` ids to pixels.

    Attributes:
        bf16: whether both compute in bfloat16 (but for the search), which is about twice as fast
            where the hardware has it; a few in a hundred ids then differ.
    """

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.bf16 = False
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(
            config.num_embeddings, config.quantized_embed_dim, config.use_l2_norm
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.quantized_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.quantized_embed_dim, config.z_channels, 1)
        # Channels innermost: convolutions need no reordering, and the search gets its vectors
        # without a copy.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @property
    def codebook(self) -> Tensor:
        """The codes (V, d)."""
        return self.quantize.codebook

    def encode_features(self, pixels: Tensor) -> Tensor:
        """Features (B, N, d) before quantization, of pixels (B, 3, H, H) in [0, 1]."""
        if self.config.pixel_range is PixelRange.signed:
            pixels = 2 * pixels - 1
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        z = self.quant_conv(self.encoder(pixels)).flatten(2).transpose(1, 2)
        return F.normalize(z, dim=-1) if self.config.use_l2_norm else z

    def decode_embeddings(self, codes: Tensor) -> Tensor:
        """Pixels (B, 3, H, H), not clamped, of code vectors (B, N, d)."""
        b, n, d = codes.shape
        side = int(n**0.5)
        z = codes.transpose(1, 2).reshape(b, d, side, side)
        pixels = self.decoder(self.post_quant_conv(z))
        return (pixels + 1) / 2 if self.config.pixel_range is PixelRange.signed else pixels

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Ids (B, N) int64 in raster order, of pixels (B, 3, H, H) in [0, 1].

        Raises:
            ValueError: the pictures have another shape than the tokenizer was made for, or a
                pixel is no number or outside [0, 1].
        """
        self._check_pixels(pixels)
        with self._precision():
            z = self.encode_features(pixels)
        return self.quantize.nearest_code_indices(z.flatten(0, 1)).view(z.shape[:2])

    @torch.no_grad()
    def decode(self, ids: Tensor, clamp: bool = True) -> Tensor:
        """Pixels (B, 3, H, H), in [0, 1] when clamped, of ids (B, N).

        Raises:
            ValueError: the ids are not N a picture, or one is outside the codebook.
        """
        c = self.config
        if ids.ndim != 2 or ids.shape[1] != c.tokens_per_image:
            raise ValueError(f"ids {tuple(ids.shape)} are not (B, {c.tokens_per_image})")
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < c.num_embeddings:
            raise ValueError(
                f"ids {int(ids.min())} to {int(ids.max())} for a codebook of {c.num_embeddings}"
            )
        with self._precision():
            pixels = self.decode_embeddings(F.embedding(ids, self.codebook)).float()
        return pixels.clamp(0, 1) if clamp else pixels

    def _precision(self) -> AbstractContextManager[object]:
        """Autocast to bfloat16 in the fast mode; otherwise what is in force stays so."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.codebook.device.type, torch.bfloat16)

    def _check_pixels(self, pixels: Tensor) -> None:
        c = self.config
        wanted = (c.num_channels, c.resolution, c.resolution)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != wanted:
            raise ValueError(
                f"pixels {tuple(pixels.shape)} are not (B, {', '.join(map(str, wanted))}): scale "
                f"and crop each image with delvm.data.image_io.resize_center_crop(image, "
                f"{c.resolution})"
            )
        if not pixels.numel():
            return
        least, most = (value.item() for value in pixels.aminmax())  # both NaN if any pixel is
        if math.isnan(least):
            raise ValueError(f"{int(pixels.isnan().sum())} of {pixels.numel()} pixels are NaN")
        if least < 0 or most > 1:
            raise ValueError(f"pixels from {least:g} to {most:g} are not in [0, 1]")


def _check(c: VQGANConfig) -> None:
    """Collect every fault of an architecture and raise one ValueError."""
    faults = []
    if c.resolution % c.downsample_factor:
        faults.append(
            f"resolution {c.resolution} is not a multiple of the downsample factor "
            f"{c.downsample_factor}"
        )
    for m in c.channel_mult:
        if c.hidden_channels * m % 32:
            faults.append(
                f"hidden_channels {c.hidden_channels} x channel_mult {m} is not a multiple of 32"
            )
    if c.patch_size < 1:
        faults.append(f"patch_size {c.patch_size} is below 1")
    if faults:
        raise ValueError("; ".join(faults))
