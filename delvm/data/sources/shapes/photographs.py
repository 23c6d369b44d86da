"""The real photographs that ship inside scikit-image and scikit-learn: no download.

They are split once, here: what is held out is never a texture or a background in training.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from PIL import Image

from delvm.errors import UserError

_LONGEST_SHORT_SIDE = 512  # crops are small; a larger copy would only cost time and memory


@dataclass(frozen=True)
class Photograph:
    """Where a photograph lies: a package, a path inside it; and how often it is drawn."""

    package: str
    path: str
    weight: float = 1.0


def _skimage(file: str, weight: float = 1.0) -> Photograph:
    return Photograph("skimage", f"data/{file}", weight)


def _sklearn(file: str, weight: float = 1.0) -> Photograph:
    return Photograph("sklearn", f"datasets/images/{file}", weight)


# Colour scenes are drawn more often than grey textures.
TRAINING = {
    "astronaut": _skimage("astronaut.png", 3),
    "chelsea": _skimage("chelsea.png", 3),
    "china": _sklearn("china.jpg", 3),
    "motorcycle": _skimage("motorcycle_left.png", 3),
    "ihc": _skimage("ihc.png", 2),
    "retina": _skimage("retina.jpg"),
    "camera": _skimage("camera.png", 2),
    "brick": _skimage("brick.png", 0.5),
    "grass": _skimage("grass.png", 0.5),
    "coins": _skimage("coins.png"),
    "cell": _skimage("cell.png"),
    "page": _skimage("page.png"),
}
HELD_OUT = {
    "coffee": _skimage("coffee.png", 3),
    "flower": _sklearn("flower.jpg", 3),
    "rocket": _skimage("rocket.jpg", 3),
    "hubble": _skimage("hubble_deep_field.jpg", 0.5),
    "moon": _skimage("moon.png"),
    "gravel": _skimage("gravel.png", 0.5),
}


def of_split(split: str) -> dict[str, Photograph]:
    """The photographs a split may use: "train" its own, "val" and "test" the held-out ones."""
    return TRAINING if split == "train" else HELD_OUT


@cache
def load(name: str) -> Image.Image:
    """A photograph by name, as RGB, its short side at most 512.

    Raises:
        UserError: the package that carries it is not installed, or no longer carries it.
    """
    photograph = {**TRAINING, **HELD_OUT}[name]
    package = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[photograph.package]
    try:
        with (resources.files(photograph.package) / photograph.path).open("rb") as file:
            picture = Image.open(file).convert("RGB")
    except (ModuleNotFoundError, FileNotFoundError):
        raise UserError(
            f"photograph '{name}' not found in package {package}: pip install {package}"
        ) from None
    short = min(picture.size)
    if short > _LONGEST_SHORT_SIDE:
        scale = _LONGEST_SHORT_SIDE / short
        width, height = (round(scale * side) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    return picture


@cache
def is_grey(name: str) -> bool:
    """Whether a photograph has no colours of its own."""
    pixels = np.asarray(load(name).resize((64, 64)), np.int16)
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).max() <= 4)


def crop(
    rng: np.random.Generator,
    split: str,
    size: int,
    *,
    smallest: float = 0.25,
    largest: float = 1.0,
    tint_grey: float = 0.7,
) -> np.ndarray:
    """A random square crop of a random photograph, resized, jittered, perhaps mirrored.

    Args:
        rng: Where every choice comes from.
        split: "train", "val" or "test".
        size: Side of the result.
        smallest: Smallest side of the crop, as a share of the photograph's short side.
        largest: Largest side of the crop.
        tint_grey: How often a grey photograph is given a tint.

    Returns:
        (size, size, 3) float32 in [0, 255].
    """
    names, chances = _draw_table(split)
    name = names[int(np.searchsorted(chances, rng.random(), side="right"))]
    picture = load(name)
    side = rng.uniform(smallest, largest) * min(picture.size)
    left = rng.uniform(0, picture.width - side)
    top = rng.uniform(0, picture.height - side)
    small = picture.resize(
        (size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side), 2.0
    )
    pixels = np.asarray(small, np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    gains = rng.uniform(0.85, 1.15, 3)
    if is_grey(name) and rng.random() < tint_grey:
        gains = rng.uniform(0.6, 1.1, 3)
    return np.clip(pixels * (rng.uniform(0.9, 1.1) * gains).astype(np.float32), 0, 255)


@cache
def _draw_table(split: str) -> tuple[list[str], np.ndarray]:
    """Names and cumulative chances."""
    photographs = of_split(split)
    weights = np.array([photograph.weight for photograph in photographs.values()])
    return list(photographs), np.cumsum(weights) / weights.sum()
