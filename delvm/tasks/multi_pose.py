"""Everybody in an image as stick figures, in the colors of `pose`, parsed and scored together.

Line widths are proportional to the size of a figure, so that people far away do not merge, but at
least a quarter of those of `pose`, which is the minimum that small images can show.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from delvm.tasks import pose
from delvm.tasks.base import ImageArray, Task

MIN_SCALE = 0.25
MATCH_THRESHOLD = 0.05  # of the image's side; people may be close to each other
_MIN_RESPONSE = 0.5  # of the response to a complete disc; a limb has 0.36


def render(
    skeletons: npt.NDArray[np.float64], scales: npt.NDArray[np.float64], size: int
) -> ImageArray:
    """Render stick figures, the later ones on top.

    Args:
        skeletons: (n, 18, 2) x and y, in [0, 1] inside the image, NaN where not visible.
        scales: (n,) size of each person as a fraction of the image's side.
        size: Side of the image.

    Returns:
        Image (size, size, 3) uint8, on black.
    """
    side = size * pose.SUPERSAMPLE
    canvas = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(canvas)
    for points, scale in zip(skeletons, scales, strict=True):
        pose.draw_figure(draw, points * side, float(np.clip(scale, MIN_SCALE, 1)) * side)
    return np.asarray(canvas.reduce(pose.SUPERSAMPLE))


def parse(image: ImageArray) -> list[pose.Points]:
    """Find the discs of every keypoint, without grouping them into people.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        18 arrays (m, 2): x and y of each disc in [0, 1].
    """
    height, width = image.shape[:2]
    response = pose.color_response(image)
    sigma = 0.5 * MIN_SCALE * pose.DISC_RADIUS * min(height, width)
    smoothed = ndimage.gaussian_filter(response, (0, sigma, sigma), mode="constant")
    discs = []
    for field in smoothed:
        islands, count = ndimage.label(field > _MIN_RESPONSE)
        centers = ndimage.center_of_mass(field, islands, range(1, count + 1))
        points = np.asarray(centers, float).reshape(count, 2)[:, ::-1] + 0.5  # pixel centers
        discs.append(points / (width, height))
    return discs


def f1(prediction: ImageArray, truth: ImageArray) -> float:
    """F1 score of the keypoints found.

    Predicted discs are matched one to one with the true ones of the same keypoint, within 0.05 of
    the image's side; the true ones are those parsed from the true image.

    Args:
        prediction: Image (H, W, 3) uint8.
        truth: Image of the same size.

    Returns:
        2 x matched / (true + predicted), in [0, 1]; NaN if the ground truth has no keypoint.
    """
    true, predicted = parse(truth), parse(prediction)
    if not any(map(len, true)):
        return float("nan")
    matched = 0
    for t, p in zip(true, predicted, strict=True):
        close = np.linalg.norm(t[:, None] - p[None], axis=2) <= MATCH_THRESHOLD
        matched += int(close[linear_sum_assignment(close, maximize=True)].sum())
    return 2 * matched / (sum(map(len, true)) + sum(map(len, predicted)))


TASK = Task(
    name="poses",
    description="everybody in an image as OpenPose stick figures on black",
    metric_fns={"f1": f1},
    primary_metric="f1",
    allows_hflip=False,  # as for `pose`
)
