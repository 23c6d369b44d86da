"""Balancing counts, and copies whose input and target share one geometry."""

import numpy as np
import pytest

from delvm.data.augment import (
    MAX_LABEL_COLORS,
    BalanceConfig,
    BalanceMode,
    Jitter,
    augment,
    target_counts,
)
from delvm.data.types import Example
from delvm.errors import UserError

COUNTS = {"segmentation": 10, "pose": 4, "derain": 1}


def smooth(size=32, seed=0):
    """An image without hard edges, so that a warp can be compared."""
    grid = np.linspace(0, 2 * np.pi, size)
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(grid[:, None] + p) * np.cos(grid[None] - p) for p in phase]
    return (np.stack(waves, -1) * 120 + 128).astype(np.uint8)


def labels(size=32):
    image = np.zeros((size, size, 3), dtype=np.uint8)
    image[4:20, 6:15] = (255, 0, 0)
    image[18:30, 12:28] = (0, 0, 255)
    return image


def pair(key="a", input=None, target=None):
    input = smooth() if input is None else input
    return Example(key, "derain", (input, input if target is None else target))


def test_jitter_keeps_the_geometry_and_applies_to_the_right_images():
    source = pair()
    plain = augment(source, 0, 1, flip=True)
    inputs = augment(source, 0, 1, flip=True, jitter=Jitter.input)
    both = augment(source, 0, 1, flip=True, jitter=Jitter.all)
    assert np.array_equal(inputs.target, plain.target)
    assert not np.array_equal(inputs.input, plain.input)
    assert np.array_equal(both.input, inputs.input) and np.array_equal(both.target, both.input)
    # the same geometry, other colors
    bright = plain.input.astype(float).mean(-1).ravel()
    assert np.corrcoef(bright, inputs.input.astype(float).mean(-1).ravel())[0, 1] > 0.95
    again = augment(source, 0, 1, flip=True, jitter=Jitter.input)
    assert np.array_equal(again.input, inputs.input)


def test_jitter_keeps_black_background_black():
    black = np.zeros((16, 16, 3), np.uint8)
    made = augment(pair(input=black), 0, 1, flip=True, jitter=Jitter.all)
    assert made.input.max() == 0


def test_target_counts_of_each_mode():
    assert target_counts(COUNTS, BalanceConfig()) == COUNTS
    for mode in (BalanceMode.oversample, BalanceMode.augment):
        assert target_counts(COUNTS, BalanceConfig(mode)) == dict.fromkeys(COUNTS, 10)
        larger = BalanceConfig(mode, examples_per_task=25)
        assert target_counts(COUNTS, larger) == dict.fromkeys(COUNTS, 25)


def test_task_above_the_target_keeps_all_its_examples():
    assert target_counts(COUNTS, BalanceConfig(BalanceMode.augment, 5)) == {
        "segmentation": 10,
        "pose": 5,
        "derain": 5,
    }


def test_target_counts_refuses_invalid_input():
    with pytest.raises(
        UserError, match=r"balance\.examples_per_task=0 .*balance\.examples_per_task=null"
    ):
        target_counts(COUNTS, BalanceConfig(BalanceMode.oversample, 0))
    with pytest.raises(UserError, match="'empty' has 0 pairs"):
        target_counts({"empty": 0}, BalanceConfig(BalanceMode.augment, 5))


def test_copy_zero_is_the_example_itself():
    original = pair()
    assert augment(original, 3, 0, flip=True) is original


def test_input_and_target_share_one_geometry():
    for copy in range(1, 20):
        made = augment(pair(), 0, copy, flip=True)
        assert np.array_equal(made.input, made.target)
        assert not np.array_equal(made.input, pair().input)
    # Also where one is a photograph and the other labels: the label follows the bright patch.
    photo = smooth() // 4
    photo[labels().any(-1)] = 255
    for copy in range(1, 20):
        made = augment(pair(input=photo, target=labels()), 0, copy, flip=True)
        bright, marked = made.input.min(-1) > 150, made.target.any(-1)
        assert (bright != marked).mean() < 0.03


def test_copy_depends_only_on_seed_key_and_index():
    first = augment(pair("a"), 0, 1, flip=True)
    again = augment(pair("a"), 0, 1, flip=True)
    assert np.array_equal(first.input, again.input) and first.key == again.key == "a-1"
    for other in (("b", 0, 1), ("a", 1, 1), ("a", 0, 2)):
        key, seed, copy = other
        assert not np.array_equal(augment(pair(key), seed, copy, flip=True).input, first.input)


def test_mirrored_only_where_allowed():
    # Left is dark and right is bright; small rotations and zooms cannot turn that round.
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], 32, 0).repeat(3, 2)

    def mirrored(flip):
        copies = (augment(pair(input=ramp), 0, copy, flip=flip).input for copy in range(1, 41))
        return [copy[:, :8].mean() > copy[:, -8:].mean() for copy in copies]

    assert not any(mirrored(flip=False))
    assert 8 <= sum(mirrored(flip=True)) <= 32


def test_borders_are_reflected():
    # With reflected borders a uniform image stays uniform, and there is no black corner.
    plain = np.full((32, 32, 3), 200, dtype=np.uint8)
    noisy = np.random.default_rng(0).integers(150, 160, (32, 32, 3)).astype(np.uint8)
    for copy in range(1, 20):
        assert (augment(pair(input=plain), 0, copy, flip=True).input == 200).all()
        assert augment(pair(input=noisy), 0, copy, flip=True).input.min() > 130


def test_labels_gain_no_color_and_photographs_are_interpolated():
    expected = {tuple(color) for color in labels().reshape(-1, 3)}
    assert len(np.unique(smooth().reshape(-1, 3), axis=0)) > MAX_LABEL_COLORS
    for copy in range(1, 20):
        made = augment(pair(target=labels()), 0, copy, flip=True)
        assert {tuple(color) for color in made.target.reshape(-1, 3)} <= expected
        steps = np.abs(np.diff(made.input.astype(int), axis=0)).max()
        assert steps < 50


def test_shape_type_and_task_are_kept():
    wide = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    made = augment(pair(input=wide), 0, 5, flip=True)
    assert made.input.shape == made.target.shape == (24, 40, 3)
    assert made.input.dtype == np.uint8 and made.task == "derain"
