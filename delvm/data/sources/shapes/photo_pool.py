"""The photographs of a split, from which crops are sampled at random."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from delvm.errors import UserError

MAX_SHORT_SIDE = 512  # crops are small; a larger copy would only cost time and memory
_MAX_DRAWS = 100  # of photographs that cannot be read, in a row


class LoadedPhoto(NamedTuple):
    """A photograph in memory.

    Attributes:
        image: in mode RGB, its short side at most `MAX_SHORT_SIDE`.
        gray: whether it has no colors.
    """

    image: Image.Image
    gray: bool


class Photo(Protocol):
    """A photograph on disk."""

    @property
    def weight(self) -> float:
        """How often it is sampled, relative to the others."""
        ...

    def load(self) -> LoadedPhoto | None:
        """The photograph; None if its file cannot be read, which has been recorded."""
        ...


class PhotoPool:
    """The photographs of a split, and how often each is sampled."""

    def __init__(self, photos: Sequence[Photo], name: str) -> None:
        """Set up the distribution; nothing is read.

        Args:
            photos: at least one.
            name: what to call them in messages.
        """
        self.photos, self.name = photos, name
        weights = np.array([photo.weight for photo in photos])
        self._cumulative = np.cumsum(weights) / weights.sum()

    def draw(self, rng: np.random.Generator) -> LoadedPhoto:
        """A random photograph; another one where a file cannot be read.

        Raises:
            UserError: many in a row cannot be read.
        """
        for _ in range(_MAX_DRAWS):
            number = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
            loaded = self.photos[number].load()
            if loaded is not None:
                return loaded
        raise UserError(
            f"{self.name}: {_MAX_DRAWS} photographs sampled one after the other cannot be read, of "
            f"{len(self.photos):,}: set source.photographs to a directory of readable ones"
        )

    def crop(
        self,
        rng: np.random.Generator,
        size: int,
        *,
        smallest: float = 0.25,
        largest: float = 1.0,
        tint_gray: float = 0.7,
    ) -> npt.NDArray[np.float32]:
        """A random square crop of a random photograph: resized, color-jittered, maybe flipped.

        Args:
            rng: Where every choice comes from.
            size: Side of the result.
            smallest: Smallest side of the crop, as a fraction of the photograph's short side.
            largest: Largest side of the crop.
            tint_gray: Probability that a gray photograph is tinted.

        Returns:
            (size, size, 3) float32 in [0, 255].
        """
        photo, gray = self.draw(rng)
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
        if gray and rng.random() < tint_gray:
            gains = rng.uniform(0.6, 1.1, 3)
        return np.clip(pixels * (rng.uniform(0.9, 1.1) * gains).astype(np.float32), 0, 255)


def shrink(image: Image.Image) -> Image.Image:
    """The image with a short side of at most `MAX_SHORT_SIDE`."""
    short = min(image.size)
    if short <= MAX_SHORT_SIDE:
        return image
    width, height = (round(MAX_SHORT_SIDE / short * side) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def has_no_colors(image: Image.Image) -> bool:
    """Whether an RGB image is gray."""
    pixels = np.asarray(image.resize((64, 64)), np.int16)
    return bool((pixels.max(axis=2) - pixels.min(axis=2)).max() <= 4)
