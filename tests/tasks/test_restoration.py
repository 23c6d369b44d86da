import numpy as np
import pytest

from delvm.tasks import restoration


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = ((a.astype(float) - b.astype(float)) ** 2).mean()
    return float(10 * np.log10(255**2 / error))


def scene(size: int) -> np.ndarray:
    """Dark, with a bright square in the middle."""
    picture = np.full((size, size, 3), 40, np.uint8)
    picture[size // 3 : 2 * size // 3, size // 3 : 2 * size // 3] = (220, 180, 90)
    return picture


@pytest.mark.parametrize("degrade", [restoration.add_rain, restoration.shake])
@pytest.mark.parametrize("size", [32, 64])
def test_degraded_pictures_are_far_from_clean_and_repeatable(degrade, size):
    clean = scene(size)
    kept = clean.copy()
    for seed in range(5):
        picture = degrade(clean, np.random.default_rng(seed))
        assert picture.shape == clean.shape and picture.dtype == np.uint8
        assert psnr(picture, clean) < 17
        assert (picture == degrade(clean, np.random.default_rng(seed))).all()
    assert (clean == kept).all()


def test_rain_brightens_a_dark_picture():
    dark = np.full((64, 64, 3), 20, np.uint8)
    rainy = restoration.add_rain(dark, np.random.default_rng(0))
    assert (rainy >= dark).all() and rainy.max() > 150 and rainy.mean() > 60


def test_shake_drifts_down_and_right_and_leaves_flat_pictures_alone():
    clean = np.zeros((64, 64, 3), np.uint8)
    clean[20:30, 20:30] = 240
    rows, columns = np.indices((64, 64))
    for seed in range(5):
        light = restoration.shake(clean, np.random.default_rng(seed)).sum(axis=2)
        assert (rows * light).sum() / light.sum() > 24.5 + 3
        assert (columns * light).sum() / light.sum() > 24.5 + 3
    flat = np.full((32, 32, 3), 99, np.uint8)
    assert (restoration.shake(flat, np.random.default_rng(0)) == flat).all()
