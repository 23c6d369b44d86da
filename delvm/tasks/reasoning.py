"""Synthetic reasoning of visual prompting: an object changes its color, its shape or its size.

The tasks of Bar et al., "Visual Prompting via Image Inpainting", NeurIPS 2022 (arXiv 2209.00647),
as their code generates them: a green circle on white, in units of an image of 224 pixels, becomes
blue, a square, or smaller (radius 30 to 20), or two of these at once.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from delvm.tasks.base import ImageArray, Task

SIDE = 224.0
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
PALETTE = (WHITE, BLACK, RED, GREEN, BLUE)
CHANGES = ("color", "shape", "size", "color_shape", "color_size", "shape_size")
RADII = (30.0, 20.0)  # before and after a change of the size; otherwise 10 to 50


@dataclass(frozen=True)
class Object:
    """What an image shows: center and radius (half the side of a square) in units of 224."""

    x: float
    y: float
    radius: float
    color: tuple[int, int, int] = GREEN
    square: bool = False


def render(shown: Object, size: int) -> ImageArray:
    """The object on white, (size, size, 3) uint8."""
    rows, columns = (np.indices((size, size)) + 0.5) * (SIDE / size)
    x, y = columns - shown.x, rows - shown.y
    inside = np.maximum(np.abs(x), np.abs(y)) if shown.square else np.hypot(x, y)
    image = np.full((size, size, 3), 255, np.uint8)
    image[inside <= shown.radius] = shown.color
    return image


def random_pair(change: str, rng: np.random.Generator) -> tuple[Object, Object]:
    """An object before and after a change, one of `CHANGES`."""
    kinds = change.split("_")
    x, y = rng.uniform(10, SIDE - 10, 2)
    radius = RADII[0] if "size" in kinds else float(rng.uniform(10, 50))
    after = Object(
        float(x),
        float(y),
        RADII[1] if "size" in kinds else radius,
        BLUE if "color" in kinds else GREEN,
        "shape" in kinds,
    )
    return Object(float(x), float(y), radius), after


def parse(image: ImageArray) -> npt.NDArray[np.int64]:
    """Index (H, W) of the nearest color of the palette; 0 is the background."""
    offset = image.astype(np.int64)[:, :, None] - np.array(PALETTE)
    nearest: npt.NDArray[np.int64] = (offset**2).sum(axis=3).argmin(axis=2)
    return nearest


def iou(prediction: ImageArray, truth: ImageArray) -> float:
    """IoU of the object, whose pixels must have its color; NaN without an object."""
    predicted, true = parse(prediction), parse(truth)
    either = (predicted > 0) | (true > 0)
    both = (predicted == true) & (true > 0)
    return float(both.sum() / either.sum()) if (true > 0).any() else float("nan")


def color_blind_iou(prediction: ImageArray, truth: ImageArray) -> float:
    """IoU of the object, whatever its color; NaN without an object."""
    predicted, true = parse(prediction) > 0, parse(truth) > 0
    either = (predicted | true).sum()
    return float((predicted & true).sum() / either) if true.any() else float("nan")


TASKS = {
    change: Task(
        name=f"reasoning_{change}",
        description=f"an object changes its {change.replace('_', ' and ')}",
        metric_fns={"iou": iou, "color_blind_iou": color_blind_iou},
        primary_metric="iou",
    )
    for change in CHANGES
}
