"""Distances between pictures that weigh what people see: MS-SSIM, and LPIPS.

Notation:
    B batch    H side
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure as ms_ssim,
)

# VGG16's convolutions (Simonyan and Zisserman 2015): channels, with M where it halves.
_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
_TAPS = (3, 8, 15, 22, 29)  # places of the ReLUs that LPIPS reads
_WIDTHS = (64, 128, 256, 512, 512)


class MSSSIMLoss(nn.Module):
    """1 - MS-SSIM (Wang et al. 2003) of pixels (B, 3, H, H) in [0, 1], in float32."""

    def __init__(self, resolution: int) -> None:
        super().__init__()
        # The picture is halved between scales: as many as fit the 7-pixel window.
        scales = 1
        while scales < 5 and resolution // 2**scales >= 8:
            scales += 1
        betas = torch.tensor([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
        self.betas = tuple((betas / betas.sum()).tolist())

    def forward(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        return 1 - ms_ssim(
            drawn.float().clamp(0, 1), pixels.float(), kernel_size=7, sigma=1.0, data_range=1.0,
            betas=self.betas, normalize="relu",
        )  # fmt: skip


class LPIPS(nn.Module):
    """LPIPS with VGG16 (Zhang et al. 2018, arXiv 1801.03924) of pixels in [0, 1]; mean over B.

    Frozen. ``features`` has torchvision's names for VGG16's weights (``features.0.weight``), the
    heads those that torchmetrics ships (``lin0.model.1.weight``).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg: dict[str, Tensor], heads: dict[str, Tensor]) -> None:
        """Fill the network.

        Raises:
            ValueError: a weight is missing or has another shape; all are listed. Weights of
                VGG16's classifier may be there and are not used.
        """
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in _VGG16:
            if width == "M":
                layers.append(nn.MaxPool2d(2))
                continue
            assert isinstance(width, int)
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.heads = nn.ParameterList(torch.zeros(1, width, 1, 1) for width in _WIDTHS)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        wanted = {f"features.{name}": p for name, p in self.features.named_parameters()}
        wanted |= {f"lin{i}.model.1.weight": head for i, head in enumerate(self.heads)}
        given = vgg | heads
        faults = [
            f"{name}: {tuple(given[name].shape) if name in given else 'missing'}"
            f" != {tuple(p.shape)}"
            for name, p in wanted.items()
            if name not in given or given[name].shape != p.shape
        ]
        if faults:
            raise ValueError("; ".join(faults))
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(given[name])
        self.requires_grad_(False)

    def forward(self, pixels: Tensor, drawn: Tensor) -> Tensor:
        both = torch.cat((pixels, drawn)).float()
        x = (2 * both - 1 - self.shift) / self.scale
        distance = x.new_zeros(())
        heads = iter(self.heads)
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in _TAPS:
                unit = x * (x.square().sum(1, keepdim=True) + 1e-8).rsqrt()
                true, ours = unit.chunk(2)
                distance = distance + F.conv2d((true - ours).square(), next(heads)).mean()
        return distance
