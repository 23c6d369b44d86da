import numpy as np
import pytest

from delvm.tasks import derived


def test_grey_keeps_brightness_and_loses_colour():
    picture = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255), (80, 80, 80)]], np.uint8)
    grey = derived.grey(picture)
    assert (grey == grey[:, :, :1]).all()
    assert grey[0, :, 0].tolist() == [76, 150, 29, 80]


@pytest.mark.parametrize("size", [32, 64])
def test_cut_hole_blacks_out_one_rectangle(size):
    picture = np.full((size, size, 3), 200, np.uint8)
    for seed in range(10):
        hole = (derived.cut_hole(picture, np.random.default_rng(seed)) == 0).all(axis=2)
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert hole.sum() == len(rows) * len(columns)
        assert size // 4 <= len(rows) <= size // 2 and size // 4 <= len(columns) <= size // 2
    assert (picture == 200).all()


def test_cut_hole_takes_the_asked_share_of_each_side():
    picture = np.full((40, 20, 3), 200, np.uint8)
    hole = derived.cut_hole(picture, np.random.default_rng(0), (0.75, 0.75)) == 0
    assert hole.any((1, 2)).sum() == 30 and hole.any((0, 2)).sum() == 15
    assert (derived.cut_hole(picture, np.random.default_rng(0), (1, 1)) == 0).all()


@pytest.mark.parametrize("size", [32, 64])
def test_trace_edges_draws_the_border_of_a_shape(size):
    picture = np.full((size, size, 3), 60, np.uint8)
    picture[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 180
    edges = derived.trace_edges(picture)
    assert (edges == edges[:, :, :1]).all()
    middle = edges[size // 2, :, 0]
    assert middle[size // 4] > 200 and middle[3 * size // 4 - 1] > 200
    assert middle[size // 2] == 0 and middle[2] == 0
    assert not derived.trace_edges(np.full((size, size, 3), 60, np.uint8)).any()
