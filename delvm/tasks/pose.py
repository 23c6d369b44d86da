"""Stick figures in the colors of OpenPose's 18-keypoint COCO body: rendering, parsing, scoring.

Cao et al., "OpenPose: Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields", 2018:
a keypoint is a disc in its color, a limb a capsule in the color of its own index, dimmed to 60 %.
Positions are fractions of the image's width and height, NaN where a keypoint is not visible.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from delvm.tasks import oks
from delvm.tasks.base import Counts, ImageArray, SetMetric, Task

Points: TypeAlias = npt.NDArray[np.float64]  # (n, 2) x and y

KEYPOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist",
    "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle",
    "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
# Of COCO's keypoints, in its order; it has no neck.
COCO_INDICES = [KEYPOINTS.index(name) for name in oks.KEYPOINTS]
# All but eyes and ears, which are smaller than a pixel in small images.
NUM_BODY_KEYPOINTS = 14

# A wheel of 18 hues from red through green and blue to pink, one per keypoint.
COLORS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
# Limb i joins these two keypoints in COLORS[i].
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
LIMB_BRIGHTNESS = 0.6

# Fractions of the image's side. Thin lines are the first to disappear in a small tokenizer.
LIMB_WIDTH = 1 / 17
DISC_RADIUS = 1 / 22
PCK_THRESHOLD = 0.1
PCKH_THRESHOLD = 0.5  # of the size of the head

SUPERSAMPLE = 4
_COLOR_SIGMA = 0.18  # tolerance around a keypoint's normalized color, as a fraction of full range
_MIN_RESPONSE = 0.27  # a weaker response is a limb or an edge, not a disc


def render(keypoints: Points, size: int) -> ImageArray:
    """Render a stick figure.

    Args:
        keypoints: (18, 2) x and y in [0, 1], NaN where not visible; limbs need both ends.
        size: Side of the image.

    Returns:
        Image (size, size, 3) uint8, on black.
    """
    side = size * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side))
    draw_figure(ImageDraw.Draw(canvas), np.asarray(keypoints, float) * side, side)
    return np.asarray(canvas.reduce(SUPERSAMPLE))


def draw_figure(draw: ImageDraw.ImageDraw, points: Points, unit: float) -> None:
    """Draw a figure, points (18, 2) in pixels, with the line widths of an image of side `unit`."""
    for color, (start, end) in zip(COLORS[: len(LIMBS)], LIMBS, strict=True):
        if not np.isnan(points[[start, end]]).any():
            dimmed = tuple(int(LIMB_BRIGHTNESS * level) for level in color)
            draw_capsule(draw, points[start], points[end], LIMB_WIDTH * unit, dimmed)
    radius = DISC_RADIUS * unit
    for color, (x, y) in zip(COLORS, points, strict=True):
        if not np.isnan(x + y):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)


def draw_capsule(
    draw: ImageDraw.ImageDraw, start: Points, end: Points, width: float, color: tuple[int, ...]
) -> None:
    """Draw a line with round ends; all lengths in pixels."""
    for x, y in (start, end):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=color)
    along = end - start
    length = float(np.hypot(*along))
    if length > 0:
        across = np.array((-along[1], along[0])) * (width / 2 / length)
        corners = (start + across, end + across, end - across, start - across)
        draw.polygon([tuple(corner) for corner in corners], fill=color)


def parse(image: ImageArray) -> Points:
    """Find each keypoint of a figure at the position with the strongest response to its color.

    Hue is compared independently of brightness, which blur lowers, and the response is averaged
    over a disc, so a limb of the same hue (dimmer and thinner) loses to the disc. Only one figure
    is parsed; of several, the clearest disc wins for each keypoint.

    Args:
        image: (H, W, 3) uint8.

    Returns:
        (18, 2) x and y in [0, 1], NaN where the color is not found.
    """
    height, width = image.shape[:2]
    response = color_response(image)
    sigma = 0.6 * DISC_RADIUS * min(height, width)
    smoothed = ndimage.gaussian_filter(response, (0, sigma, sigma), mode="constant")
    points = np.full((len(KEYPOINTS), 2), np.nan)
    for index, field in enumerate(smoothed):
        if field.max() < _MIN_RESPONSE:
            continue
        y, x = np.unravel_index(field.argmax(), field.shape)
        points[index] = _centroid(response[index], int(x), int(y), DISC_RADIUS * min(height, width))
    relative: Points = points / (width, height)
    return relative


def color_response(image: ImageArray) -> npt.NDArray[np.float32]:
    """How well each pixel of (H, W, 3) uint8 matches each keypoint's color: (18, H, W) in [0, 1].

    The response to a limb is at most LIMB_BRIGHTNESS squared, to a disc 1.
    """
    pixels = image.astype(np.float32) / 255
    brightness = pixels.max(axis=2)
    hues = pixels / np.maximum(brightness, 1e-3)[:, :, None]
    colors = np.asarray(COLORS, np.float32) / 255
    distance = ((hues[None] - colors[:, None, None]) ** 2).sum(axis=3)
    response: npt.NDArray[np.float32] = brightness**2 * np.exp(-distance / (2 * _COLOR_SIGMA**2))
    return response


def _centroid(response: npt.NDArray[np.float32], x: int, y: int, radius: float) -> Points:
    """Centroid (2,) of the response within a disc's radius of a peak, in pixels from the corner."""
    reach = max(1, round(radius))
    top, left = max(0, y - reach), max(0, x - reach)
    window = response[top : y + reach + 1, left : x + reach + 1]
    rows, columns = np.indices(window.shape) + 0.5  # pixel centers
    total = window.sum()
    return np.array((left + (columns * window).sum() / total, top + (rows * window).sum() / total))


def pck(prediction: ImageArray, truth: ImageArray) -> float:
    """Fraction of the true keypoints found within 0.1 of the image's side.

    The true keypoints are those parsed from the true image.

    Args:
        prediction: Image (H, W, 3) uint8.
        truth: Image of the same size.

    Returns:
        A value in [0, 1]; NaN if the ground truth has no keypoint.
    """
    return _found_within(PCK_THRESHOLD, parse(prediction), parse(truth))


def pck_box(prediction: ImageArray, truth: ImageArray) -> float:
    """Fraction of the true keypoints found within 0.1 of the longer side of their box (PCK@0.1).

    Yang and Ramanan, "Articulated Human Detection with Flexible Mixtures of Parts", 2013. NaN if
    the ground truth has less than two keypoints.
    """
    true = parse(truth)
    visible = true[~np.isnan(true[:, 0])]
    side = float((visible.max(axis=0) - visible.min(axis=0)).max()) if len(visible) > 1 else np.nan
    return _found_within(PCK_THRESHOLD * side, parse(prediction), true)


def pckh(prediction: ImageArray, truth: ImageArray) -> float:
    """Fraction of the true keypoints found within half of the size of the head (PCKh@0.5).

    Andriluka et al., "2D Human Pose Estimation", CVPR 2014, take it from a box of the head, which
    stick figures do not have: here it is the distance from the neck to the nose. NaN without these.
    """
    true = parse(truth)
    head = float(np.linalg.norm(true[KEYPOINTS.index("nose")] - true[KEYPOINTS.index("neck")]))
    return _found_within(PCKH_THRESHOLD * head, parse(prediction), true)


def _found_within(threshold: float, found: Points, true: Points) -> float:
    """Fraction of the visible true keypoints (18, 2) that are found within a distance."""
    visible = ~np.isnan(true[:, 0])
    if not visible.any() or np.isnan(threshold):
        return float("nan")
    distance = np.linalg.norm(found[visible] - true[visible], axis=1)
    return float((distance <= threshold).mean())  # NaN for a missing keypoint: not found


def oks_counts(predicted: Points, true: Points) -> Counts:
    """What the average precision combines, of people (n, 18, 2) of one image."""
    matches = oks.match(
        oks.detections_of_keypoints(predicted[:, COCO_INDICES]),
        oks.people_of_keypoints(true[:, COCO_INDICES]),
        (0.0, np.inf),
    )
    return oks.pack(matches)


def _oks_counts(prediction: ImageArray, truth: ImageArray) -> Counts:
    return oks_counts(parse(prediction)[None], parse(truth)[None])


TASK = Task(
    name="pose",
    description="a person as an OpenPose stick figure on black",
    metric_fns={"pck": pck, "pck_box": pck_box, "pckh": pckh},
    primary_metric="pck",
    set_metrics={"oks_ap": SetMetric(_oks_counts, oks.average_precision_of_set)},
    allows_hflip=False,  # a flip swaps left and right, which differ in color
)
