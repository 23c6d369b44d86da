"""The real photographs that ship inside scikit-image and scikit-learn: no download.

They are split once, here: a held-out photograph is never a texture or a background in training.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import NamedTuple

from PIL import Image

from delvm.data.sources.shapes.photo_pool import LoadedPhoto, PhotoPool, has_no_colors, shrink
from delvm.errors import UserError


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


class PackagedPhoto(NamedTuple):
    """A photograph of `TRAIN` or `HELD_OUT`, by its name; a `Photo`."""

    name: str
    weight: float

    def load(self) -> LoadedPhoto:
        """The photograph; raises UserError if its package is not installed."""
        return LoadedPhoto(load_photo(self.name), is_gray(self.name))


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


def packaged_photos(split: str) -> list[PackagedPhoto]:
    """The photographs of a split, to draw from."""
    return [PackagedPhoto(name, photo.weight) for name, photo in photos_of_split(split).items()]


@cache
def packaged_pool(split: str) -> PhotoPool:
    """The photographs that ship inside packages, of a split."""
    return PhotoPool(packaged_photos(split), "photographs inside packages")


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
    return shrink(image)


@cache
def is_gray(name: str) -> bool:
    """Whether a photograph has no colors."""
    return has_no_colors(load_photo(name))
