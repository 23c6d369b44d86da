"""Instance masks in palette colours on black, read back by the nearest colour.

The largest instance takes the first colour, the next the second, and so on; large masks are
painted first, so that a small one on top of a large one stays visible (the reference paints
SA-1B masks large first too, in random colours).
"""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from delvm.errors import UserError
from delvm.tasks.base import Task

# Colour of an instance by its rank of size. Few and far apart: blur must not turn one into another.
PALETTE = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 0),
    (255, 0, 255),
    (0, 255, 255),
    (255, 255, 255),
    (255, 128, 0),
)
# A pixel further than this from every palette colour (of 441, black to white) belongs to none.
TOLERANCE = 110.0
# Islands smaller than this share of the picture are seams between colours, not instances.
SPECK = 0.005


def render(masks: np.ndarray) -> np.ndarray:
    """Paint instance masks.

    Args:
        masks: (n, H, W) coverage in [0, 1], bool or float, in any order; fractions are
            anti-aliased edges.

    Returns:
        Picture (H, W, 3) uint8.

    Raises:
        UserError: there are more instances than colours (colours never repeat).
    """
    if len(masks) > len(PALETTE):
        raise UserError(
            f"{len(masks)} instances in a picture but {len(PALETTE)} palette colours: "
            f"keep the {len(PALETTE)} largest"
        )
    coverage = np.asarray(masks, dtype=np.float32)
    picture = np.zeros((*coverage.shape[1:], 3), np.float32)
    by_size = np.argsort(-coverage.sum(axis=(1, 2)), kind="stable")
    for rank, index in enumerate(by_size):
        alpha = coverage[index, :, :, None]
        picture += alpha * (np.asarray(PALETTE[rank], np.float32) - picture)
    return (picture + 0.5).astype(np.uint8)


def parse(
    picture: np.ndarray,
    palette: Sequence[tuple[int, int, int]] = PALETTE,
    tolerance: float = TOLERANCE,
    speck: float = SPECK,
) -> np.ndarray:
    """Read the masks back: the palette colour near each pixel, specks dropped.

    A pixel near no palette colour is background, so a photograph is not read as masks.

    Args:
        picture: (H, W, 3) uint8.
        palette, tolerance, speck: As PALETTE, TOLERANCE and SPECK, for other kinds of masks.

    Returns:
        Labels (H, W) int64: 0 is background, 1 + rank an instance (its place in the palette).
    """
    colours = np.asarray(((0, 0, 0), *palette), np.float32)
    pixels = picture.astype(np.float32)
    # |p - c|^2 = |p|^2 - 2 p.c + |c|^2, one product for all pixels
    distance = (pixels**2).sum(axis=2)[:, :, None] - 2 * pixels @ colours.T
    distance += (colours**2).sum(axis=1)
    labels = distance.argmin(axis=2)
    labels[distance.min(axis=2) > tolerance**2] = 0
    smallest = speck * labels.size
    for label in np.unique(labels[labels > 0]):
        islands, _ = ndimage.label(labels == label)
        areas = np.bincount(islands.ravel())
        areas[0] = labels.size
        labels[(areas < smallest)[islands]] = 0
    return labels


def matched_iou(found: np.ndarray, true: np.ndarray, colours: int) -> float:
    """Mean intersection over union of the true instances, background left out.

    Found instances are matched one to one with the true ones so that the sum of IoUs is largest;
    a true instance left without a match counts 0. The labels themselves are not compared.

    Args:
        found, true: Labels (H, W) in [0, colours], 0 the background.
        colours: The highest label.

    Returns:
        A value in [0, 1]; NaN if there is no true instance.
    """
    size = colours + 1
    joint = np.bincount((true * size + found).ravel(), minlength=size**2).reshape(size, size)
    union = joint.sum(axis=1, keepdims=True) + joint.sum(axis=0, keepdims=True) - joint
    iou = (joint / np.maximum(union, 1))[1:, 1:]
    instances = int((joint.sum(axis=1)[1:] > 0).sum())
    if instances == 0:
        return float("nan")
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return float(iou[rows, columns].sum() / instances)


def miou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean IoU of the instances in a true picture, as `matched_iou`.

    Args:
        prediction: Picture (H, W, 3) uint8.
        truth: Picture of the same size.

    Returns:
        A value in [0, 1]; NaN if the truth holds no instance.
    """
    return matched_iou(parse(prediction), parse(truth), len(PALETTE))


TASK = Task(
    name="segmentation",
    description="instances as masks on black, coloured by rank of size",
    measures={"miou": miou},
    primary="miou",
)
