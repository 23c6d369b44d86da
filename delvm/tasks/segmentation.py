"""Instance masks in palette colors on black, parsed by the nearest color.

The largest instance has the first color, the next the second, and so on. Large masks are painted
first, so that a small one on top of a large one stays visible (DeLVM paints SA-1B masks large
first too, in random colors).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from delvm.errors import UserError
from delvm.tasks import instances
from delvm.tasks.base import ImageArray, Task
from delvm.tasks.instances import LabelMap

# Color of an instance by its rank of size. Few and far apart: blur must not confuse them.
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
# A pixel further than this from every palette color (of 441, black to white) is background.
TOLERANCE = 110.0
# Islands smaller than this fraction of the image are seams between colors, not instances.
MIN_AREA = 0.005


def render(masks: npt.NDArray[np.float32] | npt.NDArray[np.bool_]) -> ImageArray:
    """Paint instance masks.

    Args:
        masks: (n, H, W) coverage in [0, 1], bool or float, in any order; fractions are
            anti-aliased edges.

    Returns:
        Image (H, W, 3) uint8.

    Raises:
        UserError: there are more instances than colors (a color is used once).
    """
    if len(masks) > len(PALETTE):
        raise UserError(
            f"{len(masks)} instances in an image but {len(PALETTE)} palette colors: "
            f"keep the {len(PALETTE)} largest"
        )
    coverage = np.asarray(masks, dtype=np.float32)
    image = np.zeros((*coverage.shape[1:], 3), np.float32)
    by_size = np.argsort(-coverage.sum(axis=(1, 2)), kind="stable")
    for rank, index in enumerate(by_size):
        alpha = coverage[index, :, :, None]
        image += alpha * (np.asarray(PALETTE[rank], np.float32) - image)
    return (image + 0.5).astype(np.uint8)


def parse(
    image: ImageArray,
    palette: Sequence[tuple[int, int, int]] = PALETTE,
    tolerance: float = TOLERANCE,
    min_area: float = MIN_AREA,
) -> LabelMap:
    """Label each pixel by the palette color near it, without small islands.

    A pixel that is not near any palette color is background, so a photograph has no masks.

    Args:
        image: (H, W, 3) uint8.
        palette, tolerance, min_area: As PALETTE, TOLERANCE and MIN_AREA, for other kinds of masks.

    Returns:
        Labels (H, W) int64: 0 is background, 1 + index in the palette an instance.
    """
    colors = np.asarray(((0, 0, 0), *palette), np.float32)
    pixels = image.astype(np.float32)
    # |p - c|^2 = |p|^2 - 2 p.c + |c|^2, one product for all pixels
    distance = (pixels**2).sum(axis=2)[:, :, None] - 2 * pixels @ colors.T
    distance += (colors**2).sum(axis=1)
    labels: LabelMap = distance.argmin(axis=2)
    labels[distance.min(axis=2) > tolerance**2] = 0
    smallest = min_area * labels.size
    for label in np.unique(labels[labels > 0]):
        islands, _ = ndimage.label(labels == label)
        areas = np.bincount(islands.ravel())
        areas[0] = labels.size
        labels[(areas < smallest)[islands]] = 0
    return labels


def best_iou(prediction: ImageArray, truth: ImageArray) -> float:
    """Mean over the true instances of the best IoU with any predicted one; NaN without any.

    The palette's colors are far apart, so `TOLERANCE` covers what a tokenizer does to them.
    """
    return instances.mean_best_iou([parse(prediction)], parse(truth))


def recall(prediction: ImageArray, truth: ImageArray) -> float:
    """Fraction of the true instances that overlap a predicted one by half; NaN without any."""
    return instances.recall([parse(prediction)], parse(truth))


def hungarian_miou(pred: LabelMap, target: LabelMap, num_labels: int) -> float:
    """Mean intersection over union of the true instances, without the background.

    Predicted instances are matched one to one with the true ones so that the sum of IoUs is
    largest; a true instance without a match counts as 0. The labels themselves are not compared.

    Args:
        pred, target: Labels (H, W) in [0, num_labels], 0 the background.
        num_labels: The highest label.

    Returns:
        A value in [0, 1]; NaN if there is no true instance.
    """
    size = num_labels + 1
    joint = np.bincount((target * size + pred).ravel(), minlength=size**2).reshape(size, size)
    union = joint.sum(axis=1, keepdims=True) + joint.sum(axis=0, keepdims=True) - joint
    iou = (joint / np.maximum(union, 1))[1:, 1:]
    num_true = int((joint.sum(axis=1)[1:] > 0).sum())
    if num_true == 0:
        return float("nan")
    rows, columns = linear_sum_assignment(iou, maximize=True)
    return float(iou[rows, columns].sum() / num_true)


def miou(prediction: ImageArray, truth: ImageArray) -> float:
    """Mean IoU of the instances in a true image, as `hungarian_miou`.

    Args:
        prediction: Image (H, W, 3) uint8.
        truth: Image of the same size.

    Returns:
        A value in [0, 1]; NaN if the ground truth has no instance.
    """
    return hungarian_miou(parse(prediction), parse(truth), len(PALETTE))


TASK = Task(
    name="segmentation",
    description="instances as masks on black, colored by rank of size",
    metric_fns={"miou": miou, "best_iou": best_iou, "recall": recall},
    primary_metric="miou",
    label_palette=PALETTE,
)
