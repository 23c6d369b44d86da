import numpy as np
import pytest

from delvm.tasks import derived


def test_to_grayscale_keeps_luma():
    image = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255), (80, 80, 80)]], np.uint8)
    gray = derived.to_grayscale(image)
    assert (gray == gray[:, :, :1]).all()
    assert gray[0, :, 0].tolist() == [76, 150, 29, 80]


@pytest.mark.parametrize("size", [32, 64])
def test_mask_rectangle_is_one_black_rectangle(size):
    image = np.full((size, size, 3), 200, np.uint8)
    for seed in range(10):
        hole = (derived.mask_rectangle(image, np.random.default_rng(seed)) == 0).all(axis=2)
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert hole.sum() == len(rows) * len(columns)
        assert size // 4 <= len(rows) <= size // 2 and size // 4 <= len(columns) <= size // 2
    assert (image == 200).all()


def test_mask_rectangle_size():
    image = np.full((40, 20, 3), 200, np.uint8)
    hole = derived.mask_rectangle(image, np.random.default_rng(0), (0.75, 0.75)) == 0
    assert hole.any((1, 2)).sum() == 30 and hole.any((0, 2)).sum() == 15
    assert (derived.mask_rectangle(image, np.random.default_rng(0), (1, 1)) == 0).all()


@pytest.mark.parametrize("size", [32, 64])
def test_edge_map_marks_shape_border(size):
    image = np.full((size, size, 3), 60, np.uint8)
    image[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 180
    edges = derived.edge_map(image)
    assert (edges == edges[:, :, :1]).all()
    middle = edges[size // 2, :, 0]
    assert middle[size // 4] > 200 and middle[3 * size // 4 - 1] > 200
    assert middle[size // 2] == 0 and middle[2] == 0
    assert not derived.edge_map(np.full((size, size, 3), 60, np.uint8)).any()
