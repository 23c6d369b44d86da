"""Tasks derived from any image without a label, as in LVM (Bai et al., arXiv 2312.00785)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import ClassVar

from delvm.data.sources.base import RawSource
from delvm.data.sources.images import Images
from delvm.data.sources.laion import Laion
from delvm.data.types import Example, ImageArray, RejectedItem, SourceChunk
from delvm.errors import did_you_mean
from delvm.tasks import derived, geometric
from delvm.tasks.degradations import DEGRADATIONS

DEFAULT_TASKS = ("colorization", "inpainting", "edges")
TASKS = (*DEFAULT_TASKS, *DEGRADATIONS, "mirror", "rotate")
ANNOTATIONS: dict[str, Callable[[ImageArray], ImageArray]] = {
    "grayscale": derived.to_grayscale,
    "edges": derived.edge_map,
}


class HoleKind(StrEnum):
    """What is black in the inputs of inpainting: one box, patches of a grid, or either."""

    box = "box"
    patches = "patches"
    mixed = "mixed"


@dataclass
class Derived(RawSource):
    """Pairs and tuples made from any directory of images, or from tars.

    Attributes:
        from_tars: whether the directory contains tars of img2dataset instead of image files.
        tasks: any of colorization, inpainting, edges, denoise, super_resolution, low_light, mirror
            and rotate.
        hole_kind: what is black in inpainting: a box, random patches of a grid, or one of the two
            at random (mixed).
        hole_size: range of each side of the box, as a fraction of the image's side.
        patch_size: side of the patches in pixels.
        patch_fraction: range of the fraction of the patches that are black.
        annotations: those that follow the image in an example of task `tuple`, any of grayscale
            and edges; without any there is no such task.
    """

    name: ClassVar[str] = "derived"
    from_tars: bool = False
    tasks: list[str] = field(default_factory=lambda: list(DEFAULT_TASKS))
    hole_kind: HoleKind = HoleKind.box
    hole_size: list[float] = field(default_factory=lambda: [0.3, 0.5])
    patch_size: int = 32
    patch_fraction: list[float] = field(default_factory=lambda: [0.25, 0.5])
    annotations: list[str] = field(default_factory=list)

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        for key, values, valid in (
            ("tasks", self.tasks, TASKS),
            ("annotations", self.annotations, tuple(ANNOTATIONS)),
        ):
            errors += [
                f"{key} has '{value}': {did_you_mean(value, valid)}"
                for value in values
                if value not in valid
            ]
            if len(set(values)) < len(values):
                errors.append(f"{key}=[{','.join(values)}] has a duplicate: remove it")
        if not self.tasks and not self.annotations:
            errors.append("tasks=[] and source.annotations=[] make nothing: set source.tasks")
        if len(self.annotations) == 1:
            errors.append(
                f"annotations=[{self.annotations[0]}] makes examples of two images, and a tuple "
                f"needs three or more: set source.annotations=[{','.join(ANNOTATIONS)}]"
            )
        return errors + self._hole_errors()

    def _hole_errors(self) -> list[str]:
        errors = []
        if self.hole_kind not in list(HoleKind):
            valid = did_you_mean(self.hole_kind, list(HoleKind))
            errors.append(f"hole_kind={self.hole_kind} is unknown: {valid}")
        for key, values, default in (
            ("hole_size", self.hole_size, "[0.3,0.5]"),
            ("patch_fraction", self.patch_fraction, "[0.25,0.5]"),
        ):
            if len(values) != 2 or not 0 < values[0] <= values[1] <= 1:
                errors.append(
                    f"{key}={values} is not a range in (0, 1]: set source.{key}={default}"
                )
        if self.hole_kind != HoleKind.box and not 0 < self.patch_size <= self.size // 2:
            errors.append(
                f"patch_size={self.patch_size} is not in 1..{self.size // 2}, half of source.size: "
                f"set source.patch_size={max(1, self.size // 8)}"
            )
        return errors

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """The chunks of the images, the same for every task."""
        self.check(split)
        chunks = self._images.chunks(split)["images"]
        return dict.fromkeys([*self.tasks, *(["tuple"] if self.annotations else [])], chunks)

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """An example of the task from each image of a chunk."""
        for each in self._images.read(split, "images", chunk):
            if isinstance(each, RejectedItem):
                yield each
            elif task == "colorization" and derived.is_gray(each.input):
                yield RejectedItem(each.key, "gray: its colorization equals the input")
            else:
                yield Example(each.key, task, self._derive(task, each.input, each.key))

    def _derive(self, task: str, image: ImageArray, key: str) -> tuple[ImageArray, ...]:
        match task:
            case "colorization":
                return derived.to_grayscale(image), image
            case "inpainting":
                return self._with_hole(image, key), image
            case "edges":
                return image, derived.edge_map(image)
            case "mirror":
                return image, geometric.mirror(image)
            case "rotate":
                return image, geometric.quarter_turn(image)
            case _ if task in DEGRADATIONS:
                return DEGRADATIONS[task](image, self.rng(task, key)), image
            case _:
                return image, *(ANNOTATIONS[name](image) for name in self.annotations)

    def _with_hole(self, image: ImageArray, key: str) -> ImageArray:
        rng = self.rng("hole", key)
        kind = HoleKind(self.hole_kind)
        if kind is HoleKind.mixed:
            kind = HoleKind.box if self.uniform("hole kind", key) < 0.5 else HoleKind.patches
        if kind is HoleKind.box:
            return derived.mask_rectangle(image, rng, (self.hole_size[0], self.hole_size[1]))
        fraction = self.patch_fraction[0], self.patch_fraction[1]
        return derived.mask_patches(image, rng, self.patch_size, fraction)

    @cached_property
    def _images(self) -> RawSource:
        """The source of the images."""
        source = Laion if self.from_tars else Images
        return source(
            path=self.path,
            size=self.size,
            seed=self.seed,
            resize=self.resize,
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
        )
