"""The procedural corpus `shapes`: pairs of every task, made from seeds and photographs.

A pair is a pure function of (seed, split, task, index). Training uses the training
photographs; val and test the held-out ones, apart from each other by their seeds.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from delvm import tasks
from delvm.data.sources.shapes import people, scenes
from delvm.data.types import SPLITS, Example, SourceChunk, split_into_chunks
from delvm.errors import UserError, did_you_mean
from delvm.tasks import derived, pose, restoration, segmentation

# Long-tailed, like the sizes of the data sets that the paper trains on.
TRAIN_COUNTS = {"segmentation": 10_000, "pose": 1_000, "derain": 100, "deblur": 100}
PART = 1000  # examples a part
_SMALLEST = 16

# Input and target pictures (size, size, 3) uint8.
Made = tuple[np.ndarray, np.ndarray]


def _segmentation(rng: np.random.Generator, split: str, size: int) -> Made:
    picture, masks = scenes.instances(rng, split, size)
    return scenes.to_picture(picture), segmentation.render(masks)


def _pose(rng: np.random.Generator, split: str, size: int) -> Made:
    points = people.keypoints(rng)
    return people.draw(rng, split, size, points), pose.render(points, size)


def _derain(rng: np.random.Generator, split: str, size: int) -> Made:
    clean = scenes.clean(rng, split, size, shapes=0.5)
    return restoration.add_rain(clean, rng), clean


def _deblur(rng: np.random.Generator, split: str, size: int) -> Made:
    clean = scenes.clean(rng, split, size, shapes=1.0)
    return restoration.shake(clean, rng), clean


def _colourisation(rng: np.random.Generator, split: str, size: int) -> Made:
    clean = scenes.clean(rng, split, size, shapes=0.3)
    return derived.grey(clean), clean


def _inpainting(rng: np.random.Generator, split: str, size: int) -> Made:
    clean = scenes.clean(rng, split, size, shapes=0.3)
    return derived.cut_hole(clean, rng), clean


def _edges(rng: np.random.Generator, split: str, size: int) -> Made:
    clean = scenes.clean(rng, split, size, shapes=0.7)
    return clean, derived.trace_edges(clean)


_MAKERS: dict[str, Callable[[np.random.Generator, str, int], Made]] = {
    "segmentation": _segmentation,
    "pose": _pose,
    "derain": _derain,
    "deblur": _deblur,
    "colourisation": _colourisation,
    "inpainting": _inpainting,
    "edges": _edges,
}


@dataclass
class Shapes:
    """The procedural corpus, a `Source`.

    Attributes:
        size: side of every image in pixels; everything in it scales along.
        seed: base of all randomness.
        train: task -> training pairs; None is `TRAIN_COUNTS`, long-tailed as in the paper.
        val: validation pairs per task, whether trained or held out.
        test: test pairs per task.
        held_out: tasks that val and test have and training never shows.

    Raises:
        UserError: a size, seed or count out of range, an unknown task, or a task that is both
            trained and held out.
    """

    name: ClassVar[str] = "shapes"
    size: int = 64
    seed: int = 0
    train: dict[str, int] | None = None
    val: int = 64
    test: int = 128
    held_out: list[str] = field(default_factory=lambda: list(tasks.HELD_OUT))

    def __post_init__(self) -> None:
        self._train = dict(TRAIN_COUNTS if self.train is None else self.train)
        self._each = {"val": self.val, "test": self.test}
        self._check()

    def _check(self) -> None:
        if self.size < _SMALLEST:
            raise UserError(f"source.size={self.size} is too small: set {_SMALLEST} or more")
        if self.seed < 0:
            raise UserError(f"source.seed={self.seed} is negative: set 0 or more")
        for name, count in {**self._train, **self._each}.items():
            if count < 0:
                raise UserError(f"source: count {name}={count} is negative: set 0 or more")
        for name in (*self._train, *self.held_out):
            if name not in _MAKERS:
                raise UserError(f"source: unknown task '{name}': {did_you_mean(name, _MAKERS)}")
        for name in self.held_out:
            if name in self._train:
                raise UserError(
                    f"source: task '{name}' is in train and in held_out: "
                    f"set ~source.train.{name} or take it out of source.held_out"
                )

    def counts(self, split: str) -> dict[str, int]:
        """How many pairs each task has in a split.

        Raises:
            UserError: there is no such split.
        """
        if split not in SPLITS:
            raise UserError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")
        if split == "train":
            return dict(self._train)
        return dict.fromkeys((*self._train, *self.held_out), self._each[split])

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """Nothing more: an example depends on its number alone."""
        return {}

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Each task's examples, `PART` a part.

        Raises:
            UserError: there is no such split.
        """
        return {
            task: split_into_chunks(count, PART)
            for task, count in self.counts(split).items()
            if count
        }

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example]:
        """The examples of a part."""
        first = int(part.name) * PART
        for index in range(first, first + part.count):
            yield self.pair(split, task, index)

    def pair(self, split: str, task: str, index: int) -> Example:
        """The pair at `index`.

        Raises:
            UserError: there is no such split, or the split has no such task.
            IndexError: the index is not in [0, counts(split)[task]).
        """
        counts = self.counts(split)
        if task not in counts:
            raise UserError(f"split '{split}' has no task '{task}': {did_you_mean(task, counts)}")
        if not 0 <= index < counts[task]:
            raise IndexError(f"pair {index} of {split}/{task}, which has {counts[task]}")
        # crc32 rather than a position: adding a task must not change the others' pairs.
        entropy = (self.seed, SPLITS.index(split), zlib.crc32(task.encode()), index)
        rng = np.random.default_rng(np.random.SeedSequence(entropy))
        made = _MAKERS[task](rng, split, self.size)
        return Example(f"{index:06d}", task, made)
