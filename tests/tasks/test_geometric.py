"""Mirrored and turned images, and that augmented copies of pairs are still of the task."""

import numpy as np
import pytest

from delvm import tasks
from delvm.data.augment import BalanceConfig, BalanceMode, augment
from delvm.data.types import Example
from delvm.tasks import geometric

MOVES = {"mirror": geometric.mirror, "rotate": geometric.quarter_turn}


def test_a_corner_moves():
    image = np.zeros((4, 4, 3), np.uint8)
    image[0, 0] = 255
    assert geometric.mirror(image)[0, 3].all() and geometric.quarter_turn(image)[0, 3].all()
    image[0, 1] = 100  # along the upper edge, which becomes the right one
    assert geometric.mirror(image)[0, 2, 0] == geometric.quarter_turn(image)[1, 3, 0] == 100


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("crop_area", [None, [0.2, 0.5]])
def test_augmented_copies_are_of_the_task(name, crop_area):
    grid = np.linspace(0, 3, 32)
    waves = np.stack([np.sin(grid[:, None] * k + grid[None]) for k in (1, 2, 3)], axis=2)
    image = (waves * 100 + 128).astype(np.uint8)
    pair = Example("a", name, (image, MOVES[name](image)))
    balance = BalanceConfig(BalanceMode.augment, crop_area=crop_area, vflip=True, max_zoom=2.0)
    for number in range(1, 9):
        copy = augment(pair, 0, number, geometry=balance.geometry(tasks.get(name)))
        error = np.abs(copy.target.astype(int) - MOVES[name](copy.input))
        assert error.max() <= 2
