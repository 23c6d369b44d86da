"""Surface normals as colors: red, green and blue are x, y and z from -1 to 1."""

import numpy as np
import numpy.typing as npt

from delvm.tasks.base import ImageArray, MetricFn, Task

Vectors = npt.NDArray[np.float64]

ANGLES = {"within_11": 11.25, "within_22": 22.5, "within_30": 30.0}  # degrees


def render(normals: Vectors) -> ImageArray:
    """Unit vectors (H, W, 3) as an image, black where one is NaN."""
    levels = np.round((np.nan_to_num(normals, nan=-1.0) + 1) / 2 * 255)
    return np.clip(levels, 0, 255).astype(np.uint8)


def parse(image: ImageArray) -> Vectors:
    """Unit vectors (H, W, 3) of an image (H, W, 3) uint8, NaN where it is nearly black."""
    vectors: Vectors = image.astype(np.float64) / 127.5 - 1
    length = np.linalg.norm(vectors, axis=2, keepdims=True)
    known = (image.max(axis=2, keepdims=True) > 2) & (length > 0)
    return np.where(known, vectors / np.where(known, length, 1), np.nan)


def angles(prediction: ImageArray, truth: ImageArray) -> Vectors:
    """Angle in degrees (n,) between predicted and true normals, where the true one is known.

    A pixel that is black in the prediction is 180 degrees off.
    """
    predicted, true = parse(prediction), parse(truth)
    known = ~np.isnan(true[:, :, 0])
    cosine = np.nan_to_num((predicted[known] * true[known]).sum(axis=1), nan=-1.0)
    found: Vectors = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    return found


def mean_angle(prediction: ImageArray, truth: ImageArray) -> float:
    """Mean angular error in degrees; NaN if no normal is known."""
    found = angles(prediction, truth)
    return float(found.mean()) if len(found) else float("nan")


def _within(limit: float) -> MetricFn:
    def fraction(prediction: ImageArray, truth: ImageArray) -> float:
        found = angles(prediction, truth)
        return float((found < limit).mean()) if len(found) else float("nan")

    return fraction


TASK = Task(
    name="normals",
    description="surface normals as colors",
    metric_fns={
        **{name: _within(limit) for name, limit in ANGLES.items()},
        "mean_angle": mean_angle,
    },
    primary_metric="within_11",
    lower_is_better=("mean_angle",),
    allows_hflip=False,  # the x component would have to change its sign
    max_degrees=0.0,
)
