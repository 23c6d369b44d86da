"""Rain and camera shake: degradations strong enough that copying the query is a poor answer."""

import math

import numpy as np
from PIL import Image, ImageDraw

from delvm.tasks.base import Task

_CANVAS = 192  # streaks are drawn at least this large, so that their width scales smoothly


def add_rain(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Heavy rain: bright streaks at one angle, and the mist that hangs in a downpour.

    The mist takes more from a copy of the picture than the streaks do, and hides less.

    Args:
        clean: Picture (H, W, 3) uint8.
        rng: Where the angle, the streaks and the mist come from.

    Returns:
        The picture in rain, same shape.
    """
    height, width = clean.shape[:2]
    factor = max(2, math.ceil(_CANVAS / min(height, width)))
    size = (width * factor, height * factor)
    side = min(size)
    angle = rng.uniform(-0.5, 0.5)  # radians from the vertical
    count = int(rng.integers(22, 36))
    lengths = rng.uniform(0.2, 0.45, count) * side
    centres = rng.uniform(-0.05, 1.05, (count, 2)) * size
    strengths = rng.integers(150, 245, count)
    thick = max(1, round(side * 0.024))
    streaks = Image.new("L", size)
    draw = ImageDraw.Draw(streaks)
    for (x, y), length, strength in zip(centres, lengths, strengths, strict=True):
        dx, dy = math.sin(angle) * length / 2, math.cos(angle) * length / 2
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=int(strength), width=thick)
    alpha = np.asarray(streaks.reduce(factor), np.float32)[:, :, None] / 255
    mist = rng.uniform(0.35, 0.5)
    picture = clean.astype(np.float32)
    picture += mist * (200 - picture)
    picture += alpha * (np.array((232, 238, 245), np.float32) - picture)
    return (picture + 0.5).astype(np.uint8)


def shake(clean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Strong camera shake: the picture drifts down and to the right during the exposure.

    The exposure starts at the clean picture and moves along a slightly bent path, resting
    near its end, so the copy is both blurred and displaced. The drift is always towards the
    same quarter: a motion and its reverse blur alike, and only that tells them apart.

    Args:
        clean: Picture (H, W, 3) uint8; beyond its borders it is continued by reflection.
        rng: Where the path comes from.

    Returns:
        The shaken picture, same shape.
    """
    height, width = clean.shape[:2]
    side = min(height, width)
    extent = rng.uniform(0.24, 0.3) * side
    angle = math.radians(rng.uniform(30, 60))
    bend = rng.uniform(-0.25, 0.25)
    time = np.linspace(0, 1, 9)
    weights = np.where(time < 0.7, 1.0, 2.5)
    weights /= weights.sum()
    sideways = bend * np.sin(math.pi * time)
    xs = np.rint(extent * (time * math.cos(angle) - sideways * math.sin(angle))).astype(int)
    ys = np.rint(extent * (time * math.sin(angle) + sideways * math.cos(angle))).astype(int)
    margin = int(max(np.abs(xs).max(), np.abs(ys).max()))
    wide = np.pad(clean, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    picture = np.zeros(clean.shape, np.float32)
    for x, y, weight in zip(xs, ys, weights, strict=True):
        top, left = margin - y, margin - x
        picture += weight * wide[top : top + height, left : left + width]
    return (picture + 0.5).astype(np.uint8)


DERAIN = Task(name="derain", description="heavy rain taken out of a picture")
# The shake always drifts one way: a mirrored pair would be of another task.
DEBLUR = Task(name="deblur", description="strong camera shake taken out of a picture", flips=False)
