"""Everybody in a picture as stick figures, in the colours of `pose` and read back together.

A figure is drawn as thick as it is large, so that people far away do not run together, but never
below a quarter of the thickness of `pose`, which is what small pictures can show.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from delvm.tasks import pose
from delvm.tasks.base import Task

SMALLEST = 0.25
FOUND_WITHIN = 0.05  # of the picture's side; people may stand close to each other
_ENOUGH = 0.5  # of the evidence of a whole disc; a limb has 0.36


def render(figures: np.ndarray, scales: np.ndarray, size: int) -> np.ndarray:
    """Draw stick figures, the later ones on top.

    Args:
        figures: (n, 18, 2) x and y, in [0, 1] inside the picture, NaN where unseen.
        scales: (n,) size of each person as a share of the picture's side.
        size: Side of the picture.

    Returns:
        Picture (size, size, 3) uint8, on black.
    """
    side = size * pose.SUPERSAMPLE
    canvas = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(canvas)
    for points, scale in zip(figures, scales, strict=True):
        pose.draw_figure(draw, points * side, float(np.clip(scale, SMALLEST, 1)) * side)
    return np.asarray(canvas.reduce(pose.SUPERSAMPLE))


def parse(picture: np.ndarray) -> list[np.ndarray]:
    """Find the discs of every keypoint; which belong to one person is not asked.

    Args:
        picture: (H, W, 3) uint8.

    Returns:
        18 arrays (m, 2): x and y of each disc in [0, 1].
    """
    height, width = picture.shape[:2]
    evidence = pose.evidence_of(picture)
    blur = 0.5 * SMALLEST * pose.DISC_RADIUS * min(height, width)
    gathered = ndimage.gaussian_filter(evidence, (0, blur, blur), mode="constant")
    found = []
    for field in gathered:
        islands, count = ndimage.label(field > _ENOUGH)
        centres = ndimage.center_of_mass(field, islands, range(1, count + 1))
        places = np.asarray(centres, float).reshape(count, 2)[:, ::-1] + 0.5  # pixel centres
        found.append(places / (width, height))
    return found


def f1(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Balance of the true keypoints found and of the found ones that are true.

    Found discs are matched one to one with the true ones of the same keypoint, within 0.05 of the
    picture's side; the true ones are those parsed from the true picture.

    Args:
        prediction: Picture (H, W, 3) uint8.
        truth: Picture of the same size.

    Returns:
        2 x matched / (true + found), in [0, 1]; NaN if the truth holds no keypoint.
    """
    true, found = parse(truth), parse(prediction)
    if not any(map(len, true)):
        return float("nan")
    matched = 0
    for one, other in zip(true, found, strict=True):
        near = np.linalg.norm(one[:, None] - other[None], axis=2) <= FOUND_WITHIN
        matched += int(near[linear_sum_assignment(near, maximize=True)].sum())
    return 2 * matched / (sum(map(len, true)) + sum(map(len, found)))


TASK = Task(
    name="poses",
    description="everybody in a picture as OpenPose stick figures on black",
    measures={"f1": f1},
    primary="f1",
    flips=False,  # as pose
)
