"""F-measure of edges, which may be a little displaced.

As in BSDS (Martin et al., PAMI 2004), an edge pixel is found if there is one within 0.0075 of the
image's diagonal, and the threshold of the prediction is the best one of each image (OIS) or of the
set (ODS). Unlike there, edges are not thinned and may share a partner: edges of small images are as
thick as the tolerance. The values are comparable among models here, not with those of BSDS.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from delvm.tasks.base import Counts, ImageArray

TOLERANCE = 0.0075  # of the diagonal, but at least one pixel
THRESHOLDS = np.linspace(0.1, 0.9, 9)  # of the prediction; that of the truth is 0.5


def counts(prediction: ImageArray, truth: ImageArray) -> Counts:
    """Per threshold, the edge pixels: predicted ones that are right, all, true ones found, all."""
    levels, true = prediction.mean(axis=2) / 255, truth.mean(axis=2) / 255 >= 0.5
    reach = max(1.0, TOLERANCE * math.hypot(*true.shape))
    near_true = _within(true, reach)
    rows = []
    for threshold in THRESHOLDS:
        found = levels >= threshold
        near_found = _within(found, reach)
        rows.append((
            (found & near_true).sum(), found.sum(), (true & near_found).sum(), true.sum(),
        ))  # fmt: skip
    return np.array(rows, np.float64).ravel()


def _within(edges: npt.NDArray[np.bool_], reach: float) -> npt.NDArray[np.bool_]:
    """The pixels within a distance of an edge."""
    if not edges.any():
        return np.zeros_like(edges)
    near: npt.NDArray[np.bool_] = ndimage.distance_transform_edt(~edges) <= reach
    return near


def best_f(totals: Counts) -> float:
    """The best F-measure over the thresholds, of `counts` or a sum; NaN without true edges."""
    right, predicted, found, true = totals.reshape(-1, 4).T
    if not true.any():
        return float("nan")
    precision = right / np.maximum(predicted, 1)
    recall = found / np.maximum(true, 1)
    return float((2 * precision * recall / np.maximum(precision + recall, 1e-12)).max())


def ois(prediction: ImageArray, truth: ImageArray) -> float:
    """F-measure at the best threshold of the image."""
    return best_f(counts(prediction, truth))


def ods(rows: Counts, groups: npt.NDArray[np.str_]) -> float:
    """F-measure of a set, rows (n, k) of `counts`, at the best threshold of the set."""
    return best_f(rows.sum(axis=0))
