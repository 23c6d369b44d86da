"""Images made of photograph crops: dim backgrounds, bright shapes on them, natural scenes.

Positions and sizes are fractions of the image's side, so every size looks the same.
"""

import colorsys
import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from delvm.data.sources.shapes.photo_pool import PhotoPool
from delvm.data.types import ImageArray

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Polygon: TypeAlias = npt.NDArray[np.float64]  # (n, 2) x and y

_SUPERSAMPLE = 4
_MAX_ATTEMPTS = 24  # to place a polygon without overlap

# Area of an instance, as a fraction of the image, by its rank of size. The classes are far apart,
# so that a single instance shows its rank.
SIZE_CLASSES = ((0.15, 0.20), (0.062, 0.08), (0.026, 0.034))


def _regular_polygon(corners: int, inner: float = 1.0, rotation: float = 0.0) -> Polygon:
    """A regular polygon, or a star if every second corner has a smaller radius."""
    count = corners if inner == 1.0 else 2 * corners
    radius = np.where(np.arange(count) % 2, inner, 1.0)
    angle = 2 * math.pi * np.arange(count) / count - math.pi / 2 + rotation
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)


def _area(polygon: Polygon) -> float:
    x, y = polygon.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _unit_area(polygon: Polygon) -> Polygon:
    """The polygon scaled to an area of one."""
    scaled: Polygon = polygon / math.sqrt(_area(polygon))
    return scaled


_CROSS = np.array(
    [(1, 3), (1, 1), (3, 1), (3, -1), (1, -1), (1, -3)], float
)  # the right half, clockwise from the bottom

POLYGONS = {
    "circle": _unit_area(_regular_polygon(36)),
    "square": _unit_area(_regular_polygon(4, rotation=math.pi / 4)),
    "triangle": _unit_area(_regular_polygon(3)),
    "star": _unit_area(_regular_polygon(5, inner=0.52)),
    "hexagon": _unit_area(_regular_polygon(6)),
    "cross": _unit_area(np.concatenate((_CROSS, -_CROSS))),
    "bar": _unit_area(_regular_polygon(4, rotation=math.pi / 4) * (1.0, 0.55)),
}


def background(rng: np.random.Generator, photos: PhotoPool, size: int) -> Floats:
    """A photograph crop, dimmed and desaturated, in front of which bright objects are visible.

    Returns:
        (size, size, 3) float32 in [0, 255].
    """
    crop = photos.crop(rng, size)
    luma = crop.mean(axis=2, keepdims=True)
    dimmed: Floats = (luma + 0.45 * (crop - luma)) * np.float32(rng.uniform(0.34, 0.5))
    return dimmed


def texture(rng: np.random.Generator, photos: PhotoPool, size: int) -> Floats:
    """Brightness of a photograph crop, normalized to 0.55 to 1: (size, size, 1) float32."""
    luma = photos.crop(rng, size, smallest=0.5).mean(axis=2, keepdims=True)
    std = max(float(luma.std()), 8.0)
    brightness: Floats = np.clip(0.85 + 0.13 * (luma - luma.mean()) / std, 0.55, 1.0)
    return brightness


def random_bright_color(rng: np.random.Generator, hue: float | None = None) -> Floats:
    """A bright color, (3,) float32 in [0, 255], of low saturation.

    It is never as saturated as the colors of masks and stick figures: an input must not look like
    a target.
    """
    turn = rng.random() if hue is None else hue % 1.0
    color = colorsys.hsv_to_rgb(turn, rng.uniform(0.3, 0.52), 1.0)
    return np.float32(255) * np.asarray(color, np.float32)


def random_polygons(rng: np.random.Generator, areas: list[float]) -> list[Polygon]:
    """Random shapes of these areas, placed with as little overlap as a few attempts allow.

    Returns:
        One polygon (n, 2) for each area, in this order, inside the unit square.
    """
    circles: list[tuple[float, float, float]] = []  # around those placed: x, y, radius
    polygons = []
    names = list(POLYGONS)
    for area in areas:
        angle = rng.uniform(0, 2 * math.pi)
        rotation = np.array(
            ((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle)))
        )
        polygon = POLYGONS[names[int(rng.integers(len(names)))]] * math.sqrt(area) @ rotation.T
        low, high = -polygon.min(axis=0) + 0.01, 0.99 - polygon.max(axis=0)
        radius = float(np.hypot(*polygon.T).max())
        best, largest_gap = np.zeros(2), -math.inf
        for center in rng.uniform(low, high, (_MAX_ATTEMPTS, 2)):
            gap = min(
                (math.hypot(center[0] - x, center[1] - y) - radius - r for x, y, r in circles),
                default=1.0,
            )
            if gap > largest_gap:
                best, largest_gap = center, gap
            if gap > 0:
                break
        circles.append((float(best[0]), float(best[1]), radius))
        polygons.append(polygon + best)
    return polygons


def polygon_mask(polygon: Polygon, size: int) -> Floats:
    """The fraction of each pixel that a polygon (n, 2) covers: (size, size) float32 in [0, 1]."""
    side = size * _SUPERSAMPLE
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in polygon * side - 0.5], fill=255)
    return np.asarray(canvas.reduce(_SUPERSAMPLE), np.float32) / 255


def paint(image: Floats, mask: Floats, surface: Floats) -> Floats:
    """The image (H, W, 3) with a surface (H, W, 3) blended over it by a mask (H, W)."""
    return image + mask[:, :, None] * (surface - image)


def instances(rng: np.random.Generator, photos: PhotoPool, size: int) -> tuple[Floats, Floats]:
    """One to three bright shapes of clearly different sizes on a background.

    Returns:
        The image (size, size, 3) float32 in [0, 255], and masks (n, size, size) of coverage,
        largest first.
    """
    image = background(rng, photos, size)
    grain = texture(rng, photos, size)
    count = int(rng.choice(3, p=(0.2, 0.4, 0.4))) + 1
    areas = [float(rng.uniform(*bounds)) for bounds in SIZE_CLASSES[:count]]
    masks = np.stack([polygon_mask(polygon, size) for polygon in random_polygons(rng, areas)])
    hue = rng.random()
    for rank, mask in enumerate(masks):  # hues a third of a turn apart: neighbors differ
        image = paint(image, mask, grain * random_bright_color(rng, hue + rank / 3))
    return image, masks


def natural_scene(
    rng: np.random.Generator, photos: PhotoPool, size: int, shapes_probability: float
) -> ImageArray:
    """A sharp scene: a photograph crop of full contrast, often with shapes on it.

    Args:
        rng: Where every choice comes from.
        photos: Of the split.
        size: Side of the image.
        shapes_probability: Probability that there are shapes on the photograph.

    Returns:
        (size, size, 3) uint8.
    """
    image = photos.crop(rng, size, smallest=0.2, largest=0.7)
    low, high = np.percentile(image.mean(axis=2), (2, 98))
    target_low, target_high = rng.uniform(8, 40), rng.uniform(190, 235)
    gain = min((target_high - target_low) / max(float(high - low), 1.0), 2.0)
    image = (image - np.float32(low)) * np.float32(gain) + np.float32(target_low)
    if rng.random() < shapes_probability:
        areas = [float(rng.uniform(*bounds)) for bounds in SIZE_CLASSES[: int(rng.integers(1, 4))]]
        grain = texture(rng, photos, size)
        for polygon in random_polygons(rng, areas):
            # Dark shapes too, so that brightness does not reveal what is in front.
            brightness = 1.0 if rng.random() < 0.6 else 0.25
            surface = grain * random_bright_color(rng) * np.float32(brightness)
            image = paint(image, polygon_mask(polygon, size), surface)
    return to_image(image)


def to_image(pixels: Floats) -> ImageArray:
    """Float pixels in [0, 255] as uint8, rounded half up and clamped."""
    image: ImageArray = np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
    return image
