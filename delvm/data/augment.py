"""Balance the tasks: how many examples each one needs, and how augmented copies are made."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum, StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from delvm.data.types import Example, ImageArray
from delvm.errors import UserError
from delvm.tasks import Task
from delvm.tasks.derived import LUMA

MAX_JITTER = 0.3  # of brightness, contrast and saturation: up or down by this fraction
# An image of at most this many colors is taken for labels (masks, stick figures).
MAX_LABEL_COLORS = 64


class Jitter(Enum):
    """Which images of a copy get color jitter: none, the input only, or all of them alike."""

    none = "none"
    input = "input"
    all = "all"


class Fill(StrEnum):
    """What is outside the image: its reflection, or black as in torchvision."""

    reflect = "reflect"
    black = "black"


@dataclass(frozen=True)
class Geometry:
    """Ranges of the random geometry of copies.

    Attributes:
        max_degrees: Largest rotation either way.
        max_zoom: Largest zoom in, where `crop_area` is None.
        crop_area: Range of the fraction of the area that a copy shows, as torchvision's
            RandomResizedCrop has it; None zooms in without changing the shape.
        crop_ratio: Range of width to height of such a crop.
        hflip, vflip: Whether half of the copies are mirrored, horizontally and vertically.
        fill: What is outside the image.
    """

    max_degrees: float = 10.0
    max_zoom: float = 1.3
    crop_area: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: bool = True
    vflip: bool = False
    fill: Fill = Fill.reflect

    def allowed_for(self, task: Task) -> "Geometry":
        """The same ranges within what a task allows."""
        vflip = task.allows_hflip if task.allows_vflip is None else task.allows_vflip
        return replace(
            self,
            max_degrees=min(self.max_degrees, task.max_degrees),
            max_zoom=self.max_zoom if task.allows_zoom else 1.0,
            crop_area=self.crop_area if task.allows_zoom else None,
            hflip=self.hflip and task.allows_hflip,
            vflip=self.vflip and vflip,
        )


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
        max_degrees, max_zoom, crop_area, crop_ratio, hflip, vflip, fill: As of `Geometry`.
        task_limits: Whether a task that is another one when it is mirrored or turned (such as
            `pose`, whose sides differ in color) keeps its own limits.
    """

    mode: BalanceMode = BalanceMode.none
    examples_per_task: int | None = None
    jitter: Jitter = Jitter.none
    max_degrees: float = 10.0
    max_zoom: float = 1.3
    crop_area: list[float] | None = None
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    hflip: bool = True
    vflip: bool = False
    fill: Fill = Fill.reflect
    task_limits: bool = True

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = []
        if self.examples_per_task is not None and self.examples_per_task < 1:
            errors.append(
                f"examples_per_task={self.examples_per_task} is below 1: set it to 1 or more"
            )
        if not 0 <= self.max_degrees <= 180:
            errors.append(f"max_degrees={self.max_degrees} is not in [0, 180]: set it to 10")
        if self.max_zoom < 1:
            errors.append(f"max_zoom={self.max_zoom} is below 1: set it to 1 or more")
        for key, values, most in (
            ("crop_area", self.crop_area, 1.0),
            ("crop_ratio", self.crop_ratio, math.inf),
        ):
            if values is None:
                continue
            if len(values) != 2 or not 0 < values[0] <= values[1] <= most:
                where = "(0, 1]" if most == 1 else "(0, inf)"
                errors.append(f"{key}={values} is not a range in {where}: set it to [LOW,HIGH]")
        return errors

    def geometry(self, task: Task) -> Geometry:
        """The ranges for copies of a task."""
        geometry = Geometry(
            max_degrees=self.max_degrees,
            max_zoom=self.max_zoom,
            crop_area=None if self.crop_area is None else (self.crop_area[0], self.crop_area[1]),
            crop_ratio=(self.crop_ratio[0], self.crop_ratio[1]),
            hflip=self.hflip,
            vflip=self.vflip,
            fill=Fill(self.fill),
        )
        return geometry.allowed_for(task) if self.task_limits else geometry

    def settings(self) -> dict[str, Any]:
        """What manifests record, besides the seed; ranges only where they are not the default."""
        settings: dict[str, Any] = {
            "mode": self.mode.value,
            "examples_per_task": self.examples_per_task,
        }
        if self.mode is BalanceMode.augment:
            settings["jitter"] = self.jitter.value
            default = BalanceConfig()
            for key in (*Geometry.__dataclass_fields__, "task_limits"):
                if (value := getattr(self, key)) != getattr(default, key):
                    settings[key] = list(value) if isinstance(value, tuple) else value
        return settings


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
    example: Example,
    seed: int,
    aug_index: int,
    *,
    geometry: Geometry,
    jitter: Jitter = Jitter.none,
) -> Example:
    """An augmented copy of an example; all its images get the same random geometry.

    Copy 0 is the example itself. Any other copy is mirrored (with probability 1/2, where allowed),
    zoomed in, shifted and rotated; the amounts depend on (seed, key, aug_index) alone.

    Args:
        example: Images of one size.
        seed: Seed of the corpus.
        aug_index: Number of the copy, from 0.
        geometry: Ranges of the amounts, within what the task allows.
        jitter: Which images also get a random change of brightness, contrast and saturation.

    Returns:
        An example of the same size, with `aug_index` in its key.
    """
    if aug_index == 0:
        return example
    digest = hashlib.blake2b(f"{seed}/{example.key}/{aug_index}".encode(), digest_size=16).digest()
    rng = np.random.default_rng(int.from_bytes(digest, "little"))
    height, width = example.input.shape[:2]
    matrix = _random_affine(rng, width, height, geometry)
    images = [_warp(image, matrix, geometry.fill) for image in example.images]
    if jitter is not Jitter.none:
        recolor = _random_color_jitter(rng)
        count = 1 if jitter is Jitter.input else len(images)
        images[:count] = map(recolor, images[:count])
    return replace(example, key=f"{example.key}-{aug_index}", images=tuple(images))


def _random_affine(
    rng: np.random.Generator, width: int, height: int, geometry: Geometry
) -> npt.NDArray[np.float64]:
    """A (2, 3) map from a point in the copy to a point in the original, in pixels."""
    mirror = -1.0 if rng.random() < 0.5 and geometry.hflip else 1.0
    angle = math.radians(rng.uniform(-geometry.max_degrees, geometry.max_degrees))
    center = np.array([width, height]) / 2
    rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    if geometry.crop_area is None:
        scale = 1 / rng.uniform(1.0, geometry.max_zoom)
        # The crop that is zoomed into may be anywhere inside the original.
        slack = np.array([width, height]) * (1 - scale) / 2
        shift = rng.uniform(-1, 1, size=2) * slack
        cos, sin = scale * math.cos(angle), scale * math.sin(angle)
        linear = np.array([[cos * mirror, -sin], [sin * mirror, cos]])
    else:
        # As in torchvision, the image is mirrored and rotated first, and then cropped.
        sides = _random_crop(rng, width, height, geometry.crop_area, geometry.crop_ratio)
        offset = rng.uniform(-1, 1, size=2) * np.array([width, height]) * (1 - sides) / 2
        shift = rotation @ (offset * (mirror, 1.0))
        linear = rotation @ np.diag(sides * (mirror, 1.0))
    if geometry.vflip and rng.random() < 0.5:
        linear[:, 1] *= -1
    return np.column_stack([linear, center + shift - linear @ center])


def _random_crop(
    rng: np.random.Generator,
    width: int,
    height: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> npt.NDArray[np.float64]:
    """Sides of a random crop as fractions of the image's, as RandomResizedCrop draws them."""
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        sides = np.array([math.sqrt(pixels * shape) / width, math.sqrt(pixels / shape) / height])
        if (sides <= 1).all():
            return sides
    return np.ones(2)


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


def _warp(image: ImageArray, matrix: npt.NDArray[np.float64], fill: Fill) -> ImageArray:
    """Image (H, W, 3) resampled through an affine map, reflected or black beyond its borders."""
    height, width = image.shape[:2]
    # A rotation of 10 degrees reaches 0.09 of the side beyond, one of 45 degrees 0.21.
    margin = max(1, max(height, width) // 4)
    padded = np.pad(
        image,
        ((margin, margin), (margin, margin), (0, 0)),
        mode="symmetric" if fill is Fill.reflect else "constant",
    )
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
