"""Balance the tasks: how many copies each one needs, and how a copy is made."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
from PIL import Image

from delvm.data.types import Example
from delvm.errors import UserError
from delvm.tasks.derived import LUMA

MAX_DEGREES = 10.0
MAX_ZOOM = 1.3
MAX_JITTER = 0.3  # of brightness, contrast and saturation, each up or down by this share
# A picture of at most this many colours is taken for labels (masks, stick figures).
LABEL_COLOURS = 64


class Jitter(Enum):
    """Which pictures of a copy get new colours: none, the input alone, or all of them alike."""

    none = "none"
    input = "input"
    all = "all"


class Balance(Enum):
    """How tasks with few pairs catch up with those that have many."""

    unbalanced = "unbalanced"
    resample = "resample"
    augment = "augment"


@dataclass
class BalanceConfig:
    """How the training tasks are balanced (DeLVM, arXiv 2402.04841: its first lever).

    Attributes:
        mode: unbalanced (as they are), resample (plain repeats) or augment (new copies by
            geometry).
        target: Examples each task is brought up to; None is the largest task's count.
        jitter: Whether copies made by augment get other colours too.
    """

    mode: Balance = Balance.unbalanced
    target: int | None = None
    jitter: Jitter = Jitter.none


def plan(counts: dict[str, int], balance: BalanceConfig) -> dict[str, int]:
    """Pairs of each task after balancing.

    Item i of a task is pair i % count in copy i // count. A task that already has more than
    the target keeps all its pairs.

    Raises:
        UserError: The target is below 1, or a task has no pair to copy.
    """
    if balance.mode is Balance.unbalanced:
        return dict(counts)
    if balance.target is not None and balance.target < 1:
        raise UserError(f"balance.target={balance.target} is below 1: set balance.target=null")
    for task, count in counts.items():
        if count < 1:
            raise UserError(f"task '{task}' has {count} pairs: nothing to copy")
    target = balance.target or max(counts.values(), default=0)
    return {task: max(count, target) for task, count in counts.items()}


def augment(
    example: Example, seed: int, copy: int, *, flip: bool, jitter: Jitter = Jitter.none
) -> Example:
    """A copy of an example under new geometry, the same for all its pictures.

    Copy 0 is the example itself. Any other is mirrored (one time in two, where allowed), zoomed
    into, shifted and rotated a little, by amounts that depend on (seed, key, copy) alone. What
    lies outside the picture is its reflection.

    Args:
        example: Pictures of one size.
        seed: Seed of the corpus.
        copy: Number of the copy, from 0.
        jitter: Which pictures also get other colours: a little brighter or darker, of other
            contrast and saturation.
        flip: Whether a mirrored example is still one of this task.

    Returns:
        An example of the same size, with the copy's number in its key.
    """
    if copy == 0:
        return example
    digest = hashlib.blake2b(f"{seed}/{example.key}/{copy}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    height, width = example.input.shape[:2]
    matrix = _random_affine(rng, width, height, flip)
    pictures = [_warp(picture, matrix) for picture in example.images]
    if jitter is not Jitter.none:
        recolour = _random_colours(rng)
        count = 1 if jitter is Jitter.input else len(pictures)
        pictures[:count] = map(recolour, pictures[:count])
    return replace(example, key=f"{example.key}-{copy}", images=tuple(pictures))


def _random_affine(rng: np.random.Generator, width: int, height: int, flip: bool) -> np.ndarray:
    """A (2, 3) map from a place in the copy to a place in the original, in pixels."""
    mirror = -1.0 if rng.random() < 0.5 and flip else 1.0
    angle = math.radians(rng.uniform(-MAX_DEGREES, MAX_DEGREES))
    scale = 1 / rng.uniform(1.0, MAX_ZOOM)
    # The part zoomed into may lie anywhere inside the original.
    slack = np.array([width, height]) * (1 - scale) / 2
    centre = np.array([width, height]) / 2
    shift = rng.uniform(-1, 1, size=2) * slack
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    linear = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
    return np.column_stack([linear, centre + shift - linear @ centre])


def _random_colours(rng: np.random.Generator) -> Callable[[np.ndarray], np.ndarray]:
    """A change of brightness, contrast and saturation for pictures (H, W, 3) uint8."""
    brightness, contrast, saturation = rng.uniform(1 - MAX_JITTER, 1 + MAX_JITTER, 3)

    def recolour(picture: np.ndarray) -> np.ndarray:
        values = picture.astype(np.float32) * brightness
        values = values.mean() + contrast * (values - values.mean())
        grey = values @ LUMA
        values = grey[..., None] + saturation * (values - grey[..., None])
        return (np.clip(values, 0, 255) + 0.5).astype(np.uint8)

    return recolour


def _warp(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Picture (H, W, 3) read through an affine map, mirrored at its borders."""
    height, width = picture.shape[:2]
    margin = max(1, max(height, width) // 4)  # a rotation of 10 degrees reaches 0.09 beyond
    padded = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="symmetric")
    (a, b, c), (d, e, f) = matrix
    # Mixing two labels would invent a third, so label pictures take the nearest pixel.
    colours = picture.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    labels = np.unique(colours).size <= LABEL_COLOURS
    warped = Image.fromarray(padded).transform(
        (width, height),
        Image.Transform.AFFINE,
        (a, b, c + margin, d, e, f + margin),
        Image.Resampling.NEAREST if labels else Image.Resampling.BICUBIC,
    )
    return np.asarray(warped)
