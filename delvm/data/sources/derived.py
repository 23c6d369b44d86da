"""Tasks derived from any image without a label, as in LVM (Bai et al., arXiv 2312.00785)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

from delvm.data.sources.base import RawSource
from delvm.data.sources.images import Images
from delvm.data.sources.laion import Laion
from delvm.data.types import Example, ImageArray, RejectedItem, SourceChunk
from delvm.errors import did_you_mean
from delvm.tasks import derived

TASKS = ("colorization", "inpainting", "edges")
ANNOTATIONS: dict[str, Callable[[ImageArray], ImageArray]] = {
    "grayscale": derived.to_grayscale,
    "edges": derived.edge_map,
}


@dataclass
class Derived(RawSource):
    """Pairs and tuples made from any directory of images, or from tars.

    Attributes:
        from_tars: whether the directory contains tars of img2dataset instead of image files.
        tasks: any of colorization, inpainting and edges.
        hole_size: range of each side of the hole of inpainting, as a fraction of the image's side.
        annotations: those that follow the image in an example of task `tuple`, any of grayscale
            and edges; without any there is no such task.
    """

    name: ClassVar[str] = "derived"
    from_tars: bool = False
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    hole_size: list[float] = field(default_factory=lambda: [0.3, 0.5])
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
        if len(self.hole_size) != 2 or not 0 < self.hole_size[0] <= self.hole_size[1] <= 1:
            errors.append(
                f"hole_size={self.hole_size} is not a range in (0, 1]: set "
                "source.hole_size=[0.3,0.5]"
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
                smallest, largest = self.hole_size
                rng = self.rng("hole", key)
                return derived.mask_rectangle(image, rng, (smallest, largest)), image
            case "edges":
                return image, derived.edge_map(image)
            case _:
                return image, *(ANNOTATIONS[name](image) for name in self.annotations)

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
