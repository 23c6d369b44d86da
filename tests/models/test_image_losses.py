"""The tokenizer's adversary and its perceptual distances."""

from pathlib import Path

import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from delvm.models.discriminator import PatchDiscriminator, adaptive_weight, hinge_d_loss
from delvm.models.perceptual import LPIPS, MSSSIMLoss


@pytest.mark.parametrize(("layers", "side", "patches"), [(3, 64, 6), (2, 32, 6), (1, 16, 6)])
def test_a_verdict_a_patch(layers, side, patches):
    adversary = PatchDiscriminator(width=8, layers=layers)
    assert adversary(torch.rand(2, 3, side, side)).shape == (2, 1, patches, patches)


def test_hinge_is_content_beyond_the_margin():
    assert hinge_d_loss(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, -9.0])) == 0
    assert hinge_d_loss(torch.tensor([0.0]), torch.tensor([0.5])) == pytest.approx((1 + 1.5) / 2)


def test_the_adaptive_weight_makes_both_pull_alike():
    torch.manual_seed(0)
    last = nn.Parameter(torch.randn(4, 3))
    drawn = torch.randn(5, 4) @ last
    reconstruction, adversarial = drawn.square().mean(), 7 * drawn.sum()
    weight = adaptive_weight(reconstruction, adversarial, last)
    assert not weight.requires_grad
    (ours,) = torch.autograd.grad(reconstruction, last, retain_graph=True)
    (theirs,) = torch.autograd.grad(weight * adversarial, last)
    assert theirs.norm().item() == pytest.approx(ours.norm().item(), rel=1e-3)


@pytest.mark.parametrize("side", [16, 64, 256])
def test_ms_ssim_is_no_distance_from_itself(side):
    distance = MSSSIMLoss(side)
    pixels = torch.rand(1, 3, side, side)
    assert distance(pixels, pixels).item() == pytest.approx(0, abs=1e-5)
    assert distance(pixels, pixels.flip(0, 2)) > 0.3


@pytest.fixture(scope="module")
def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random weights for VGG16 under torchvision's names, and the heads of torchmetrics."""
    torch.manual_seed(0)
    vgg, before = {"classifier.0.weight": torch.zeros(1)}, 3
    widths = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
    widths |= dict.fromkeys((17, 19, 21, 24, 26, 28), 512)
    for place, width in widths.items():
        vgg[f"features.{place}.weight"] = torch.randn(width, before, 3, 3) * (2 / 9 / before) ** 0.5
        vgg[f"features.{place}.bias"] = torch.zeros(width)
        before = width
    file = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    return vgg, torch.load(file, map_location="cpu", weights_only=True)


def plain_lpips(vgg: dict[str, Tensor], heads: dict[str, Tensor], a: Tensor, b: Tensor) -> float:
    """The definition (Zhang et al. 2018, equation 1), one picture and one stage at a time."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    stages = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    total = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = ((2 * picture - 1 - shift) / scale for picture in (x, y))
        for number, stage in enumerate(stages):
            for place in stage:
                weight, bias = vgg[f"features.{place}.weight"], vgg[f"features.{place}.bias"]
                x, y = (torch.conv2d(p[None], weight, bias, padding=1)[0].relu() for p in (x, y))
            gap = (x / x.norm(dim=0) - y / y.norm(dim=0)).square()
            head = heads[f"lin{number}.model.1.weight"].view(-1, 1, 1)
            total += (gap * head).sum(0).mean().item()
            if number < 4:
                x, y = (torch.max_pool2d(p[None], 2)[0] for p in (x, y))
    return total / len(a)


def test_lpips_is_its_definition(weights):
    distance = LPIPS(*weights)
    a, b = torch.rand(2, 2, 3, 32, 32)
    assert distance(a, a).item() == pytest.approx(0, abs=1e-6)
    assert distance(a, b).item() == pytest.approx(plain_lpips(*weights, a, b), rel=1e-4)
    assert not any(p.requires_grad for p in distance.parameters())


def test_lpips_lists_what_does_not_fit(weights):
    vgg, heads = weights
    broken = {k: v for k, v in vgg.items() if k != "features.5.bias"}
    broken["features.0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"features.0.weight: \(1,\).*features.5.bias: missing"):
        LPIPS(broken, heads)
