"""Discriminator and perceptual losses."""

from pathlib import Path

import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from delvm.models.discriminator import (
    DiscriminatorNorm,
    PatchDiscriminator,
    adaptive_weight,
    hinge_d_loss,
)
from delvm.models.perceptual import LPIPS, MSSSIMLoss


@pytest.mark.parametrize(("layers", "side", "patches"), [(3, 64, 6), (2, 32, 6), (1, 16, 6)])
def test_discriminator_gives_one_logit_per_patch(layers, side, patches):
    discriminator = PatchDiscriminator(dim=8, num_layers=layers)
    assert discriminator(torch.rand(2, 3, side, side)).shape == (2, 1, patches, patches)


def test_hinge_loss_is_zero_beyond_margin():
    assert hinge_d_loss(torch.tensor([1.0, 5.0]), torch.tensor([-1.0, -9.0])) == 0
    assert hinge_d_loss(torch.tensor([0.0]), torch.tensor([0.5])) == pytest.approx((1 + 1.5) / 2)


def test_adaptive_weight_balances_gradients():
    torch.manual_seed(0)
    last = nn.Parameter(torch.randn(4, 3))
    pixels = torch.randn(5, 4) @ last
    rec_loss, generator_loss = pixels.square().mean(), 7 * pixels.sum()
    weight = adaptive_weight(rec_loss, generator_loss, last)
    assert not weight.requires_grad
    (rec_grad,) = torch.autograd.grad(rec_loss, last, retain_graph=True)
    (generator_grad,) = torch.autograd.grad(weight * generator_loss, last)
    assert generator_grad.norm().item() == pytest.approx(rec_grad.norm().item(), rel=1e-3)


@pytest.mark.parametrize("side", [16, 64, 256])
def test_ms_ssim_loss_is_zero_for_equal_images(side):
    distance = MSSSIMLoss(side)
    pixels = torch.rand(1, 3, side, side)
    assert distance(pixels, pixels).item() == pytest.approx(0, abs=1e-5)
    assert distance(pixels, pixels.flip(0, 2)) > 0.3


@pytest.fixture(scope="module")
def weights() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random weights for VGG16 under torchvision's names, and torchmetrics' linear layers."""
    torch.manual_seed(0)
    vgg, before = {"classifier.0.weight": torch.zeros(1)}, 3
    widths = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256}
    widths |= dict.fromkeys((17, 19, 21, 24, 26, 28), 512)
    for layer, channels in widths.items():
        std = (2 / 9 / before) ** 0.5
        vgg[f"features.{layer}.weight"] = torch.randn(channels, before, 3, 3) * std
        vgg[f"features.{layer}.bias"] = torch.zeros(channels)
        before = channels
    file = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"
    return vgg, torch.load(file, map_location="cpu", weights_only=True)


def naive_lpips(vgg: dict[str, Tensor], lins: dict[str, Tensor], a: Tensor, b: Tensor) -> float:
    """The definition (Zhang et al. 2018, equation 1), one image and one stage at a time."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    stages = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
    total = 0.0
    for x, y in zip(a, b, strict=True):
        x, y = ((2 * image - 1 - shift) / scale for image in (x, y))
        for number, stage in enumerate(stages):
            for layer in stage:
                weight, bias = vgg[f"features.{layer}.weight"], vgg[f"features.{layer}.bias"]
                x, y = (torch.conv2d(p[None], weight, bias, padding=1)[0].relu() for p in (x, y))
            gap = (x / x.norm(dim=0) - y / y.norm(dim=0)).square()
            lin = lins[f"lin{number}.model.1.weight"].view(-1, 1, 1)
            total += (gap * lin).sum(0).mean().item()
            if number < 4:
                x, y = (torch.max_pool2d(p[None], 2)[0] for p in (x, y))
    return total / len(a)


def test_lpips_equals_definition(weights):
    distance = LPIPS(*weights)
    a, b = torch.rand(2, 2, 3, 32, 32)
    assert distance(a, a).item() == pytest.approx(0, abs=1e-6)
    assert distance(a, b).item() == pytest.approx(naive_lpips(*weights, a, b), rel=1e-4)
    assert not any(p.requires_grad for p in distance.parameters())


def test_lpips_of_each_image_is_that_of_it_alone(weights):
    distance = LPIPS(*weights)
    a, b = torch.rand(2, 3, 3, 16, 16)
    each = distance.of_each(a, b)
    assert each.shape == (3,) and each.mean().item() == pytest.approx(distance(a, b).item())
    for index in range(3):
        alone = distance(a[index : index + 1], b[index : index + 1])
        assert each[index].item() == pytest.approx(alone.item(), rel=1e-5)


def test_lpips_lists_missing_and_wrong_weights(weights):
    vgg, lins = weights
    broken = {k: v for k, v in vgg.items() if k != "features.5.bias"}
    broken["features.0.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"features.0.weight: \(1,\).*features.5.bias: missing"):
        LPIPS(broken, lins)


def test_discriminator_with_batch_norm_is_that_of_pix2pix():
    """Names and shapes of NLayerDiscriminator in taming-transformers, which has batch norm."""
    found = PatchDiscriminator(norm=DiscriminatorNorm.batch)
    norms = [module for module in found.main if isinstance(module, torch.nn.BatchNorm2d)]
    assert [norm.num_features for norm in norms] == [128, 256, 512]
    assert all(abs(float(norm.weight.detach().mean()) - 1) < 0.02 for norm in norms)
    shapes = {k: tuple(v.shape) for k, v in found.state_dict().items() if k.endswith("weight")}
    assert shapes == {
        "main.0.weight": (64, 3, 4, 4), "main.2.weight": (128, 64, 4, 4), "main.3.weight": (128,),
        "main.5.weight": (256, 128, 4, 4), "main.6.weight": (256,),
        "main.8.weight": (512, 256, 4, 4), "main.9.weight": (512,),
        "main.11.weight": (1, 512, 4, 4),
    }  # fmt: skip
