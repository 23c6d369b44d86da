"""What a source of training material looks like: examples of tasks, read part by part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from delvm.errors import UserError, did_you_mean

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Example:
    """One example of a task: pictures that belong together, most often an input and its target.

    Attributes:
        key: Name of the example, unique within its split and task; no dots or slashes.
        task: Name of the task, as `delvm.tasks.of` takes it.
        images: k of them, each (H, W, 3) uint8 RGB of one size: input and target of a pair, the
            frames of a clip, a picture and all its annotations, or one picture alone.
    """

    key: str
    task: str
    images: tuple[np.ndarray, ...]

    @property
    def input(self) -> np.ndarray:
        """The first picture."""
        return self.images[0]

    @property
    def target(self) -> np.ndarray:
        """The last picture: what the task makes of the input."""
        return self.images[-1]


@dataclass(frozen=True)
class RejectedItem:
    """Raw material that no example could be made of.

    Attributes:
        key: Where it is: a file, or a member of an archive.
        reason: What is wrong with it, in a line.
    """

    key: str
    reason: str


@dataclass(frozen=True)
class SourceChunk:
    """A piece of a source that is read in one go, such as an archive or some files of a folder.

    Attributes:
        name: What its shards are called: letters, digits, - and _.
        count: Examples to expect, 0 if that is not known before it is read.
    """

    name: str
    count: int = 0


class Source(Protocol):
    """Where examples come from. What a part holds is a function of the source's settings alone.

    Attributes:
        name: Kind of source, as conf/source spells it.
        size: Side of the pictures that it makes, in pixels.
        seed: Of whatever is random about it.
    """

    name: str
    size: int
    seed: int

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """What the examples depend on beside size and seed, for JSON."""
        ...

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """The parts of each task in a split, without reading them.

        Raises:
            UserError: the raw material is not there, or is of another layout.
        """
        ...

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The examples of a part in order, and what had to be left out."""
        ...


def split_into_chunks(count: int, size: int) -> list[SourceChunk]:
    """`count` examples in numbered parts of `size`; the last one may be smaller."""
    starts = range(0, count, size)
    return [
        SourceChunk(f"{number:06d}", min(size, count - start))
        for number, start in enumerate(starts)
    ]


def check_splits(splits: Sequence[str]) -> None:
    """Refuse names that are no split.

    Raises:
        UserError: one is not known, or there is none.
    """
    if not splits:
        raise UserError(f"no splits given: set splits=[{','.join(SPLITS)}]")
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")
