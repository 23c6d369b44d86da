"""Perceptual losses between images: MS-SSIM and LPIPS.

Notation:
    B batch    H image side
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as ms_ssim,
)

# VGG16's convolutions (Simonyan and Zisserman 2015): output channels, M = max pooling.
_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
_RELU_LAYERS = (3, 8, 15, 22, 29)  # indices of the ReLUs whose output LPIPS compares
MIN_LPIPS_SIDE = 16  # pixels, which four poolings leave one of
_RELU_CHANNELS = (64, 128, 256, 512, 512)


class MSSSIMLoss(nn.Module):
    """1 - MS-SSIM (Wang et al. 2003) of pixels (B, 3, H, H) in [0, 1], in float32."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        # The image is halved between scales; use as many scales as the 7-pixel window fits into.
        scales = 1
        while scales < 5 and resolution // 2**scales >= 8:
            scales += 1
        betas = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
        self.betas = tuple((betas / betas.sum()).tolist())

    def forward(self, pixels: Tensor, reconstructions: Tensor) -> Tensor:
        return 1 - ms_ssim(
            reconstructions.float().clamp(0, 1), pixels.float(), kernel_size=7, sigma=1.0,
            data_range=1.0, betas=self.betas, normalize="relu",
        )  # fmt: skip


class LPIPS(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018, arXiv 1801.03924) of pixels in [0, 1], mean over B.

    Frozen. ``features`` has torchvision's names of VGG16's weights (``features.0.weight``); the
    linear layers have the names in torchmetrics (``lin0.model.1.weight``).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg: dict[str, Tensor], lins: dict[str, Tensor]) -> None:
        """Load the weights.

        Args:
            vgg: weights of VGG16; those of its classifier may be included and are ignored.
            lins: weights of the linear layers on top.

        Raises:
            ValueError: weights are missing or have another shape; all are listed.
        """
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for channels in _VGG16:
            if not isinstance(channels, int):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU()]
            in_channels = channels
        self.features = nn.Sequential(*layers)
        self.lins = nn.ParameterList(torch.zeros(1, c, 1, 1) for c in _RELU_CHANNELS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        expected = {f"features.{name}": p for name, p in self.features.named_parameters()}
        expected |= {f"lin{i}.model.1.weight": lin for i, lin in enumerate(self.lins)}
        actual = vgg | lins
        errors = [
            f"{name}: {tuple(actual[name].shape) if name in actual else 'missing'}"
            f" != {tuple(p.shape)}"
            for name, p in expected.items()
            if name not in actual or actual[name].shape != p.shape
        ]
        if errors:
            raise ValueError("; ".join(errors))
        with torch.no_grad():
            for name, parameter in expected.items():
                parameter.copy_(actual[name])
        self.requires_grad_(False)

    def forward(self, pixels: Tensor, reconstructions: Tensor) -> Tensor:
        distance = pixels.new_zeros((), dtype=torch.float32)
        for each in self._maps(pixels, reconstructions):
            distance = distance + each.mean()
        return distance

    def of_each(self, pixels: Tensor, reconstructions: Tensor) -> Tensor:
        """The distance of each pair of images, (B,), of pixels (B, 3, H, H) in [0, 1]."""
        distance = pixels.new_zeros(len(pixels), dtype=torch.float32)
        for each in self._maps(pixels, reconstructions):
            distance = distance + each.mean(dim=(1, 2, 3))
        return distance

    def _maps(self, pixels: Tensor, reconstructions: Tensor) -> Iterator[Tensor]:
        """Weighted squared differences of the features of each layer, (B, 1, h, h)."""
        both = torch.cat((pixels, reconstructions)).float()
        x = (2 * both - 1 - self.shift) / self.scale
        lins = iter(self.lins)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in _RELU_LAYERS:
                normalized = x * (x.square().sum(1, keepdim=True) + 1e-8).rsqrt()
                a, b = normalized.chunk(2)
                yield F.conv2d((a - b).square(), next(lins))
