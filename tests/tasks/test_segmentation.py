from itertools import permutations

import numpy as np
import pytest
from scipy import ndimage

from delvm.errors import UserError
from delvm.tasks import segmentation
from delvm.tasks.segmentation import PALETTE, miou, parse, render


def blocks(*sides: int, size: int = 64) -> np.ndarray:
    """Squares of these sides, one under another in a column of their own."""
    masks = np.zeros((len(sides), size, size), bool)
    for mask, side, left in zip(masks, sides, np.linspace(1, size - 22, len(sides)), strict=True):
        mask[5 : 5 + side, int(left) : int(left) + side] = True
    return masks


def test_colors_by_rank_of_size():
    masks = blocks(8, 20, 14)
    image = render(masks)
    for mask, rank in zip(masks, (2, 0, 1), strict=True):
        assert (image[mask] == PALETTE[rank]).all()
    assert (image[~masks.any(0)] == 0).all()


def test_small_mask_on_large_one_visible():
    large, small = np.zeros((2, 32, 32), bool)
    large[2:30, 2:30] = True
    small[10:16, 10:16] = True
    for masks in ([large, small], [small, large]):
        image = render(np.stack(masks))
        assert (image[small] == PALETTE[1]).all()
        assert (image[large & ~small] == PALETTE[0]).all()


def test_colors_distinct_and_limited():
    assert len(set(PALETTE)) == len(PALETTE)
    with pytest.raises(UserError, match="9 instances .* 8 palette colors"):
        render(np.ones((9, 8, 8)))


def test_parse_inverts_render():
    masks = blocks(20, 14, 8)
    labels = parse(render(masks))
    for rank, mask in enumerate(masks):
        assert ((labels == rank + 1) == mask).all()
    every = np.zeros((len(PALETTE), 8 * len(PALETTE), 64), bool)
    for index, mask in enumerate(every):
        mask[8 * index : 8 * index + 8] = True
    assert set(np.unique(parse(render(every)))) == set(range(1, len(PALETTE) + 1))


def test_parse_survives_noise_and_blur():
    masks = blocks(20, 14, 9)
    image = render(masks).astype(float)
    image = ndimage.gaussian_filter(image, (1, 1, 0))
    image += np.random.default_rng(0).normal(0, 20, image.shape)
    answer = np.clip(image, 0, 255).astype(np.uint8)
    assert miou(answer, render(masks)) > 0.8


def test_parse_drops_specks_and_other_colors():
    image = render(blocks(20))
    image[60:62, 60:63] = PALETTE[1]
    image[50:60, 5:15] = (128, 128, 128)
    assert set(np.unique(parse(image))) == {0, 1}


def slow_miou(found: np.ndarray, true: np.ndarray) -> float:
    """Best mean IoU over every way to match predicted labels with true ones."""
    instances = [label for label in np.unique(true) if label]
    candidates = [label for label in np.unique(found) if label] + [-1] * len(instances)
    best = 0.0
    for choice in permutations(candidates, len(instances)):
        total = 0.0
        for label, other in zip(instances, choice, strict=True):
            both = ((true == label) & (found == other)).sum()
            either = ((true == label) | (found == other)).sum()
            total += both / either
        best = max(best, total / len(instances))
    return best


def test_miou_equals_brute_force_matching():
    rng = np.random.default_rng(3)
    colors = np.array(((0, 0, 0), *PALETTE[:3]), np.uint8)
    for _ in range(5):
        coarse = rng.integers(0, 4, (2, 4, 4))
        found, true = coarse.repeat(8, axis=1).repeat(8, axis=2)
        assert miou(colors[found], colors[true]) == pytest.approx(slow_miou(found, true))


def test_miou_ignores_colors_but_not_positions():
    image = render(blocks(20, 14))
    swapped = image[:, :, [1, 0, 2]]
    assert miou(swapped, image) == 1
    assert miou(np.roll(image, 10, axis=0), image) < 0.4
    only_one = render(blocks(20, 14)[:1])
    assert miou(only_one, image) == pytest.approx(0.5)


def test_miou_range_and_nan_without_instances():
    empty = np.zeros((32, 32, 3), np.uint8)
    assert np.isnan(miou(render(blocks(10, size=32)), empty))
    assert miou(empty, render(blocks(10, size=32))) == 0
    assert segmentation.TASK.allows_hflip
