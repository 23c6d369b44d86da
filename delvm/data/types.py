"""What a data source yields: examples of tasks, read chunk by chunk."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from delvm.errors import UserError, did_you_mean

SPLITS = ("train", "val", "test")

ImageArray: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3), RGB


@dataclass(frozen=True)
class Example:
    """One example of a task: images that belong together, usually an input and its target.

    Attributes:
        key: Name of the example, unique within its split and task; no dots or slashes.
        task: Name of the task, one of `delvm.tasks`.
        images: k of them, each (H, W, 3) uint8 RGB of one size: input and target of a pair, the
            frames of a clip, an image and all its annotations, or a single image.
    """

    key: str
    task: str
    images: tuple[ImageArray, ...]

    @property
    def input(self) -> ImageArray:
        """The first image."""
        return self.images[0]

    @property
    def target(self) -> ImageArray:
        """The last image: what the task makes of the input."""
        return self.images[-1]


@dataclass(frozen=True)
class RejectedItem:
    """A raw item that no example could be made of.

    Attributes:
        key: Where it is: a file, or a member of an archive.
        reason: What is wrong with it, in one line.
    """

    key: str
    reason: str


@dataclass(frozen=True)
class SourceChunk:
    """A piece of a source that is read in one go, such as an archive or a range of files.

    Attributes:
        name: Name of its shards: letters, digits, - and _.
        count: Examples to expect, 0 if that is not known before it is read.
        inputs: A digest of the files that it is read from, which changes with them; "" if the
            source does not notice changes.
    """

    name: str
    count: int = 0
    inputs: str = ""


def split_into_chunks(count: int, size: int) -> list[SourceChunk]:
    """`count` examples in numbered chunks of `size`; the last one may be smaller."""
    starts = range(0, count, size)
    return [
        SourceChunk(f"{number:06d}", min(size, count - start))
        for number, start in enumerate(starts)
    ]


def check_splits(splits: Sequence[str]) -> None:
    """Refuse unknown splits, and an empty list of them.

    Raises:
        UserError: A split is unknown, or there are none.
    """
    if not splits:
        raise UserError(f"no splits given: set splits=[{','.join(SPLITS)}]")
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")
