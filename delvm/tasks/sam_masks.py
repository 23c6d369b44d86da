"""All the masks of a picture, as SA-1B has them: dozens, each in a colour of its own, on black.

Large masks are painted first and colours go by chance, as in the reference (DeLVM, arXiv
2402.04841), but never two masks in one colour. `segmentation` has fewer colours further apart, and
a meaning of their order; its pictures are of another kind, so this is a task of its own.
"""

from collections.abc import Iterable
from itertools import product

import numpy as np

from delvm.tasks import segmentation
from delvm.tasks.base import Task

# Four levels a channel, without black. Together with black they are as many as augmentation takes
# for labels, and not for a photograph: a warped target keeps its colours.
LEVELS = (0, 85, 170, 255)
PALETTE = tuple((r, g, b) for r, g, b in product(LEVELS, repeat=3) if r or g or b)
# Just under half the distance of two neighbours, so that no pixel is near two.
TOLERANCE = 42.0
# Of a picture's pixels: 32 of 256 x 256. Real masks of SA-1B are small.
SPECK = 0.0005


def colours(count: int, rng: np.random.Generator) -> np.ndarray:
    """Distinct colours in an order of chance.

    Args:
        count: How many, at most as the palette has.
        rng: Where the order comes from.

    Returns:
        (count + 1, 3) uint8, black for the background first.
    """
    assert count <= len(PALETTE)
    order = rng.permutation(len(PALETTE))[:count]
    return np.concatenate((np.zeros((1, 3)), np.asarray(PALETTE)[order])).astype(np.uint8)


def paint(
    runs: Iterable[tuple[np.ndarray, np.ndarray]], height: int, width: int, most: int
) -> np.ndarray:
    """Label the pixels of a picture with its largest masks, a smaller one over a larger one.

    Painting runs touches the pixels of masks alone, which for a hundred masks of a large picture
    is many times faster than masks as arrays.

    Args:
        runs: Of each mask, where its runs start and stop in the picture read column by column,
            (n,) int64 each.
        height, width: Of the picture.
        most: Masks to take, at most 255.

    Returns:
        Labels (height, width) uint8: 0 the background, 1 + rank of size a mask.
    """
    assert most < 256  # a label must not wrap in uint8
    by_size = sorted(runs, key=lambda run: -int((run[1] - run[0]).sum()))[:most]
    places = np.zeros(width * height, np.uint8)
    for label, (starts, stops) in enumerate(by_size, 1):
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            places[start:stop] = label
    return np.ascontiguousarray(places.reshape(width, height).T)


def parse(picture: np.ndarray) -> np.ndarray:
    """Read the masks of a picture (H, W, 3) uint8 back.

    Returns:
        Labels (H, W) int64: 0 is background, 1 + place in the palette a mask.
    """
    return segmentation.parse(picture, PALETTE, TOLERANCE, SPECK)


def miou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean IoU of the masks in a true picture, as `segmentation.matched_iou`.

    Colours are not compared: which mask has which is chance.

    Args:
        prediction: Picture (H, W, 3) uint8.
        truth: Picture of the same size.

    Returns:
        A value in [0, 1]; NaN if the truth holds no mask.
    """
    return segmentation.matched_iou(parse(prediction), parse(truth), len(PALETTE))


TASK = Task(
    name="masks",
    description="all masks of a picture on black, each in a colour of its own",
    measures={"miou": miou},
    primary="miou",
)
