import numpy as np
import pytest

from delvm.tasks import degradations


def test_noise_has_its_standard_deviation():
    gray = np.full((128, 128, 3), 128, np.uint8)
    for seed in range(5):
        noise = degradations.add_noise(gray, np.random.default_rng(seed)) - gray.astype(float)
        assert abs(noise.mean()) < 1 and 24.5 < noise.std() < 50.5
    fixed = degradations.add_noise(gray, np.random.default_rng(0), (10, 10)) - gray.astype(float)
    assert fixed.std() == pytest.approx(10, abs=0.1)
    assert not np.allclose(fixed[:, :, 0], fixed[:, :, 1])  # each channel has its own


@pytest.mark.parametrize("shape", [(64, 64, 3), (30, 17, 3), (2, 2, 3)])
def test_lower_resolution_keeps_the_size_and_flat_images(shape):
    flat = np.full(shape, 90, np.uint8)
    assert (degradations.lower_resolution(flat) == flat).all()
    fine = (255 * (np.indices(shape).sum(axis=0) % 2)).astype(np.uint8)
    coarse = degradations.lower_resolution(fine)
    assert coarse.shape == shape and coarse.std() < 0.4 * fine.std()


def test_darken_keeps_the_order_of_levels():
    levels = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, axis=2)
    for seed in range(5):
        dark = degradations.darken(levels, np.random.default_rng(seed))
        assert dark.dtype == np.uint8 and (dark <= levels).all() and dark[0, 0, 0] == 0
        assert (np.diff(dark[0, :, 0].astype(int)) >= 0).all() and dark.max() >= 255 * 0.5 * 0.9**5
