"""A person seen from the front: random proportions and joint angles, drawn with thick limbs."""

import math

import numpy as np
from PIL import Image, ImageDraw

from delvm.data.sources.shapes import scenes
from delvm.tasks import pose

_SUPERSAMPLE = 4
_TRIES = 12
_MARGIN = 0.055  # a disc at the border stays whole

# Lengths as shares of the body's height; broad, so that joints stay apart in small pictures.
_NOSE, _NECK, _SHOULDERS, _HIPS = 0.1, 0.22, 0.25, 0.53
_SHOULDER_HALF, _HIP_HALF = 0.15, 0.09
_UPPER_ARM, _FOREARM = 0.19, 0.18
_THIGH, _SHIN = 0.22, 0.21


def keypoints(rng: np.random.Generator) -> np.ndarray:
    """A random upright pose, each arm and leg on its own side.

    Returns:
        (18, 2) x and y in the unit square, the face's eyes and ears NaN. The person faces the
        viewer: their right is on the left of the picture.
    """
    height = rng.uniform(0.55, 0.88)
    inside = 1 - 2 * _MARGIN
    best, widest = np.zeros((pose.BODY, 2)), -math.inf
    for _ in range(_TRIES):
        body = _body(rng)
        low, high = np.minimum(body.min(axis=0), (0, 0)), body.max(axis=0)
        scale = min(height, inside / (high - low).max())  # raised hands reach above the head
        apart = _closest_pair(body) * scale
        if apart > widest:
            best, widest = (body - low) * scale, apart
        if widest >= 1.8 * pose.DISC_RADIUS:
            break
    room = np.maximum(inside - best.max(axis=0), 0)
    points = np.full((len(pose.KEYPOINTS), 2), np.nan)
    points[: pose.BODY] = best + _MARGIN + room * rng.random(2)
    return points


def _body(rng: np.random.Generator) -> np.ndarray:
    """Joints (14, 2) of a body of height one whose head's top is at y = 0, the neck at x = 0."""
    lean = rng.uniform(-0.03, 0.03)
    joints = np.zeros((pose.BODY, 2))
    joints[0] = (lean + rng.uniform(-0.015, 0.015), _NOSE)
    joints[1] = (0, _NECK)
    for side, first in ((-1, 2), (1, 5)):  # their right is the viewer's left
        shoulder = np.array((side * _SHOULDER_HALF, _SHOULDERS))
        raised = rng.uniform(0.1, 2.6)  # from hanging down to nearly straight up
        bent = raised + rng.uniform(-0.5, 1.4)
        elbow = shoulder + _UPPER_ARM * _swing(side, raised)
        joints[first : first + 3] = shoulder, elbow, elbow + _FOREARM * _swing(side, bent)
    for side, first in ((-1, 8), (1, 11)):
        hip = np.array((-lean + side * _HIP_HALF, _HIPS))
        spread = rng.uniform(0.0, 0.6)
        knee = hip + _THIGH * _swing(side, spread)
        ankle = knee + _SHIN * _swing(side, spread + rng.uniform(-0.5, 0.1))
        joints[first : first + 3] = hip, knee, ankle
    return joints


def _swing(side: int, angle: float) -> np.ndarray:
    """Unit vector at an angle from straight down, turned outwards on its side."""
    return np.array((side * math.sin(angle), math.cos(angle)))


def _closest_pair(joints: np.ndarray) -> float:
    """Distance of the two joints nearest each other; negative if an arm or leg crosses over."""
    crossed = max(joints[2:5, 0].max(), joints[8:11, 0].max(), -joints[5:8, 0].min())
    if max(crossed, -joints[11:14, 0].min()) > -0.03:
        return -1.0
    gaps = np.linalg.norm(joints[:, None] - joints[None], axis=2)
    return float(gaps[np.triu_indices(len(joints), 1)].min())


def draw(rng: np.random.Generator, split: str, size: int, points: np.ndarray) -> np.ndarray:
    """A person in this pose over a backdrop: bare head and forearms, a shirt, trousers.

    Args:
        rng: Where colours, textures and the backdrop come from.
        split: "train", "val" or "test".
        size: Side of the picture.
        points: (18, 2) as `keypoints` gives them.

    Returns:
        (size, size, 3) uint8.
    """
    picture = scenes.backdrop(rng, split, size)
    grain = scenes.texture(rng, split, size)
    skin = np.array((255, 214, 178), np.float32) * rng.uniform(0.75, 1.0)
    hue = rng.uniform(0.2, 0.95)  # of the shirt; kept off the skin's
    shirt = scenes.bright_tint(rng, hue)
    trousers = scenes.bright_tint(rng, hue + rng.uniform(0.25, 0.75))
    layers = (_legs, trousers), (_torso, shirt), (_skin, skin)
    for shape, colour in layers:
        canvas = Image.new("L", (size * _SUPERSAMPLE,) * 2)
        shape(ImageDraw.Draw(canvas), points * (size * _SUPERSAMPLE))
        mask = np.asarray(canvas.reduce(_SUPERSAMPLE), np.float32) / 255
        picture = scenes.paint(picture, mask, grain * colour)
    return scenes.to_picture(picture)


def _unit_of(points: np.ndarray) -> float:
    """The body's height in pixels, from neck to hips."""
    return float(points[8:12:3, 1].mean() - points[1, 1]) / (_HIPS - _NECK)


def _legs(draw: ImageDraw.ImageDraw, points: np.ndarray) -> None:
    width = 0.1 * _unit_of(points)
    for start, end in ((8, 9), (9, 10), (11, 12), (12, 13)):
        pose.draw_bar(draw, points[start], points[end], width, (255,))


def _torso(draw: ImageDraw.ImageDraw, points: np.ndarray) -> None:
    unit = _unit_of(points)
    for start, end in ((2, 3), (5, 6), (2, 5)):
        pose.draw_bar(draw, points[start], points[end], 0.09 * unit, (255,))
    corners = points[[2, 5, 11, 8]]
    draw.polygon([tuple(corner) for corner in corners], fill=255)
    for start, end in ((2, 8), (5, 11), (8, 11)):
        pose.draw_bar(draw, points[start], points[end], 0.06 * unit, (255,))


def _skin(draw: ImageDraw.ImageDraw, points: np.ndarray) -> None:
    unit = _unit_of(points)
    for start, end in ((0, 1), (3, 4), (6, 7)):
        pose.draw_bar(draw, points[start], points[end], 0.075 * unit, (255,))
    (x, y), wide, tall = points[0], 0.075 * unit, 0.095 * unit
    draw.ellipse((x - wide, y - tall, x + wide, y + tall), fill=255)
