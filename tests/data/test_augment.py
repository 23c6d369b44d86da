"""Balancing counts, and copies whose input and target share one geometry."""

import hashlib
import re

import numpy as np
import pytest

from delvm import tasks
from delvm.data.augment import (
    MAX_LABEL_COLORS,
    BalanceConfig,
    BalanceMode,
    Fill,
    Geometry,
    Jitter,
    _random_crop,
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
    plain = augment(source, 0, 1, geometry=Geometry())
    inputs = augment(source, 0, 1, geometry=Geometry(), jitter=Jitter.input)
    both = augment(source, 0, 1, geometry=Geometry(), jitter=Jitter.all)
    assert np.array_equal(inputs.target, plain.target)
    assert not np.array_equal(inputs.input, plain.input)
    assert np.array_equal(both.input, inputs.input) and np.array_equal(both.target, both.input)
    # the same geometry, other colors
    bright = plain.input.astype(float).mean(-1).ravel()
    assert np.corrcoef(bright, inputs.input.astype(float).mean(-1).ravel())[0, 1] > 0.95
    again = augment(source, 0, 1, geometry=Geometry(), jitter=Jitter.input)
    assert np.array_equal(again.input, inputs.input)


def test_jitter_keeps_black_background_black():
    black = np.zeros((16, 16, 3), np.uint8)
    made = augment(pair(input=black), 0, 1, geometry=Geometry(), jitter=Jitter.all)
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
    assert augment(original, 3, 0, geometry=Geometry()) is original


def test_input_and_target_share_one_geometry():
    for copy in range(1, 20):
        made = augment(pair(), 0, copy, geometry=Geometry())
        assert np.array_equal(made.input, made.target)
        assert not np.array_equal(made.input, pair().input)
    # Also where one is a photograph and the other labels: the label follows the bright patch.
    photo = smooth() // 4
    photo[labels().any(-1)] = 255
    for copy in range(1, 20):
        made = augment(pair(input=photo, target=labels()), 0, copy, geometry=Geometry())
        bright, marked = made.input.min(-1) > 150, made.target.any(-1)
        assert (bright != marked).mean() < 0.03


def test_copy_depends_only_on_seed_key_and_index():
    first = augment(pair("a"), 0, 1, geometry=Geometry())
    again = augment(pair("a"), 0, 1, geometry=Geometry())
    assert np.array_equal(first.input, again.input) and first.key == again.key == "a-1"
    for other in (("b", 0, 1), ("a", 1, 1), ("a", 0, 2)):
        key, seed, copy = other
        assert not np.array_equal(
            augment(pair(key), seed, copy, geometry=Geometry()).input, first.input
        )


def test_mirrored_only_where_allowed():
    # Left is dark and right is bright; small rotations and zooms cannot turn that round.
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[None, :, None], 32, 0).repeat(3, 2)

    def mirrored(flip):
        copies = (
            augment(pair(input=ramp), 0, copy, geometry=Geometry(hflip=flip)).input
            for copy in range(1, 41)
        )
        return [copy[:, :8].mean() > copy[:, -8:].mean() for copy in copies]

    assert not any(mirrored(flip=False))
    assert 8 <= sum(mirrored(flip=True)) <= 32


def test_borders_are_reflected():
    # With reflected borders a uniform image stays uniform, and there is no black corner.
    plain = np.full((32, 32, 3), 200, dtype=np.uint8)
    noisy = np.random.default_rng(0).integers(150, 160, (32, 32, 3)).astype(np.uint8)
    for copy in range(1, 20):
        assert (augment(pair(input=plain), 0, copy, geometry=Geometry()).input == 200).all()
        assert augment(pair(input=noisy), 0, copy, geometry=Geometry()).input.min() > 130


def test_labels_gain_no_color_and_photographs_are_interpolated():
    expected = {tuple(color) for color in labels().reshape(-1, 3)}
    assert len(np.unique(smooth().reshape(-1, 3), axis=0)) > MAX_LABEL_COLORS
    for copy in range(1, 20):
        made = augment(pair(target=labels()), 0, copy, geometry=Geometry())
        assert {tuple(color) for color in made.target.reshape(-1, 3)} <= expected
        steps = np.abs(np.diff(made.input.astype(int), axis=0)).max()
        assert steps < 50


def test_shape_type_and_task_are_kept():
    wide = np.random.default_rng(0).integers(0, 256, (24, 40, 3)).astype(np.uint8)
    made = augment(pair(input=wide), 0, 5, geometry=Geometry())
    assert made.input.shape == made.target.shape == (24, 40, 3)
    assert made.input.dtype == np.uint8 and made.task == "derain"


def test_default_copies_are_those_of_earlier_versions():
    """Corpora that were encoded before the ranges were settings are continued."""
    digest = hashlib.sha256()
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (33, 33, 3), dtype=np.uint8)
    for number in range(1, 40):
        example = Example(f"k{number}", "derain", (photo, photo // 200 * 200))
        geometry, jitter = Geometry(hflip=bool(number % 2)), list(Jitter)[number % 3]
        for image in augment(example, 3, number, geometry=geometry, jitter=jitter).images:
            digest.update(image.tobytes())
    assert digest.hexdigest()[:16] == "ba83e0a48de51014"


DELVM = Geometry(max_degrees=180.0, crop_area=(0.08, 1.0), vflip=True, fill=Fill.black)


def horizon():
    """White above, black below."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16] = 255
    return image


@pytest.mark.parametrize(("degrees", "least", "most"), [(10.0, 0, 0), (180.0, 10, 30)])
def test_rotations_reach_the_largest_angle(degrees, least, most):
    geometry = Geometry(max_degrees=degrees, max_zoom=1.0, hflip=False)
    copies = [augment(pair(input=horizon()), 0, n, geometry=geometry).input for n in range(1, 41)]
    upside_down = sum(copy[:8, 12:20].mean() < 20 for copy in copies)
    assert least <= upside_down <= most


def test_vertical_flips():
    ramp = np.repeat(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], 32, 1).repeat(3, 2)

    def upside_down(vflip):
        geometry = Geometry(vflip=vflip)
        made = (augment(pair(input=ramp), 0, n, geometry=geometry).input for n in range(1, 41))
        return sum(copy[:8].mean() < copy[-8:].mean() for copy in made)

    assert upside_down(vflip=False) == 40 and 8 <= upside_down(vflip=True) <= 32


def test_crops_have_the_areas_and_shapes_of_random_resized_crop():
    rng = np.random.default_rng(0)
    sides = np.stack([_random_crop(rng, 64, 64, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])
    area, shape = sides.prod(axis=1), sides[:, 0] / sides[:, 1]
    assert (sides <= 1).all() and 0.08 <= area.min() < 0.1 and area.max() > 0.95
    assert 0.74 < shape.min() < 0.76 and 1.32 < shape.max() < 1.34
    assert abs(np.log(shape).mean()) < 0.02


def test_crops_stay_inside_and_pairs_together():
    plain = np.full((32, 32, 3), 200, np.uint8)
    inside = Geometry(max_degrees=0.0, crop_area=(0.08, 1.0), vflip=True, fill=Fill.black)
    for copy in range(1, 30):
        assert (augment(pair(input=plain), 0, copy, geometry=inside).input == 200).all()
        made = augment(pair(), 0, copy, geometry=DELVM)
        assert np.array_equal(made.input, made.target)
    rotated = [augment(pair(input=plain), 0, n, geometry=DELVM).input.min() for n in range(1, 30)]
    assert 0 in rotated  # the corners of some are black, as in torchvision


@pytest.mark.parametrize(
    ("task", "hflip", "vflip", "degrees"),
    [
        ("segmentation", True, True, 180),
        ("derain", True, True, 10),
        ("deblur", False, False, 10),
        ("pose", False, False, 180),
        ("video", False, False, 10),
        ("a_task_of_mine", False, False, 10),
    ],
)
def test_tasks_limit_flips_and_rotations(task, hflip, vflip, degrees):
    allowed = DELVM.allowed_for(tasks.get_or_default(task))
    assert (allowed.hflip, allowed.vflip, allowed.max_degrees) == (hflip, vflip, degrees)
    # The default ranges are within the limits of every task, but for flips.
    assert Geometry().allowed_for(tasks.get_or_default(task)) == Geometry(hflip=hflip)


def test_manifests_record_ranges_that_are_not_the_default():
    plain = BalanceConfig(BalanceMode.augment)
    assert plain.settings() == {"mode": "augment", "examples_per_task": None, "jitter": "none"}
    changed = BalanceConfig(BalanceMode.augment, max_degrees=180, crop_area=[0.08, 1])
    assert changed.settings() == plain.settings() | {"max_degrees": 180, "crop_area": [0.08, 1]}
    pose, free = tasks.get("pose"), BalanceConfig(task_limits=False)
    assert not plain.geometry(pose).hflip and free.geometry(pose).hflip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_degrees": 181}, "max_degrees=181 is not in"),
        ({"max_zoom": 0.5}, "max_zoom=0.5 is below 1"),
        ({"crop_area": [0.5, 0.1]}, "crop_area=.* is not a range"),
        ({"crop_area": [0.5, 1.5]}, "crop_area=.* is not a range"),
        ({"crop_ratio": [0.0, 1.0]}, "crop_ratio=.* is not a range"),
        ({"examples_per_task": 0}, "examples_per_task=0 is below 1"),
    ],
)
def test_ranges_are_checked(change, message):
    [error] = BalanceConfig(**change).validate()
    assert re.search(message, error)
    assert not BalanceConfig(crop_area=[0.08, 1.0]).validate()
