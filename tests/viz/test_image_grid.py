"""Grids of images: no smoothing, titles, rows of any length."""

import numpy as np
from PIL import Image

from delvm.viz.image_grid import image_grid


def noise(size=(6, 4), seed=0):
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_image_grid_enlarges_without_smoothing():
    tiny = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]] * 2, dtype=np.uint8))
    grid = np.asarray(image_grid([[tiny]], cell=64))
    red, blue = ((grid == color).all(-1) for color in ([255, 0, 0], [0, 0, 255]))
    assert red.sum() == blue.sum() == 32 * 64


def test_image_grid_titles_rows_and_odd_sizes():
    rows = [[noise((300, 100)), noise((5, 9))], [noise((64, 64))]]
    plain = image_grid(rows, cell=64)
    titled = image_grid(rows, ["in", "a title much wider than its cell"], 64, ["one", "two"])
    assert plain.size == (4 + 2 * 68, 4 + 2 * 68)
    assert titled.width > plain.width and titled.height > plain.height
    assert np.asarray(titled)[: titled.height - plain.height].min() < 100  # ink above the rows
    assert image_grid([]).size[0] > 0
