"""Depth as gray that is linear in its inverse, as `source=annotated` renders it.

The range of depths is the same in all images, so a gray level means one depth. Only its ratio
matters to the scores: 20, such as 0.5 to 10 m indoors.
"""

import numpy as np
import numpy.typing as npt

from delvm.tasks.base import ImageArray, Task

Depth = npt.NDArray[np.float64]  # (H, W), NaN where unknown

NEAR, FAR = 0.5, 10.0  # in m of NYU Depth v2, whose depths end at 10 m
DELTA = 1.25


def render(depth: Depth) -> ImageArray:
    """Depth (H, W) as an image (H, W, 3): 255 is `NEAR`, 1 is `FAR`, and 0 where it is unknown."""
    known = np.isfinite(depth) & (depth > 0)
    inverse = 1 / np.where(known, depth, 1.0)
    level = np.clip((inverse - 1 / FAR) / (1 / NEAR - 1 / FAR), 0, 1)
    gray = np.where(known, np.round(1 + 254 * level), 0).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def parse(image: ImageArray) -> Depth:
    """Depth (H, W) of an image (H, W, 3) uint8, NaN where it is black."""
    gray = image.mean(axis=2)
    level = np.clip((gray - 1) / 254, 0, 1)
    depth: Depth = 1 / (1 / FAR + level * (1 / NEAR - 1 / FAR))
    return np.where(gray < 0.5, np.nan, depth)


def _known(prediction: ImageArray, truth: ImageArray) -> tuple[Depth, Depth]:
    """Predicted and true depth where the true one is known (n,); black predictions are far."""
    true = parse(truth)
    known = ~np.isnan(true)
    return np.nan_to_num(parse(prediction)[known], nan=FAR), true[known]


def abs_rel(prediction: ImageArray, truth: ImageArray) -> float:
    """Mean of |predicted - true| / true; NaN if no depth is known. No scale is fitted."""
    predicted, true = _known(prediction, truth)
    return float((np.abs(predicted - true) / true).mean()) if len(true) else float("nan")


def delta1(prediction: ImageArray, truth: ImageArray) -> float:
    """Fraction of the pixels whose depth is within a factor of 1.25; NaN if none is known."""
    predicted, true = _known(prediction, truth)
    ratio = np.maximum(predicted / true, true / predicted)
    return float((ratio < DELTA).mean()) if len(true) else float("nan")


TASK = Task(
    name="depth",
    description="depth as gray, near is white and unknown is black",
    metric_fns={"delta1": delta1, "abs_rel": abs_rel},
    primary_metric="delta1",
    lower_is_better=("abs_rel",),
)
