"""A person seen from the front: random proportions and joint angles, with thick limbs."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from delvm.data.sources.shapes import scenes
from delvm.data.sources.shapes.photo_pool import PhotoPool
from delvm.data.types import ImageArray
from delvm.tasks import pose
from delvm.tasks.pose import Points

_SUPERSAMPLE = 4
_MAX_ATTEMPTS = 12  # to find a pose whose joints are far enough apart
_MARGIN = 0.055  # so that a disc at the border is not cut off

# Lengths as fractions of the body's height; wide, so that joints stay apart in small images.
_NOSE, _NECK, _SHOULDERS, _HIPS = 0.1, 0.22, 0.25, 0.53
_SHOULDER_HALF, _HIP_HALF = 0.15, 0.09
_UPPER_ARM, _FOREARM = 0.19, 0.18
_THIGH, _SHIN = 0.22, 0.21


def random_keypoints(rng: np.random.Generator) -> Points:
    """A random upright pose, each arm and leg on its own side.

    Returns:
        (18, 2) x and y in the unit square, NaN for eyes and ears. The person faces the viewer:
        their right is on the left of the image.
    """
    height = rng.uniform(0.55, 0.88)
    inside = 1 - 2 * _MARGIN
    best, widest = np.zeros((pose.NUM_BODY_KEYPOINTS, 2)), -math.inf
    for _ in range(_MAX_ATTEMPTS):
        body = _random_body(rng)
        low, high = np.minimum(body.min(axis=0), (0, 0)), body.max(axis=0)
        scale = min(height, inside / (high - low).max())  # raised hands reach above the head
        distance = _min_joint_distance(body) * scale
        if distance > widest:
            best, widest = (body - low) * scale, distance
        if widest >= 1.8 * pose.DISC_RADIUS:
            break
    room = np.maximum(inside - best.max(axis=0), 0)
    points = np.full((len(pose.KEYPOINTS), 2), np.nan)
    points[: pose.NUM_BODY_KEYPOINTS] = best + _MARGIN + room * rng.random(2)
    return points


def _random_body(rng: np.random.Generator) -> Points:
    """Joints (14, 2) of a body of height 1; the top of its head is at y = 0, the neck at x = 0."""
    lean = rng.uniform(-0.03, 0.03)
    joints = np.zeros((pose.NUM_BODY_KEYPOINTS, 2))
    joints[0] = (lean + rng.uniform(-0.015, 0.015), _NOSE)
    joints[1] = (0, _NECK)
    for side, first in ((-1, 2), (1, 5)):  # their right is the viewer's left
        shoulder = np.array((side * _SHOULDER_HALF, _SHOULDERS))
        upper_angle = rng.uniform(0.1, 2.6)  # from hanging down to nearly straight up
        lower_angle = upper_angle + rng.uniform(-0.5, 1.4)
        elbow = shoulder + _UPPER_ARM * _limb_direction(side, upper_angle)
        wrist = elbow + _FOREARM * _limb_direction(side, lower_angle)
        joints[first : first + 3] = shoulder, elbow, wrist
    for side, first in ((-1, 8), (1, 11)):
        hip = np.array((-lean + side * _HIP_HALF, _HIPS))
        spread = rng.uniform(0.0, 0.6)
        knee = hip + _THIGH * _limb_direction(side, spread)
        ankle = knee + _SHIN * _limb_direction(side, spread + rng.uniform(-0.5, 0.1))
        joints[first : first + 3] = hip, knee, ankle
    return joints


def _limb_direction(side: int, angle: float) -> npt.NDArray[np.float64]:
    """Unit vector at an angle from straight down, turned outward on its side."""
    return np.array((side * math.sin(angle), math.cos(angle)))


def _min_joint_distance(joints: Points) -> float:
    """Distance of the two closest joints; negative if an arm or leg crosses over."""
    crossed = max(joints[2:5, 0].max(), joints[8:11, 0].max(), -joints[5:8, 0].min())
    if max(crossed, -joints[11:14, 0].min()) > -0.03:
        return -1.0
    distances = np.linalg.norm(joints[:, None] - joints[None], axis=2)
    return float(distances[np.triu_indices(len(joints), 1)].min())


def render(rng: np.random.Generator, photos: PhotoPool, size: int, points: Points) -> ImageArray:
    """A person in this pose in front of a background: bare head and forearms, a shirt, trousers.

    Args:
        rng: Where colors, textures and the background come from.
        photos: Of the split.
        size: Side of the image.
        points: (18, 2) as from `random_keypoints`.

    Returns:
        (size, size, 3) uint8.
    """
    image = scenes.background(rng, photos, size)
    grain = scenes.texture(rng, photos, size)
    skin = np.array((255, 214, 178), np.float32) * rng.uniform(0.75, 1.0)
    hue = rng.uniform(0.2, 0.95)  # of the shirt; away from that of the skin
    shirt = scenes.random_bright_color(rng, hue)
    trousers = scenes.random_bright_color(rng, hue + rng.uniform(0.25, 0.75))
    layers = (_draw_legs, trousers), (_draw_torso, shirt), (_draw_skin, skin)
    for draw_layer, color in layers:
        canvas = Image.new("L", (size * _SUPERSAMPLE,) * 2)
        draw_layer(ImageDraw.Draw(canvas), points * (size * _SUPERSAMPLE))
        mask = np.asarray(canvas.reduce(_SUPERSAMPLE), np.float32) / 255
        image = scenes.paint(image, mask, grain * color)
    return scenes.to_image(image)


def _body_height(points: Points) -> float:
    """The body's height in pixels, from the distance of neck and hips."""
    return float(points[8:12:3, 1].mean() - points[1, 1]) / (_HIPS - _NECK)


def _draw_legs(draw: ImageDraw.ImageDraw, points: Points) -> None:
    width = 0.1 * _body_height(points)
    for start, end in ((8, 9), (9, 10), (11, 12), (12, 13)):
        pose.draw_capsule(draw, points[start], points[end], width, (255,))


def _draw_torso(draw: ImageDraw.ImageDraw, points: Points) -> None:
    height = _body_height(points)
    for start, end in ((2, 3), (5, 6), (2, 5)):
        pose.draw_capsule(draw, points[start], points[end], 0.09 * height, (255,))
    corners = points[[2, 5, 11, 8]]
    draw.polygon([tuple(corner) for corner in corners], fill=255)
    for start, end in ((2, 8), (5, 11), (8, 11)):
        pose.draw_capsule(draw, points[start], points[end], 0.06 * height, (255,))


def _draw_skin(draw: ImageDraw.ImageDraw, points: Points) -> None:
    height = _body_height(points)
    for start, end in ((0, 1), (3, 4), (6, 7)):
        pose.draw_capsule(draw, points[start], points[end], 0.075 * height, (255,))
    (x, y), half_width, half_height = points[0], 0.075 * height, 0.095 * height
    draw.ellipse((x - half_width, y - half_height, x + half_width, y + half_height), fill=255)
