"""PSNR and SSIM of Y against scikit-image, and against the formulas window by window."""

import numpy as np
import pytest
from PIL import Image
from skimage import color, metrics

from delvm.data.sources.shapes.photographs import load_photo
from delvm.tasks import luma


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    """A photograph with noise, and without."""
    photo = np.asarray(load_photo("chelsea").resize((90, 70), Image.Resampling.BICUBIC))
    noise = np.random.default_rng(0).normal(0, 15, photo.shape)
    return np.clip(photo + noise, 0, 255).astype(np.uint8), photo


def test_luma_is_that_of_rgb2ycbcr(pair: tuple[np.ndarray, np.ndarray]) -> None:
    for image in pair:
        expected = np.floor(color.rgb2ycbcr(image)[:, :, 0] + 0.5)
        assert (luma.to_luma(image) == expected).all()
    # The values that MATLAB's rgb2ycbcr has for the corners of the cube.
    corners = {(0, 0, 0): 16, (255, 255, 255): 235, (255, 0, 0): 81, (0, 255, 0): 145}
    corners |= {(0, 0, 255): 41}
    for rgb, y in corners.items():
        assert luma.to_luma(np.array([[rgb]], np.uint8)).tolist() == [[y]]


def test_scores_of_y_equal_those_of_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    noisy, clean = (luma.to_luma(image) for image in pair)
    psnr = metrics.peak_signal_noise_ratio(clean, noisy, data_range=255)
    assert luma.psnr_y(*pair) == pytest.approx(psnr, abs=1e-9)
    ssim = metrics.structural_similarity(
        clean, noisy, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert luma.ssim_y(*pair) == pytest.approx(ssim, abs=1e-9)
    assert 20 < psnr < 35 and 0.3 < ssim < 0.95


def test_ssim_of_y_equals_the_formula_window_by_window(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    images = [image[:18, :15] for image in pair]
    a, b = (luma.to_luma(image).astype(float) for image in images)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            p, q = (each[top : top + 11, left : left + 11] for each in (a, b))
            mean_p, mean_q = (window * p).sum(), (window * q).sum()
            var_p = (window * (p - mean_p) ** 2).sum()
            var_q = (window * (q - mean_q) ** 2).sum()
            cov = (window * (p - mean_p) * (q - mean_q)).sum()
            first = (2 * mean_p * mean_q + 6.5025) / (mean_p**2 + mean_q**2 + 6.5025)
            values.append(first * (2 * cov + 58.5225) / (var_p + var_q + 58.5225))
    assert luma.ssim_y(*images) == pytest.approx(np.mean(values), abs=1e-9)


def test_identical_and_tiny_images() -> None:
    image = np.full((10, 20, 3), 90, np.uint8)
    assert luma.psnr_y(image, image) == 60.0
    assert np.isnan(luma.ssim_y(image, image))  # there is no window of 11 pixels
