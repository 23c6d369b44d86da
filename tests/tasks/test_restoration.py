import numpy as np
import pytest

from delvm.tasks import restoration


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(float) - b.astype(float)) ** 2).mean()
    return float(10 * np.log10(255**2 / error))


def scene(size: int) -> np.ndarray:
    """Dark, with a bright square in the middle."""
    image = np.full((size, size, 3), 40, np.uint8)
    image[size // 3 : 2 * size // 3, size // 3 : 2 * size // 3] = (220, 180, 90)
    return image


@pytest.mark.parametrize("degrade", [restoration.add_rain, restoration.motion_blur])
@pytest.mark.parametrize("size", [32, 64])
def test_degradations_are_strong_and_deterministic(degrade, size):
    clean = scene(size)
    kept = clean.copy()
    for seed in range(5):
        image = degrade(clean, np.random.default_rng(seed))
        assert image.shape == clean.shape and image.dtype == np.uint8
        assert psnr(image, clean) < 17
        assert (image == degrade(clean, np.random.default_rng(seed))).all()
    assert (clean == kept).all()


def test_rain_brightens_dark_image():
    dark = np.full((64, 64, 3), 20, np.uint8)
    rainy = restoration.add_rain(dark, np.random.default_rng(0))
    assert (rainy >= dark).all() and rainy.max() > 150 and rainy.mean() > 60


def test_motion_blur_drifts_down_right_and_keeps_flat_images():
    clean = np.zeros((64, 64, 3), np.uint8)
    clean[20:30, 20:30] = 240
    rows, columns = np.indices((64, 64))
    for seed in range(5):
        light = restoration.motion_blur(clean, np.random.default_rng(seed)).sum(axis=2)
        assert (rows * light).sum() / light.sum() > 24.5 + 3
        assert (columns * light).sum() / light.sum() > 24.5 + 3
    flat = np.full((32, 32, 3), 99, np.uint8)
    assert (restoration.motion_blur(flat, np.random.default_rng(0)) == flat).all()
