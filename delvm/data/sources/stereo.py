"""Depth without a download: the stereo pair inside scikit-image, with its true disparity.

Scharstein et al., "High-Resolution Stereo Datasets with Subpixel-Accurate Ground Truth" (Middlebury
2014), the scene Motorcycle.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from delvm.data.datasets.sampler import seeded_rng
from delvm.data.resizing import ResizeMode, to_square_array
from delvm.data.sources.generated_base import GeneratedPairs
from delvm.data.types import ImageArray
from delvm.errors import UserError
from delvm.tasks import depth

# Disparity is inversely proportional to depth: the nearest is taken for `depth.NEAR`.
_MAX_DISPARITY = 60.0
_TRAIN_COLUMNS, _CROP_SIDES = 0.6, (120, 260)


@dataclass
class Stereo(GeneratedPairs):
    """Random squares of one photograph and their depth: train on its left, val and test right.

    It is a check of everything from depth to its score, and too little to learn depth from.
    """

    name: ClassVar[str] = "stereo"
    least_pairs: ClassVar[int] = 1
    size: int = 64
    num_train: int = 1000
    num_val: int = 64
    num_test: int = 64

    def task_names(self) -> list[str]:
        """Depth alone."""
        return [depth.TASK.name]

    def pair(self, split: str, task: str, index: int) -> tuple[ImageArray, ImageArray]:
        """A square of the photograph, and its depth."""
        photo, target = stereo_scene()
        width, height = photo.size
        border = int(_TRAIN_COLUMNS * width)
        low, high = (0, border) if split == "train" else (border, width)
        rng = seeded_rng(self.seed, f"stereo {split}", index)
        side = int(rng.integers(_CROP_SIDES[0], _CROP_SIDES[1] + 1))
        left = int(rng.integers(low, high - side + 1))
        top = int(rng.integers(0, height - side + 1))
        box = (left, top, left + side, top + side)
        return (
            to_square_array(photo.crop(box), self.size, ResizeMode.short_side),
            to_square_array(target.crop(box), self.size, ResizeMode.short_side, labels=True),
        )


@cache
def stereo_scene() -> tuple[Image.Image, Image.Image]:
    """The left photograph, and its depth as `delvm.tasks.depth` renders it.

    Raises:
        UserError: scikit-image is not installed, or no longer contains them.
    """
    folder = resources.files("skimage") / "data"
    try:
        with (folder / "motorcycle_left.png").open("rb") as file:
            photo = Image.open(file).convert("RGB")
        with (folder / "motorcycle_disp.npz").open("rb") as file:
            disparity: npt.NDArray[np.float32] = np.load(file, allow_pickle=False)["arr_0"]
    except (ModuleNotFoundError, FileNotFoundError, KeyError):
        raise UserError(
            "the stereo pair 'motorcycle' is not in package scikit-image: pip install scikit-image"
        ) from None
    known = np.isfinite(disparity) & (disparity > 0)
    distance = np.full(disparity.shape, np.nan)
    distance[known] = depth.NEAR * _MAX_DISPARITY / disparity[known]
    return photo, Image.fromarray(depth.render(distance))
