"""How an image of any shape becomes a square: the geometry, for pixels, labels and points alike.

short_side   the short side becomes `size`, and the center is cropped: DeLVM's preprocessing, equal
             to torchvision's Resize(size) and CenterCrop(size) on PIL images (bilinear)
squash       both sides become `size`, whatever the shape (bicubic), as in LVM
pad          the long side becomes `size` (bilinear), and the rest is black
rounded      as short_side in versions before `resize` was a setting: the long side is rounded, not
             truncated, and the crop begins at the pixel below the middle
"""

from enum import StrEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from delvm.data.types import ImageArray
from delvm.errors import UserError, did_you_mean

# A strip that would have more pixels than this when resized by its short side is cropped first, to
# MAX_ASPECT times its short side; resizing it completely would need memory without bound.
MAX_RESIZED_PIXELS = 80_000_000
MAX_ASPECT = 16


class ResizeMode(StrEnum):
    """How an image of any shape becomes a square."""

    short_side = "short_side"
    squash = "squash"
    pad = "pad"
    rounded = "rounded"


def parse_resize_mode(value: str) -> ResizeMode:
    """The mode of that name.

    Raises:
        UserError: there is none; the message gives the closest name.
    """
    if value not in list(ResizeMode):
        raise UserError(f"resize={value} is unknown: {did_you_mean(value, list(ResizeMode))}")
    return ResizeMode(value)


def same_shape(first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether images of two sizes have the same ratio of width to height, up to a pixel."""
    (width, height), (other_width, other_height) = first, second
    return abs(width * other_height - other_width * height) <= max(*first, *second)


class Placement(NamedTuple):
    """Where an image goes in a square: it is resized, and the square is cut from the result.

    Attributes:
        source: left, top, right and bottom of the part of the image that is resized, in pixels.
        resized: width and height of that part afterwards.
        corner: left and top of the square in the resized part; below 0 the square is black there.
    """

    source: tuple[int, int, int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]


def placement(width: int, height: int, size: int, mode: ResizeMode) -> Placement:
    """Where an image of width x height pixels goes in a square of size x size pixels."""
    left, top, right, bottom = 0, 0, width, height
    if mode is ResizeMode.squash:
        return Placement((left, top, right, bottom), (size, size), (0, 0))
    short, long = min(width, height), max(width, height)
    if mode is ResizeMode.pad:
        resized_width, resized_height = (
            max(1, round(side * size / long)) for side in (width, height)
        )
        corner = ((resized_width - size) // 2, (resized_height - size) // 2)
        return Placement((left, top, right, bottom), (resized_width, resized_height), corner)
    limit = MAX_ASPECT * short
    exact = size * (size * long // short) <= MAX_RESIZED_PIXELS
    if long > limit and (mode is ResizeMode.rounded or not exact):
        left, top = ((side - min(side, limit)) // 2 for side in (width, height))
        right, bottom = left + min(width, limit), top + min(height, limit)
        width, height = right - left, bottom - top
    if mode is ResizeMode.rounded:
        resized_width, resized_height = (
            max(size, round(side * size / short)) for side in (width, height)
        )
        corner = ((resized_width - size) // 2, (resized_height - size) // 2)
        return Placement((left, top, right, bottom), (resized_width, resized_height), corner)
    # torchvision truncates the long side, and rounds the corner half to even.
    resized_width, resized_height = (
        size if side == short else int(size * side / short) for side in (width, height)
    )
    corner = (round((resized_width - size) / 2.0), round((resized_height - size) / 2.0))
    return Placement((left, top, right, bottom), (resized_width, resized_height), corner)


def to_square(
    image: Image.Image,
    size: int,
    mode: ResizeMode = ResizeMode.short_side,
    *,
    labels: bool = False,
) -> Image.Image:
    """An image as a square.

    Args:
        image: of any mode and shape.
        size: side of the square in pixels.
        mode: how.
        labels: whether its values are labels, or colors that stand for labels: each pixel is then
            the nearest one, since a mixture of two labels would be a third.

    Returns:
        An image of size x size pixels in the same mode.
    """
    source, resized, (left, top) = placement(*image.size, size, mode)
    if source != (0, 0, *image.size):
        image = image.crop(source)
    smooth = Image.Resampling.BICUBIC if mode is ResizeMode.squash else Image.Resampling.BILINEAR
    image = image.resize(resized, Image.Resampling.NEAREST if labels else smooth)
    return image.crop((left, top, left + size, top + size))


def resize_center_crop(image: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size` (bilinear, antialiased) and crop the center.

    This is DeLVM's preprocessing (arXiv 2402.04841), to the pixel: torchvision's Resize(size) and
    CenterCrop(size), as `to_square` has it by default.

    Returns:
        An image of size x size pixels.
    """
    return to_square(image, size)


def to_square_array(
    image: Image.Image, size: int, mode: ResizeMode, *, labels: bool = False
) -> ImageArray:
    """`to_square` as an array (size, size, 3), of an RGB image."""
    return np.asarray(to_square(image, size, mode, labels=labels))


def place_points(
    points: npt.NDArray[np.float64], width: int, height: int, size: int, mode: ResizeMode
) -> npt.NDArray[np.float64]:
    """Where points of an image are in the square that is made of it.

    Args:
        points: (..., 2) x and y in pixels.
        width, height: of the image.
        size: side of the square in pixels.
        mode: how the square is made.

    Returns:
        (..., 2) as fractions of the square's side, outside of [0, 1] for points that are cut off.
    """
    source, resized, corner = placement(width, height, size, mode)
    start = np.asarray(source[:2], float)
    scale = np.asarray(resized) / (np.asarray(source[2:]) - start)
    placed: npt.NDArray[np.float64] = ((points - start) * scale - corner) / size
    return placed
