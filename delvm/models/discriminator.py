"""The adversary of the tokenizer: says of each patch of a picture whether it is real.

PatchGAN of pix2pix (Isola et al. 2017, arXiv 1611.07004, section 3.2.2), as VQGAN uses it (Esser
et al. 2021, arXiv 2012.09841). Group norm stands for batch norm, whose statistics would mix real
and drawn pictures differently on one device and on several.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Pixels (B, 3, H, H) in [0, 1] -> logits (B, 1, h, h), one a patch; above 0 means real."""

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        """``layers`` halvings before the last two convolutions, ``width`` channels at first."""
        super().__init__()
        widths = [width * min(2**i, 8) for i in range(layers + 1)]
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for i, (before, after) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < layers else 1
            parts += [
                nn.Conv2d(before, after, 4, stride, 1, bias=False),
                nn.GroupNorm(min(32, after), after),
                nn.LeakyReLU(0.2),
            ]
        self.main = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.main(2 * pixels - 1)


def hinge_d_loss(real: Tensor, drawn: Tensor) -> Tensor:
    """Loss of the discriminator: real logits above 1, those of drawn pictures below -1."""
    return (F.relu(1 - real).mean() + F.relu(1 + drawn).mean()) / 2


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, last: Tensor) -> Tensor:
    """Weight at which both losses pull alike on the decoder's last layer (Esser et al., eq. 7).

    Args:
        reconstruction, adversarial: losses of the same drawn pictures, with their graphs.
        last: weight of the last layer.

    Returns:
        () in [0, 1e4], without a gradient.
    """
    (ours,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    return (ours.norm() / (theirs.norm() + 1e-4)).clamp(0, 1e4).detach()
