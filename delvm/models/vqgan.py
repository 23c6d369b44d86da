"""VQGAN tokenizer: an image becomes a grid of discrete codes, and back.

The layout, and so the name of each weight, is that of taming-transformers' VQGAN as open-muse has
it, which is the tokenizer of LVM and DeLVM: pixels in [0, 1] with no further scaling.

Notation:
    B batch               V codes in the codebook (num_embeddings)
    H image side          d dimension of a code (quantized_embed_dim)
    h side of the latent  N tokens per image, N = h * h, in raster order
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.models.config import below_minimum, config_from_settings, raise_errors
from delvm.models.quantizer import VectorQuantizer
from delvm.models.vqgan_blocks import Downsample, MidBlock, Stage, Upsample, group_norm


class PixelRange(Enum):
    """Range of pixel values inside the network: ``unit`` [0, 1], or taming's ``signed`` [-1, 1]."""

    unit = "unit"
    signed = "signed"


@dataclass
class VQGANConfig:
    """Architecture of the tokenizer; the defaults are f16 with 8,192 codes at 256 px.

    Attributes:
        resolution: image side H in pixels.
        num_channels: channels of an image.
        hidden_channels: channels of the first level; a multiple of 32 (group norm).
        channel_mult: channels of each level relative to ``hidden_channels``; the resolution is
            halved between levels.
        num_res_blocks: residual blocks per level of the encoder; the decoder has one more.
        attn_resolutions: sides of the feature maps that have self-attention.
        no_attn_mid_block: whether the middle block has no attention.
        z_channels: channels of the encoder's output.
        num_embeddings: codes in the codebook, V.
        quantized_embed_dim: dimension of a code, d.
        dropout: in the residual blocks.
        resample_with_conv: whether down- and upsampling are learned convolutions.
        commitment_cost: weight of the commitment term in the codebook loss.
        patch_size: side of the pixel blocks that are folded into channels before the first
            convolution (1 in DeLVM). Full-resolution convolutions cost most, so small tokenizers
            downsample early.
        pixel_range: range of pixel values inside the network. ``encode`` takes and ``decode``
            returns [0, 1] in either case.
        use_l2_norm: whether features and codes are scaled to length 1, so that the nearest code is
            the one with the smallest angle (Yu et al. 2021, arXiv 2110.04627).
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
        """Pixels per token along one side."""
        return int(self.patch_size * 2 ** (len(self.channel_mult) - 1))

    @property
    def latent_size(self) -> int:
        """Tokens along one side, h."""
        return self.resolution // self.downsample_factor

    @property
    def tokens_per_image(self) -> int:
        """Tokens per image, N."""
        return self.latent_size**2

    def validate(self) -> list[str]:
        """All errors of this architecture, one line each; empty when it can be built."""
        sizes = ("resolution", "num_channels", "hidden_channels", "num_res_blocks", "z_channels")
        errors = below_minimum(
            self, 1, *sizes, "num_embeddings", "quantized_embed_dim", "patch_size"
        )
        if not self.channel_mult:
            errors.append("channel_mult is empty, at least one level is needed")
        elif self.patch_size >= 1 and self.resolution % self.downsample_factor:
            errors.append(
                f"resolution {self.resolution} is not a multiple of the downsample factor "
                f"{self.downsample_factor}"
            )
        errors += [f"channel_mult {m} is below 1" for m in self.channel_mult if m < 1]
        errors += [
            f"hidden_channels {self.hidden_channels} x channel_mult {m} is not a multiple of 32"
            for m in self.channel_mult
            if self.hidden_channels * m % 32
        ]
        if not 0 <= self.dropout < 1:
            errors.append(f"dropout {self.dropout} is not in [0, 1)")
        return errors


class Encoder(nn.Module):
    """Pixels (B, 3, H, H) -> features (B, z_channels, h, h)."""

    def __init__(self, cfg: VQGANConfig) -> None:
        super().__init__()
        level_channels = [cfg.hidden_channels * m for m in cfg.channel_mult]
        self.unshuffle = nn.PixelUnshuffle(cfg.patch_size)
        in_channels = cfg.num_channels * cfg.patch_size**2
        self.conv_in = nn.Conv2d(in_channels, cfg.hidden_channels, 3, padding=1)
        stages, channels, side = [], cfg.hidden_channels, cfg.resolution // cfg.patch_size
        for i, out in enumerate(level_channels):
            is_last = i == len(level_channels) - 1
            down = None if is_last else Downsample(out, cfg.resample_with_conv)
            stages.append(
                Stage(
                    [channels] + [out] * cfg.num_res_blocks,
                    side in cfg.attn_resolutions,
                    cfg.dropout,
                    down,
                    "downsample",
                    cfg.attn_in_single_block_levels,
                )
            )
            channels, side = out, side // 2
        self.down = nn.ModuleList(stages)
        self.mid = MidBlock(channels, not cfg.no_attn_mid_block, cfg.dropout)
        self.norm_out = group_norm(channels)
        self.conv_out = nn.Conv2d(channels, cfg.z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(self.unshuffle(pixels))
        for stage in self.down:
            x = stage(x)
        return cast(Tensor, self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """Features (B, z_channels, h, h) -> pixels (B, 3, H, H), not clamped."""

    def __init__(self, cfg: VQGANConfig) -> None:
        super().__init__()
        level_channels = [cfg.hidden_channels * m for m in cfg.channel_mult]
        channels, side = level_channels[-1], cfg.latent_size
        self.conv_in = nn.Conv2d(cfg.z_channels, channels, 3, padding=1)
        self.mid = MidBlock(channels, not cfg.no_attn_mid_block, cfg.dropout)
        stages: list[Stage] = []
        for i, out in reversed(list(enumerate(level_channels))):
            up = Upsample(out, cfg.resample_with_conv) if i > 0 else None
            stages.append(
                Stage(
                    [channels] + [out] * (cfg.num_res_blocks + 1),
                    side in cfg.attn_resolutions,
                    cfg.dropout,
                    up,
                    "upsample",
                    cfg.attn_in_single_block_levels,
                )
            )
            channels, side = out, side * 2
        self.up = nn.ModuleList(reversed(stages))  # same index as the encoder's stages
        self.norm_out = group_norm(channels)
        out_channels = cfg.num_channels * cfg.patch_size**2
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.shuffle = nn.PixelShuffle(cfg.patch_size)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for stage in reversed(self.up):
            x = stage(x)
        return cast(Tensor, self.shuffle(self.conv_out(F.silu(self.norm_out(x)))))


class VQGAN(nn.Module):
    """The tokenizer: ``encode`` turns pixels into token ids, ``decode`` turns ids into pixels.

    Attributes:
        bf16: whether both run in bfloat16, except for the search of the nearest code. This is
            about twice as fast on hardware that supports it, and changes a few percent of the ids.
    """

    def __init__(self, config: VQGANConfig) -> None:
        """Build the tokenizer with initial weights.

        Raises:
            ValueError: the config is not valid.
        """
        super().__init__()
        raise_errors(config.validate())
        self.config = config
        self.bf16 = False
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = VectorQuantizer(
            config.num_embeddings, config.quantized_embed_dim, config.use_l2_norm
        )
        self.quant_conv = nn.Conv2d(config.z_channels, config.quantized_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.quantized_embed_dim, config.z_channels, 1)
        # Channels last: convolutions need no reordering, and feature vectors no copy.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def from_settings(cls, **settings: Any) -> Self:
        """Build the tokenizer from the fields of `VQGANConfig` as keyword arguments.

        Enums may be given by name, so this can be a ``_target_`` of Hydra.

        Raises:
            ValueError: a field is unknown, or the config is not valid.
        """
        return cls(config_from_settings(VQGANConfig, settings))

    @property
    def resolution(self) -> int:
        """Image side H in pixels."""
        return self.config.resolution

    @property
    def tokens_per_image(self) -> int:
        """Tokens per image, N."""
        return self.config.tokens_per_image

    @property
    def codebook_size(self) -> int:
        """Codes in the codebook, V."""
        return self.config.num_embeddings

    @property
    def commitment_cost(self) -> float:
        """Weight of the commitment term in the codebook loss."""
        return self.config.commitment_cost

    @property
    def codebook(self) -> Tensor:
        """The codes (V, d) that features are compared with."""
        return self.quantize.codebook

    @property
    def codebook_parameter(self) -> Tensor:
        """The trained parameter (V, d) behind `codebook`; the same values without l2 norm."""
        return self.quantize.embedding.weight

    @property
    def last_layer(self) -> Tensor:
        """Weight of the decoder's last layer, where the adversarial loss is balanced."""
        return self.decoder.conv_out.weight

    def nearest_code_indices(self, z: Tensor) -> Tensor:
        """Indices (M,) int64 of the codes nearest to feature vectors z (M, d)."""
        return self.quantize.nearest_code_indices(z)

    def encode_features(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, H) in [0, 1] -> features (B, N, d) before quantization."""
        if self.config.pixel_range is PixelRange.signed:
            pixels = 2 * pixels - 1
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        z = cast(Tensor, self.quant_conv(self.encoder(pixels))).flatten(2).transpose(1, 2)
        return F.normalize(z, dim=-1) if self.config.use_l2_norm else z

    def decode_embeddings(self, embeddings: Tensor) -> Tensor:
        """Code vectors (B, N, d) -> pixels (B, 3, H, H), not clamped."""
        b, n, d = embeddings.shape
        side = int(n**0.5)
        z = embeddings.transpose(1, 2).reshape(b, d, side, side)
        pixels = cast(Tensor, self.decoder(self.post_quant_conv(z)))
        return (pixels + 1) / 2 if self.config.pixel_range is PixelRange.signed else pixels

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, H) in [0, 1] -> token ids (B, N) int64 in raster order.

        Raises:
            ValueError: the images have another size than ``resolution``, or a pixel is NaN or
                outside [0, 1].
        """
        self._check_pixels(pixels)
        with self._autocast():
            z = self.encode_features(pixels)
        return self.nearest_code_indices(z.flatten(0, 1)).view(z.shape[:2])

    @torch.no_grad()
    def decode(self, ids: Tensor, clamp: bool = True) -> Tensor:
        """Token ids (B, N) -> pixels (B, 3, H, H) float32, in [0, 1] when clamped.

        Raises:
            ValueError: there are not N ids per image, or one is outside the codebook.
        """
        cfg = self.config
        if ids.ndim != 2 or ids.shape[1] != cfg.tokens_per_image:
            raise ValueError(f"ids {tuple(ids.shape)} are not (B, {cfg.tokens_per_image})")
        low, high = torch.stack(ids.aminmax()).tolist() if ids.numel() else (0, 0)
        if not 0 <= low <= high < cfg.num_embeddings:  # before a GPU stops at such an index
            raise ValueError(
                f"ids {low} to {high} are outside of a codebook of {cfg.num_embeddings}"
            )
        with self._autocast():
            pixels = self.decode_embeddings(F.embedding(ids, self.codebook)).float()
        return pixels.clamp(0, 1) if clamp else pixels

    def _autocast(self) -> AbstractContextManager[object]:
        """Autocast to bfloat16 with ``bf16``; otherwise an outer autocast stays in force."""
        if not self.bf16:
            return nullcontext()
        return torch.autocast(self.codebook.device.type, torch.bfloat16)

    def _check_pixels(self, pixels: Tensor) -> None:
        cfg = self.config
        shape = (cfg.num_channels, cfg.resolution, cfg.resolution)
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
            raise ValueError(
                f"pixels {tuple(pixels.shape)} are not (B, {', '.join(map(str, shape))}): resize "
                "each image with "
                f"delvm.data.resizing.resize_center_crop(image, {cfg.resolution})"
            )
        if not pixels.numel():
            return
        low, high = torch.stack(pixels.aminmax()).tolist()  # both NaN if any pixel is
        if math.isnan(low):
            raise ValueError(f"{int(pixels.isnan().sum())} of {pixels.numel()} pixels are NaN")
        if low < 0 or high > 1:
            raise ValueError(f"pixels from {low:g} to {high:g} are not in [0, 1]")
