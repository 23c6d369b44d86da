"""Images whose values are labels, such as masks: their colors are exact, and never mixed."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from delvm.data.image_io import convert_to_rgb

Palette = Sequence[tuple[int, int, int]]


def labels_to_rgb(
    image: Image.Image, palette: Palette, video_ids: Sequence[int] = ()
) -> Image.Image:
    """A label image of any mode as RGB, not turned.

    Images in color and with a palette keep their colors, which an ICC profile does not change.
    Integers are ids, and become colors: 0 is black, and id i is color i - 1 of the palette. If an
    id is above the number of colors, as ids of instances are, the ids of the image are numbered in
    their order first. Gray of 8 bits is read as ids too, unless it is black and white, has more
    values than there are colors, or comes from a JPEG, which keeps no ids.

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
        values = set(np.unique(np.asarray(image)).tolist())
        if not values <= {0, 255} and len(values - {0}) <= len(palette):
            return _ids_to_rgb(np.asarray(image).astype(np.int64), palette, video_ids)
    if "icc_profile" in image.info:
        image = image.copy()
        del image.info["icc_profile"]
    return convert_to_rgb(image)


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
