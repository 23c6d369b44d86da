"""Balance the tasks: how many examples each one needs, and how augmented copies are made."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
from PIL import Image

from delvm.data.types import Example, ImageArray
from delvm.errors import UserError
from delvm.tasks.derived import LUMA

MAX_DEGREES = 10.0
MAX_ZOOM = 1.3
MAX_JITTER = 0.3  # of brightness, contrast and saturation: up or down by this fraction
# An image of at most this many colors is taken for labels (masks, stick figures).
MAX_LABEL_COLORS = 64


class Jitter(Enum):
    """Which images of a copy get color jitter: none, the input only, or all of them alike."""

    none = "none"
    input = "input"
    all = "all"


class BalanceMode(Enum):
    """How tasks with few examples are brought up to those with many."""

    none = "none"
    oversample = "oversample"
    augment = "augment"


@dataclass
class BalanceConfig:
    """How the training tasks are balanced (DeLVM, arXiv 2402.04841: its first lever).

    Attributes:
        mode: none (as they are), oversample (plain repeats) or augment (copies under new geometry).
        examples_per_task: Examples each task is brought up to; None = the largest task's count.
        jitter: Which images of an augmented copy get color jitter too.
    """

    mode: BalanceMode = BalanceMode.none
    examples_per_task: int | None = None
    jitter: Jitter = Jitter.none

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        if self.examples_per_task is None or self.examples_per_task >= 1:
            return []
        return [f"examples_per_task={self.examples_per_task} is below 1: set it to 1 or more"]


def target_counts(counts: dict[str, int], balance: BalanceConfig) -> dict[str, int]:
    """Examples of each task after balancing.

    Item i of a task is example i % count in copy i // count. A task that already has more than
    the target keeps all its examples.

    Raises:
        UserError: The target is below 1, or a task has no example to copy.
    """
    if balance.mode is BalanceMode.none:
        return dict(counts)
    target = balance.examples_per_task
    if target is not None and target < 1:
        raise UserError(
            f"balance.examples_per_task={target} is below 1: set balance.examples_per_task=null"
        )
    for task, count in counts.items():
        if count < 1:
            raise UserError(f"task '{task}' has {count} pairs: nothing to copy")
    target = target or max(counts.values(), default=0)
    return {task: max(count, target) for task, count in counts.items()}


def augment(
    example: Example, seed: int, aug_index: int, *, flip: bool, jitter: Jitter = Jitter.none
) -> Example:
    """An augmented copy of an example; all its images get the same random geometry.

    Copy 0 is the example itself. Any other copy is mirrored (with probability 1/2, where allowed),
    zoomed in, shifted and rotated a little; the amounts depend on (seed, key, aug_index) alone.
    What is outside the image is filled by reflection.

    Args:
        example: Images of one size.
        seed: Seed of the corpus.
        aug_index: Number of the copy, from 0.
        flip: Whether a mirrored example is still one of this task.
        jitter: Which images also get a random change of brightness, contrast and saturation.

    Returns:
        An example of the same size, with `aug_index` in its key.
    """
    if aug_index == 0:
        return example
    digest = hashlib.blake2b(f"{seed}/{example.key}/{aug_index}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    height, width = example.input.shape[:2]
    matrix = _random_affine(rng, width, height, flip)
    images = [_warp(image, matrix) for image in example.images]
    if jitter is not Jitter.none:
        recolor = _random_color_jitter(rng)
        count = 1 if jitter is Jitter.input else len(images)
        images[:count] = map(recolor, images[:count])
    return replace(example, key=f"{example.key}-{aug_index}", images=tuple(images))


def _random_affine(
    rng: np.random.Generator, width: int, height: int, flip: bool
) -> npt.NDArray[np.float64]:
    """A (2, 3) map from a point in the copy to a point in the original, in pixels."""
    mirror = -1.0 if rng.random() < 0.5 and flip else 1.0
    angle = math.radians(rng.uniform(-MAX_DEGREES, MAX_DEGREES))
    scale = 1 / rng.uniform(1.0, MAX_ZOOM)
    # The crop that is zoomed into may be anywhere inside the original.
    slack = np.array([width, height]) * (1 - scale) / 2
    center = np.array([width, height]) / 2
    shift = rng.uniform(-1, 1, size=2) * slack
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
    return np.column_stack([linear, center + shift - linear @ center])


def _random_color_jitter(rng: np.random.Generator) -> Callable[[ImageArray], ImageArray]:
    """A random change of brightness, contrast and saturation for images (H, W, 3) uint8."""
    brightness, contrast, saturation = rng.uniform(1 - MAX_JITTER, 1 + MAX_JITTER, 3)

    def recolor(image: ImageArray) -> ImageArray:
        values = image.astype(np.float32) * brightness
        values = values.mean() + contrast * (values - values.mean())
        gray = values @ LUMA
        values = gray[..., None] + saturation * (values - gray[..., None])
        jittered: ImageArray = (np.clip(values, 0, 255) + 0.5).astype(np.uint8)
        return jittered

    return recolor


def _warp(image: ImageArray, matrix: npt.NDArray[np.float64]) -> ImageArray:
    """Image (H, W, 3) resampled through an affine map, reflected at its borders."""
    height, width = image.shape[:2]
    margin = max(1, max(height, width) // 4)  # a rotation of 10 degrees reaches 0.09 beyond
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    (a, b, c), (d, e, f) = matrix
    # Interpolating between two labels would invent a third, so labels take the nearest pixel.
    colors = image.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    labels = np.unique(colors).size <= MAX_LABEL_COLORS
    warped = Image.fromarray(padded).transform(
        (width, height),
        Image.Transform.AFFINE,
        (a, b, c + margin, d, e, f + margin),
        Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC,
    )
    return np.asarray(warped)
