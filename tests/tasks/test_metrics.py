import numpy as np
import pytest
import torch

from delvm.tasks import metrics


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(3, 3, 24, 20, generator=generator)
    noise = torch.randn(3, 3, 24, 20, generator=generator)
    strength = torch.tensor([0.02, 0.1, 0.4]).reshape(3, 1, 1, 1)
    return (truth + strength * noise).clamp(0, 1), truth


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of (3, H, W) window by window, a window on every pixel, borders reflected."""
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    values = []
    a, b = (np.pad(z, ((0, 0), (5, 5), (5, 5)), mode="reflect") for z in (a, b))
    for x, y in zip(a, b, strict=True):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                p, q = (z[top : top + 11, left : left + 11] for z in (x, y))
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                var_p = (window * p * p).sum() - mean_p**2
                var_q = (window * q * q).sum() - mean_q**2
                cov = (window * p * q).sum() - mean_p * mean_q
                luminance = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
                values.append(luminance * (2 * cov + 9e-4) / (var_p + var_q + 9e-4))
    return float(np.mean(values))


def test_psnr_per_image(images):
    prediction, truth = images
    errors = ((prediction - truth).double() ** 2).flatten(1).mean(1)
    expected = -10 * torch.log10(errors)
    torch.testing.assert_close(metrics.psnr(prediction, truth), expected.float())


def test_psnr_cap(images):
    _, truth = images
    assert metrics.psnr(truth, truth).tolist() == [metrics.PSNR_CAP] * 3


def test_ssim_per_image(images):
    prediction, truth = images
    expected = [
        slow_ssim(p.double().numpy(), t.double().numpy())
        for p, t in zip(prediction, truth, strict=True)
    ]
    found = metrics.ssim(prediction, truth)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)
    assert found[0] > found[1] > found[2]


def test_batch_scores_equal_single_scores(images):
    prediction, truth = images
    for metric in (metrics.psnr, metrics.ssim):
        batch = metric(prediction, truth)
        alone = torch.cat([metric(prediction[i : i + 1], truth[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(batch, alone)


def test_to_uint8_rounds_half_up_and_clamps():
    levels = torch.tensor([-0.1, 0.0, 0.5 / 255, 0.49 / 255, 1.0, 1.3])
    pixels = levels.reshape(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert metrics.to_uint8(pixels)[0, 0, :, 0].tolist() == [0, 0, 1, 0, 255, 255]


@pytest.mark.parametrize(
    ("side", "scales"), [(11, 1), (32, 2), (64, 3), (175, 4), (176, 5), (256, 5)]
)
def test_ms_ssim_scales(side, scales):
    assert metrics.ms_ssim_scales(side) == scales
    truth = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    prediction = truth.clone()
    prediction[1] = (truth[1] + 0.2 * truth[0]).clamp(0, 1)
    same, other = metrics.ms_ssim(prediction, truth).tolist()
    assert same == pytest.approx(1, abs=1e-6) and 0.3 < other < 0.999
