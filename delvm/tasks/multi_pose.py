"""Everybody in an image as stick figures, in the colors of `pose`, parsed and scored together.

Line widths are proportional to the size of a figure, so that people far away do not merge, but at
least a quarter of those of `pose`, which is the minimum that small images can show.
"""

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from delvm.tasks import oks, pose
from delvm.tasks.base import Counts, ImageArray, SetMetric, Task

MIN_SCALE = 0.25
MATCH_THRESHOLD = 0.05  # of the image's side; people may be close to each other
_MIN_LIMB = 0.5  # fraction of a line between two discs that has the color of the limb
_MIN_BRIGHTNESS = 0.25
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


def parse_people(image: ImageArray) -> npt.NDArray[np.float64]:
    """Find every person: discs that are joined by a limb in its color, as in OpenPose.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (n, 18, 2) x and y in [0, 1], NaN where a keypoint is not found. A disc without a limb is a
        person of its own.
    """
    discs = parse(image)
    hues = _hue_matches(image)
    person: dict[tuple[int, int], int] = {}  # (keypoint, index of the disc) -> number of the person
    members: dict[int, dict[int, int]] = {}  # number -> keypoint -> index of the disc
    for keypoint, points in enumerate(discs):
        for index in range(len(points)):
            number = len(members)
            person[keypoint, index], members[number] = number, {keypoint: index}
    for color, (start, end) in enumerate(pose.LIMBS):
        # Short limbs are covered by the discs at their ends.
        colors = hues[[color, start, end]].max(axis=0)
        evidence = _evidence(colors, discs[start], discs[end])
        for i, j in zip(*linear_sum_assignment(evidence, maximize=True), strict=True):
            one, other = person[start, int(i)], person[end, int(j)]
            if evidence[i, j] < _MIN_LIMB or members[one].keys() & members[other].keys():
                continue
            members[one] |= members.pop(other)
            person |= {each: one for each, number in person.items() if number == other}
    people = np.full((len(members), len(pose.KEYPOINTS), 2), np.nan)
    for row, found in zip(people, members.values(), strict=True):
        for keypoint, index in found.items():
            row[keypoint] = discs[keypoint][index]
    return people


def _hue_matches(image: ImageArray) -> npt.NDArray[np.float32]:
    """How well the hue of each pixel matches each keypoint's, (18, H, W) in [0, 1]."""
    brightness = image.max(axis=2).astype(np.float32) / 255
    hue: npt.NDArray[np.float32] = pose.color_response(image) / np.maximum(brightness**2, 1e-6)
    return np.where(brightness > _MIN_BRIGHTNESS, hue, np.float32(0))


def _evidence(
    colors: npt.NDArray[np.float32], starts: pose.Points, ends: pose.Points
) -> npt.NDArray[np.float64]:
    """Mean of a limb's colors (H, W) along the lines from each start to each end, (n, m)."""
    height, width = colors.shape
    fractions = np.linspace(0.1, 0.9, 17)[:, None, None, None]
    lines = starts[:, None] + fractions * (ends[None] - starts[:, None])  # (17, n, m, 2)
    columns, rows = (
        np.clip((lines[..., axis] * side).astype(int), 0, side - 1)
        for axis, side in ((0, width), (1, height))
    )
    evidence: npt.NDArray[np.float64] = colors[rows, columns].astype(np.float64).mean(axis=0)
    return evidence


def _oks_counts(prediction: ImageArray, truth: ImageArray) -> Counts:
    return pose.oks_counts(parse_people(prediction), parse_people(truth))


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
    set_metrics={"oks_ap": SetMetric(_oks_counts, oks.average_precision_of_set)},
    allows_hflip=False,  # as for `pose`
)
