"""Pictures made of photograph crops: quiet backdrops, bright shapes over them, clean scenes.

Positions and sizes are shares of the picture's side, so every size looks the same.
"""

import colorsys
import math

import numpy as np
from PIL import Image, ImageDraw

from delvm.data.sources.shapes import photographs

_SUPERSAMPLE = 4

# Area of an instance, as a share of the picture, by its rank of size. The classes are far
# apart, so that one instance alone shows its rank.
SIZE_CLASSES = ((0.15, 0.20), (0.062, 0.08), (0.026, 0.034))


def _regular(corners: int, inner: float = 1.0, turn: float = 0.0) -> np.ndarray:
    """Corners of a regular polygon, or of a star when every second one lies further in."""
    count = corners if inner == 1.0 else 2 * corners
    radius = np.where(np.arange(count) % 2, inner, 1.0)
    angle = 2 * math.pi * np.arange(count) / count - math.pi / 2 + turn
    return np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)


def _area(outline: np.ndarray) -> float:
    """Area of a polygon (n, 2)."""
    x, y = outline.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _unit(outline: np.ndarray) -> np.ndarray:
    """The outline scaled to an area of one."""
    return outline / math.sqrt(_area(outline))


_CROSS = np.array(
    [(1, 3), (1, 1), (3, 1), (3, -1), (1, -1), (1, -3)], float
)  # the right half, clockwise from below

OUTLINES = {
    "circle": _unit(_regular(36)),
    "square": _unit(_regular(4, turn=math.pi / 4)),
    "triangle": _unit(_regular(3)),
    "star": _unit(_regular(5, inner=0.52)),
    "hexagon": _unit(_regular(6)),
    "cross": _unit(np.concatenate((_CROSS, -_CROSS))),
    "bar": _unit(_regular(4, turn=math.pi / 4) * (1.0, 0.55)),
}


def backdrop(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    """A photograph crop, dimmed and paled, that bright things stand out from.

    Returns:
        (size, size, 3) float32 in [0, 255].
    """
    crop = photographs.crop(rng, split, size)
    luma = crop.mean(axis=2, keepdims=True)
    return (luma + 0.45 * (crop - luma)) * np.float32(rng.uniform(0.34, 0.5))


def texture(rng: np.random.Generator, split: str, size: int) -> np.ndarray:
    """Brightness of a photograph crop, evened out to about 0.55 to 1: (size, size, 1) float32."""
    luma = photographs.crop(rng, split, size, smallest=0.5).mean(axis=2, keepdims=True)
    spread = max(float(luma.std()), 8.0)
    return np.clip(0.85 + 0.13 * (luma - luma.mean()) / spread, 0.55, 1.0)


def bright_tint(rng: np.random.Generator, hue: float | None = None) -> np.ndarray:
    """A bright, soft colour of this hue (turns of the wheel) or any: (3,) float32 in [0, 255].

    Never as pure as the colours of masks and stick figures: an input must not pass for a target.
    """
    turn = rng.random() if hue is None else hue % 1.0
    colour = colorsys.hsv_to_rgb(turn, rng.uniform(0.3, 0.52), 1.0)
    return np.float32(255) * np.asarray(colour, np.float32)


def outlines(rng: np.random.Generator, areas: list[float]) -> list[np.ndarray]:
    """Random shapes of these areas, placed with as little overlap as a few tries allow.

    Returns:
        One polygon (n, 2) an area, in the order given, inside the unit square.
    """
    placed: list[tuple[float, float, float]] = []
    shapes = []
    names = list(OUTLINES)
    for area in areas:
        turn = rng.uniform(0, 2 * math.pi)
        spin = np.array(((math.cos(turn), -math.sin(turn)), (math.sin(turn), math.cos(turn))))
        shape = OUTLINES[names[int(rng.integers(len(names)))]] * math.sqrt(area) @ spin.T
        low, high = -shape.min(axis=0) + 0.01, 0.99 - shape.max(axis=0)
        reach = float(np.hypot(*shape.T).max())
        best, most = np.zeros(2), -math.inf
        for centre in rng.uniform(low, high, (24, 2)):
            gap = min(
                (math.hypot(centre[0] - x, centre[1] - y) - reach - r for x, y, r in placed),
                default=1.0,
            )
            if gap > most:
                best, most = centre, gap
            if gap > 0:
                break
        placed.append((float(best[0]), float(best[1]), reach))
        shapes.append(shape + best)
    return shapes


def coverage(outline: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel a polygon (n, 2) covers: (size, size) float32 in [0, 1]."""
    side = size * _SUPERSAMPLE
    canvas = Image.new("L", (side, side))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in outline * side - 0.5], fill=255)
    return np.asarray(canvas.reduce(_SUPERSAMPLE), np.float32) / 255


def paint(picture: np.ndarray, mask: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) with a surface (H, W, 3) laid over it where the mask (H, W) covers."""
    return picture + mask[:, :, None] * (surface - picture)


def instances(rng: np.random.Generator, split: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One to three bright shapes of clearly different sizes over a backdrop.

    Returns:
        The picture (size, size, 3) float32 in [0, 255], and masks (n, size, size) of coverage,
        largest first.
    """
    picture = backdrop(rng, split, size)
    grain = texture(rng, split, size)
    count = int(rng.choice(3, p=(0.2, 0.4, 0.4))) + 1
    areas = [float(rng.uniform(*bounds)) for bounds in SIZE_CLASSES[:count]]
    masks = np.stack([coverage(outline, size) for outline in outlines(rng, areas)])
    hue = rng.random()
    for rank, mask in enumerate(masks):  # hues a third of the wheel apart: neighbours differ
        picture = paint(picture, mask, grain * bright_tint(rng, hue + rank / 3))
    return picture, masks


def clean(rng: np.random.Generator, split: str, size: int, shapes: float) -> np.ndarray:
    """A sharp scene: a photograph crop of full contrast, often with shapes on it.

    Args:
        rng: Where every choice comes from.
        split: "train", "val" or "test".
        size: Side of the picture.
        shapes: How often shapes lie on the photograph.

    Returns:
        (size, size, 3) uint8.
    """
    picture = photographs.crop(rng, split, size, smallest=0.2, largest=0.7)
    low, high = np.percentile(picture.mean(axis=2), (2, 98))
    wanted_low, wanted_high = rng.uniform(8, 40), rng.uniform(190, 235)
    gain = min((wanted_high - wanted_low) / max(float(high - low), 1.0), 2.0)
    picture = (picture - np.float32(low)) * np.float32(gain) + np.float32(wanted_low)
    if rng.random() < shapes:
        areas = [float(rng.uniform(*bounds)) for bounds in SIZE_CLASSES[: int(rng.integers(1, 4))]]
        grain = texture(rng, split, size)
        for outline in outlines(rng, areas):
            # Dark shapes too, so that bright is not always in front.
            shade = 1.0 if rng.random() < 0.6 else 0.25
            surface = grain * bright_tint(rng) * np.float32(shade)
            picture = paint(picture, coverage(outline, size), surface)
    return to_picture(picture)


def to_picture(pixels: np.ndarray) -> np.ndarray:
    """Float pixels in [0, 255] as uint8, rounded half up and clamped."""
    return np.clip(pixels + 0.5, 0, 255).astype(np.uint8)
