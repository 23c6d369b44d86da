"""Images whose values are labels, such as masks: their colors are exact, and never mixed."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from delvm.data.image_io import convert_to_rgb

# More gray levels than this, on fewer pixels than are white, are soft edges and not ids.
MAX_ENCLOSED_IDS = 8
Palette = Sequence[tuple[int, int, int]]


def labels_to_rgb(
    image: Image.Image, palette: Palette, video_ids: Sequence[int] = ()
) -> Image.Image:
    """A label image of any mode as RGB, not turned.

    Images in color and with a palette keep their colors, which an ICC profile does not change.
    Integers are ids, and become colors: 0 is black, and id i is color i - 1 of the palette. If an
    id is above the number of colors, as ids of instances are, the ids of the image are numbered in
    their order first. Gray of 8 bits is read as ids too, unless it is black and white, perhaps with
    soft edges, has more values than there are colors, or comes from a JPEG, which keeps no ids.

    Args:
        image: its values are colors or ids.
        palette: of the ids from 1 on.
        video_ids: those in all frames of a video, so that each has the same color in every frame.

    Raises:
        ValueError: negative or fractional values, or more different ids than colors.
    """
    if image.mode == "F":
        raise ValueError("its values are fractions, not labels")
    if image.mode.startswith("I"):
        return _ids_to_rgb(np.asarray(image).astype(np.int64), palette, video_ids)
    if image.mode == "L" and image.format != "JPEG":
        counts = np.bincount(np.asarray(image).ravel(), minlength=256)
        if np.count_nonzero(counts[1:]) <= len(palette) and not _is_black_and_white(counts):
            return _ids_to_rgb(np.asarray(image).astype(np.int64), palette, video_ids)
    if "icc_profile" in image.info:
        image = image.copy()
        del image.info["icc_profile"]
    return convert_to_rgb(image)


def _is_black_and_white(counts: npt.NDArray[np.int64]) -> bool:
    """Whether gray is a mask, given the number of pixels of each level (256,).

    Soft edges have many levels and few pixels. A border of 255 around objects, as in Pascal VOC,
    may cover more pixels than they do, but there are only a few of them.
    """
    between = counts[1:255]
    few_pixels = between.sum() < counts[255] and counts[0] > 0
    return not between.any() or bool(few_pixels and np.count_nonzero(between) > MAX_ENCLOSED_IDS)


def _ids_to_rgb(
    ids: npt.NDArray[np.int64], palette: Palette, video_ids: Sequence[int]
) -> Image.Image:
    values = np.union1d(ids, np.asarray(video_ids, np.int64))
    if values[0] < 0:
        raise ValueError(f"label {values[0]} is negative")
    if values[-1] > len(palette):
        values = values[values > 0]
        if len(values) > len(palette):
            raise ValueError(f"{len(values)} labels, and the task has {len(palette)} colors")
        ids = np.where(ids > 0, np.searchsorted(values, ids) + 1, 0)
    colors = np.asarray([(0, 0, 0), *palette], np.uint8)
    return Image.fromarray(colors[ids])
