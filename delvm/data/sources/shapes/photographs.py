"""The real photographs that ship inside scikit-image and scikit-learn: no download.

They are split once, here: a held-out photograph is never a texture or a background in training.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
from PIL import Image

from delvm.errors import UserError

_MAX_SHORT_SIDE = 512  # crops are small; a larger copy would only cost time and memory


@dataclass(frozen=True)
class Photograph:
    """A photograph inside a package.

    Attributes:
        package: that contains it.
        path: inside the package.
        weight: how often it is sampled, relative to the others.
    """

    package: str
    path: str
    weight: float = 1.0


def _skimage(file: str, weight: float = 1.0) -> Photograph:
    return Photograph("skimage", f"data/{file}", weight)


def _sklearn(file: str, weight: float = 1.0) -> Photograph:
    return Photograph("sklearn", f"datasets/images/{file}", weight)


# Color scenes are sampled more often than gray textures.
TRAIN = {
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


def photos_of_split(split: str) -> dict[str, Photograph]:
    """The photographs of a split: "train" has its own, "val" and "test" the held-out ones."""
    return TRAIN if split == "train" else HELD_OUT


@cache
def load_photo(name: str) -> Image.Image:
    """A photograph by name, as RGB, its short side at most 512.

    Raises:
        UserError: its package is not installed, or no longer contains it.
    """
    photo = {**TRAIN, **HELD_OUT}[name]
    package = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[photo.package]
    try:
        with (resources.files(photo.package) / photo.path).open("rb") as file:
            image = Image.open(file).convert("RGB")
    except (ModuleNotFoundError, FileNotFoundError):
        raise UserError(
            f"photograph '{name}' not found in package {package}: pip install {package}"
        ) from None
    short = min(image.size)
    if short > _MAX_SHORT_SIDE:
        scale = _MAX_SHORT_SIDE / short
        width, height = (round(scale * side) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return image


@cache
def is_gray(name: str) -> bool:
    """Whether a photograph has no colors."""
    pixels = np.asarray(load_photo(name).resize((64, 64)), np.int16)
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).max() <= 4)


def crop(
    rng: np.random.Generator,
    split: str,
    size: int,
    *,
    smallest: float = 0.25,
    largest: float = 1.0,
    tint_gray: float = 0.7,
) -> npt.NDArray[np.float32]:
    """A random square crop of a random photograph, resized, color-jittered, flipped half the time.

    Args:
        rng: Where every choice comes from.
        split: "train", "val" or "test".
        size: Side of the result.
        smallest: Smallest side of the crop, as a fraction of the photograph's short side.
        largest: Largest side of the crop.
        tint_gray: Probability that a gray photograph is tinted.

    Returns:
        (size, size, 3) float32 in [0, 255].
    """
    names, cdf = _cumulative_weights(split)
    name = names[int(np.searchsorted(cdf, rng.random(), side="right"))]
    photo = load_photo(name)
    side = rng.uniform(smallest, largest) * min(photo.size)
    left = rng.uniform(0, photo.width - side)
    top = rng.uniform(0, photo.height - side)
    resized = photo.resize(
        (size, size), Image.Resampling.BILINEAR, (left, top, left + side, top + side), 2.0
    )
    pixels = np.asarray(resized, np.float32)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    gains = rng.uniform(0.85, 1.15, 3)
    if is_gray(name) and rng.random() < tint_gray:
        gains = rng.uniform(0.6, 1.1, 3)
    return np.clip(pixels * (rng.uniform(0.9, 1.1) * gains).astype(np.float32), 0, 255)


@cache
def _cumulative_weights(split: str) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Names, and the cumulative distribution of their weights."""
    photos = photos_of_split(split)
    weights = np.array([photo.weight for photo in photos.values()])
    return list(photos), np.cumsum(weights) / weights.sum()
