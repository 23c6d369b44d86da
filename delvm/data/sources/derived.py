"""Tasks that any picture gives without a label, as in LVM (Bai et al., arXiv 2312.00785)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import numpy as np

from delvm.data.sources.base import RawSource
from delvm.data.sources.images import Images
from delvm.data.sources.laion import Laion
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError, did_you_mean
from delvm.tasks import derived

TASKS = ("colourisation", "inpainting", "edges")
ANNOTATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "grey": derived.grey,
    "edges": derived.trace_edges,
}


@dataclass
class Derived(RawSource):
    """Pairs and tuples made from any folder of pictures, or from tars.

    Attributes:
        tars: whether the folder holds tars as img2dataset writes them, and not pictures.
        tasks: any of colourisation, inpainting and edges.
        hole: least and most of each side that the hole of inpainting takes, in (0, 1].
        tuples: annotations that follow the picture in an example of task `tuple`, any of grey and
            edges; none makes no such task.
    """

    name: ClassVar[str] = "derived"
    tars: bool = False
    tasks: list[str] = field(default_factory=lambda: list(TASKS))
    hole: list[float] = field(default_factory=lambda: [0.3, 0.5])
    tuples: list[str] = field(default_factory=list)

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """The parts of the pictures, the same for every task.

        Raises:
            UserError: an unknown task or annotation, or a hole that no picture has.
        """
        self._check()
        found = self._pictures.chunks(split)["images"]
        made = [*self.tasks, *(["tuple"] if self.tuples else [])]
        return dict.fromkeys(made, found)

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example | RejectedItem]:
        """An example of the task from each picture of a part."""
        for each in self._pictures.read(split, "images", part):
            if isinstance(each, RejectedItem):
                yield each
            else:
                yield Example(each.key, task, self._made(task, each.input, each.key))

    def _made(self, task: str, picture: np.ndarray, key: str) -> tuple[np.ndarray, ...]:
        match task:
            case "colourisation":
                return derived.grey(picture), picture
            case "inpainting":
                least, most = self.hole
                rng = self.rng("hole", key)
                return derived.cut_hole(picture, rng, (least, most)), picture
            case "edges":
                return picture, derived.trace_edges(picture)
            case _:
                return picture, *(ANNOTATIONS[name](picture) for name in self.tuples)

    @cached_property
    def _pictures(self) -> RawSource:
        """Where the pictures are from."""
        kind = Laion if self.tars else Images
        return kind(path=self.path, size=self.size, seed=self.seed, val=self.val, test=self.test)

    def _check(self) -> None:
        for key, given, known in (
            ("tasks", self.tasks, TASKS),
            ("tuples", self.tuples, tuple(ANNOTATIONS)),
        ):
            for name in given:
                if name not in known:
                    raise UserError(f"source.{key} has '{name}': {did_you_mean(name, known)}")
            if len(set(given)) < len(given):
                raise UserError(f"source.{key}=[{','.join(given)}] names one twice: leave it out")
        if not self.tasks and not self.tuples:
            raise UserError("source.tasks=[] and source.tuples=[] make nothing: set source.tasks")
        if len(self.tuples) == 1:
            raise UserError(
                f"source.tuples=[{self.tuples[0]}] makes examples of two pictures, more are "
                f"wanted: set source.tuples=[{','.join(ANNOTATIONS)}]"
            )
        if len(self.hole) != 2 or not 0 < self.hole[0] <= self.hole[1] <= 1:
            raise UserError(
                f"source.hole={self.hole} is no range in (0, 1]: set source.hole=[0.3,0.5]"
            )
