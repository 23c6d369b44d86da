"""Stick figures in the colours of OpenPose's 18-keypoint COCO body, drawn and read back.

Cao et al., "OpenPose: Realtime Multi-Person 2D Pose Estimation using Part Affinity Fields",
2018: a keypoint is a disc in its colour, a limb a bar in the colour of its own index, dimmed
to 60 %. Positions are fractions of the picture's width and height, NaN where unseen.
"""

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from delvm.tasks.base import Task

KEYPOINTS = (
    "nose", "neck",
    "right_shoulder", "right_elbow", "right_wrist",
    "left_shoulder", "left_elbow", "left_wrist",
    "right_hip", "right_knee", "right_ankle",
    "left_hip", "left_knee", "left_ankle",
    "right_eye", "left_eye", "right_ear", "left_ear",
)  # fmt: skip
BODY = (
    14  # the keypoints before the face's eyes and ears, which are below a pixel in small pictures
)

# A wheel of 18 hues from red through green and blue to pink, one a keypoint.
COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0),
    (0, 255, 0), (0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255),
    (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85),
)  # fmt: skip
# Limb i joins these two keypoints in COLOURS[i].
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10),
    (1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
LIMB_SHADE = 0.6

# Shares of the picture's side. Thin lines are the first thing a small tokenizer loses.
LIMB_WIDTH = 1 / 17
DISC_RADIUS = 1 / 22
FOUND_WITHIN = 0.1

SUPERSAMPLE = 4
_SPREAD = 0.18  # how far a normalised colour may stray from a keypoint's, of full range
_FAINTEST = 0.27  # evidence below this is a limb or a seam, not a disc


def render(keypoints: np.ndarray, size: int) -> np.ndarray:
    """Draw a stick figure.

    Args:
        keypoints: (18, 2) x and y in [0, 1], NaN where unseen; limbs need both ends.
        size: Side of the picture.

    Returns:
        Picture (size, size, 3) uint8, on black.
    """
    side = size * SUPERSAMPLE
    canvas = Image.new("RGB", (side, side))
    draw_figure(ImageDraw.Draw(canvas), np.asarray(keypoints, float) * side, side)
    return np.asarray(canvas.reduce(SUPERSAMPLE))


def draw_figure(draw: ImageDraw.ImageDraw, points: np.ndarray, unit: float) -> None:
    """Draw a figure, keypoints (18, 2) in pixels, as thick as suits a picture of side `unit`."""
    for colour, (start, end) in zip(COLOURS[: len(LIMBS)], LIMBS, strict=True):
        if not np.isnan(points[[start, end]]).any():
            shade = tuple(int(LIMB_SHADE * level) for level in colour)
            draw_bar(draw, points[start], points[end], LIMB_WIDTH * unit, shade)
    radius = DISC_RADIUS * unit
    for colour, (x, y) in zip(COLOURS, points, strict=True):
        if not np.isnan(x + y):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def draw_bar(
    draw: ImageDraw.ImageDraw,
    start: np.ndarray,
    end: np.ndarray,
    width: float,
    colour: tuple[int, ...],
) -> None:
    """Draw a line of this width with round ends; all in pixels."""
    for x, y in (start, end):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=colour)
    along = end - start
    length = float(np.hypot(*along))
    if length > 0:
        across = np.array((-along[1], along[0])) * (width / 2 / length)
        corners = (start + across, end + across, end - across, start - across)
        draw.polygon([tuple(corner) for corner in corners], fill=colour)


def parse(picture: np.ndarray) -> np.ndarray:
    """Read a figure back: for every keypoint, the place with most of its colour.

    Hue is compared apart from brightness, which blur lowers, and evidence is gathered over a
    disc, so a limb of the same hue (dimmer and thinner) loses to the disc. One figure is read;
    of several, the clearest disc wins keypoint by keypoint.

    Args:
        picture: (H, W, 3) uint8.

    Returns:
        (18, 2) x and y in [0, 1], NaN where the colour is not found.
    """
    height, width = picture.shape[:2]
    evidence = evidence_of(picture)
    blur = 0.6 * DISC_RADIUS * min(height, width)
    gathered = ndimage.gaussian_filter(evidence, (0, blur, blur), mode="constant")
    found = np.full((len(KEYPOINTS), 2), np.nan)
    for index, field in enumerate(gathered):
        if field.max() < _FAINTEST:
            continue
        y, x = np.unravel_index(field.argmax(), field.shape)
        found[index] = _centre(evidence[index], int(x), int(y), DISC_RADIUS * min(height, width))
    return found / (width, height)


def evidence_of(picture: np.ndarray) -> np.ndarray:
    """How much of each keypoint's colour is at each pixel of (H, W, 3) uint8: (18, H, W) in [0, 1].

    A limb has at most LIMB_SHADE squared of it, a disc all.
    """
    pixels = picture.astype(np.float32) / 255
    bright = pixels.max(axis=2)
    hues = pixels / np.maximum(bright, 1e-3)[:, :, None]
    colours = np.asarray(COLOURS, np.float32) / 255
    distance = ((hues[None] - colours[:, None, None]) ** 2).sum(axis=3)
    return bright**2 * np.exp(-distance / (2 * _SPREAD**2))


def _centre(evidence: np.ndarray, x: int, y: int, radius: float) -> np.ndarray:
    """Centroid of the evidence within a disc's reach of a peak, in pixels from the corner."""
    reach = max(1, round(radius))
    top, left = max(0, y - reach), max(0, x - reach)
    window = evidence[top : y + reach + 1, left : x + reach + 1]
    rows, columns = np.indices(window.shape) + 0.5  # pixel centres
    total = window.sum()
    return np.array((left + (columns * window).sum() / total, top + (rows * window).sum() / total))


def pck(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Share of the true keypoints found within 0.1 of the picture's side.

    The true keypoints are those parsed from the true picture.

    Args:
        prediction: Picture (H, W, 3) uint8.
        truth: Picture of the same size.

    Returns:
        A value in [0, 1]; NaN if the truth holds no keypoint.
    """
    true = parse(truth)
    seen = ~np.isnan(true[:, 0])
    if not seen.any():
        return float("nan")
    away = np.linalg.norm(parse(prediction)[seen] - true[seen], axis=1)
    return float((away <= FOUND_WITHIN).mean())  # a missing keypoint is NaN away: not found


TASK = Task(
    name="pose",
    description="a person as an OpenPose stick figure on black",
    measures={"pck": pck},
    primary="pck",
    flips=False,  # a mirror swaps left and right, which have colours of their own
)
