"""Rain and motion blur: degradations strong enough that copying the query scores poorly."""

import math

import numpy as np
from PIL import Image, ImageDraw

from delvm.tasks.base import SMALL_ROTATION, ImageArray, MetricFn, Task
from delvm.tasks.luma import psnr_y, ssim_y

METRICS: dict[str, MetricFn] = {"psnr_y": psnr_y, "ssim_y": ssim_y}
_MIN_CANVAS = 192  # streaks are rendered at least this large, so that their width scales smoothly


def add_rain(clean: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Heavy rain: bright streaks at one angle, and mist.

    The mist lowers the score of a copy more than the streaks do, and hides less.

    Args:
        clean: Image (H, W, 3) uint8.
        rng: Where the angle, the streaks and the mist come from.

    Returns:
        The image with rain, same shape.
    """
    height, width = clean.shape[:2]
    factor = max(2, math.ceil(_MIN_CANVAS / min(height, width)))
    size = (width * factor, height * factor)
    side = min(size)
    angle = rng.uniform(-0.5, 0.5)  # radians from the vertical
    count = int(rng.integers(22, 36))
    lengths = rng.uniform(0.2, 0.45, count) * side
    centers = rng.uniform(-0.05, 1.05, (count, 2)) * size
    strengths = rng.integers(150, 245, count)
    line_width = max(1, round(side * 0.024))
    streaks = Image.new("L", size)
    draw = ImageDraw.Draw(streaks)
    for (x, y), length, strength in zip(centers, lengths, strengths, strict=True):
        dx, dy = math.sin(angle) * length / 2, math.cos(angle) * length / 2
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=int(strength), width=line_width)
    alpha = np.asarray(streaks.reduce(factor), np.float32)[:, :, None] / 255
    mist = rng.uniform(0.35, 0.5)
    image = clean.astype(np.float32)
    image += mist * (200 - image)
    image += alpha * (np.array((232, 238, 245), np.float32) - image)
    return (image + 0.5).astype(np.uint8)


def motion_blur(clean: ImageArray, rng: np.random.Generator) -> ImageArray:
    """Strong camera shake: the image drifts down and to the right during the exposure.

    The exposure starts at the clean image and follows a slightly curved path, staying longer near
    its end, so the result is both blurred and displaced. The drift is always toward the same
    quadrant: a motion and its reverse blur alike, and they differ only in direction.

    Args:
        clean: Image (H, W, 3) uint8; it is padded by reflection.
        rng: Where the path comes from.

    Returns:
        The blurred image, same shape.
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
    padded = np.pad(clean, ((margin, margin), (margin, margin), (0, 0)), mode="reflect")
    image = np.zeros(clean.shape, np.float32)
    for x, y, weight in zip(xs, ys, weights, strict=True):
        top, left = margin - y, margin - x
        image += weight * padded[top : top + height, left : left + width]
    return (image + 0.5).astype(np.uint8)


DERAIN = Task(
    name="derain",
    description="remove heavy rain from an image",
    metric_fns=METRICS,
    max_degrees=SMALL_ROTATION,  # rain that falls sideways would be another task
)
# The drift always has one direction: a flipped pair would belong to another task.
DEBLUR = Task(
    name="deblur",
    description="remove strong motion blur",
    metric_fns=METRICS,
    allows_hflip=False,
    max_degrees=SMALL_ROTATION,
)
