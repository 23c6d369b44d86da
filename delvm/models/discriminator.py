"""PatchGAN discriminator: one real/fake logit per patch of an image.

As in pix2pix (Isola et al. 2017, arXiv 1611.07004, section 3.2.2) and VQGAN (Esser et al. 2021,
arXiv 2012.09841), but by default with group norm instead of batch norm, whose statistics would
differ between one device and several.
"""

from enum import Enum
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DiscriminatorNorm(Enum):
    """Normalization in the discriminator: ``batch`` is pix2pix's and taming-transformers'."""

    group = "group"
    batch = "batch"


class PatchDiscriminator(nn.Module):
    """Pixels (B, 3, H, H) in [0, 1] -> logits (B, 1, h, h), one per patch; above 0 means real."""

    def __init__(
        self,
        in_channels: int = 3,
        dim: int = 64,
        num_layers: int = 3,
        norm: DiscriminatorNorm = DiscriminatorNorm.group,
    ) -> None:
        """Create the network.

        Args:
            in_channels: channels of an image.
            dim: channels after the first convolution; doubled per layer, up to 8 times.
            num_layers: convolutions of stride 2, before two of stride 1.
            norm: of all convolutions but the first and the last.
        """
        super().__init__()
        channels = [dim * min(2**i, 8) for i in range(num_layers + 1)]
        by_group = norm is DiscriminatorNorm.group
        layers: list[nn.Module] = [nn.Conv2d(in_channels, dim, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(channels), start=1):
            stride = 2 if i < num_layers else 1
            layers += [
                nn.Conv2d(before, after, 4, stride, 1, bias=False),
                nn.GroupNorm(min(32, after), after) if by_group else nn.BatchNorm2d(after),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*layers, nn.Conv2d(channels[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):  # as in pix2pix
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.main(2 * pixels - 1))


def hinge_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator: real logits should exceed 1, fake ones be below -1."""
    return (F.relu(1 - logits_real).mean() + F.relu(1 + logits_fake).mean()) / 2


def adaptive_weight(rec_loss: Tensor, generator_loss: Tensor, last_layer: Tensor) -> Tensor:
    """Weight that gives both losses equal gradients in the last layer (Esser et al., eq. 7).

    Args:
        rec_loss: reconstruction loss (), with its graph.
        generator_loss: adversarial loss () of the same reconstructions, with its graph.
        last_layer: weight of the decoder's last layer.

    Returns:
        () in [0, 1e4], without a gradient.
    """
    (rec_grad,) = torch.autograd.grad(rec_loss, last_layer, retain_graph=True)
    (generator_grad,) = torch.autograd.grad(generator_loss, last_layer, retain_graph=True)
    ratio: Tensor = rec_grad.norm() / (generator_grad.norm() + 1e-4)
    return ratio.clamp(0, 1e4).detach()
