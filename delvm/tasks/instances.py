"""Instances in colors of their own on black, found whatever the colors are, and matched by IoU.

A tokenizer shifts colors: an instance painted in a palette color comes back darker, or in another
hue. So predicted instances are not only those in palette colors, but also the frequent colors of
the prediction itself.
"""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from delvm.tasks.base import ImageArray

LabelMap: TypeAlias = npt.NDArray[np.int64]  # (H, W), 0 is background

RECALL_IOU = 0.5
_BIN = 16  # width of a bin of the color histogram, of 256
_MIN_DISTANCE = 40.0  # of two colors that count as different, and of a color from black
_MAX_COLORS = 64
_MIN_FRACTION = 0.002  # of the image that has a color; below it is a seam between two others


def parse_any_colors(image: ImageArray, min_area: float) -> LabelMap:
    """Label each pixel by the nearest of the frequent colors of the image.

    Args:
        image: (H, W, 3) uint8.
        min_area: Fraction of the image below which an island is a seam, and becomes background.

    Returns:
        Labels (H, W) int64: 0 is background, and near black.
    """
    colors = _frequent_colors(image)
    pixels = image.astype(np.float32)
    distance = (pixels**2).sum(axis=2)[:, :, None] - 2 * pixels @ colors.T
    labels: LabelMap = (distance + (colors**2).sum(axis=1)).argmin(axis=2)
    for label in range(1, len(colors)):
        islands, _ = ndimage.label(labels == label)
        areas = np.bincount(islands.ravel())
        areas[0] = labels.size
        labels[(areas < min_area * labels.size)[islands]] = 0
    return labels


def _frequent_colors(image: ImageArray) -> npt.NDArray[np.float32]:
    """Black and the most frequent colors that are far from each other, (n, 3)."""
    bins, counts = np.unique((image // _BIN).reshape(-1, 3), axis=0, return_counts=True)
    colors = [np.zeros(3, np.float32)]
    for index in np.argsort(-counts, kind="stable"):
        if counts[index] < _MIN_FRACTION * image.shape[0] * image.shape[1]:
            break
        color = (bins[index] + 0.5).astype(np.float32) * _BIN
        if min(float(np.linalg.norm(color - known)) for known in colors) > _MIN_DISTANCE:
            colors.append(color)
        if len(colors) > _MAX_COLORS:
            break
    return np.stack(colors)


def best_ious(predictions: Sequence[LabelMap], truth: LabelMap) -> npt.NDArray[np.float64]:
    """The best IoU of each true instance with any predicted one, (n,).

    Args:
        predictions: Labels (H, W) of the same answer, read in several ways; 0 is background.
        truth: Labels (H, W).
    """
    true_labels, true_index = np.unique(truth, return_inverse=True)
    best = np.zeros(len(true_labels))
    for prediction in predictions:
        labels, index = np.unique(prediction, return_inverse=True)
        joint = np.zeros((len(true_labels), len(labels)))
        np.add.at(joint, (true_index.ravel(), index.ravel()), 1)
        union = joint.sum(axis=1, keepdims=True) + joint.sum(axis=0, keepdims=True) - joint
        iou = (joint / union)[:, labels > 0]
        best = np.maximum(best, iou.max(axis=1, initial=0.0))
    return best[true_labels > 0]


def mean_best_iou(predictions: Sequence[LabelMap], truth: LabelMap) -> float:
    """Mean of `best_ious`, NaN if there is no true instance.

    Unlike a one-to-one matching, it does not count what was predicted in addition.
    """
    best = best_ious(predictions, truth)
    return float(best.mean()) if len(best) else float("nan")


def recall(predictions: Sequence[LabelMap], truth: LabelMap) -> float:
    """Fraction of the true instances whose best IoU is 0.5 or more, NaN if there are none."""
    best = best_ious(predictions, truth)
    return float((best >= RECALL_IOU).mean()) if len(best) else float("nan")
