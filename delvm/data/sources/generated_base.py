"""What sources share whose pairs are generated, as many as are asked for."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from delvm.data.sources.base import check_split
from delvm.data.types import SPLITS, Example, ImageArray, SourceChunk, split_into_chunks
from delvm.errors import UserError

PAIRS_PER_CHUNK = 1000


@dataclass
class GeneratedPairs:
    """Pairs that depend on the settings, the split, the task and their number alone.

    Attributes:
        size: side of the images in pixels.
        seed: of everything random.
        num_train, num_val, num_test: pairs per task.
    """

    least_pairs: ClassVar[int] = 0
    size: int = 256
    seed: int = 0
    num_train: int = 0
    num_val: int = 100
    num_test: int = 100

    def task_names(self) -> list[str]:
        """The tasks that are generated."""
        raise NotImplementedError

    def pair(self, split: str, task: str, index: int) -> tuple[ImageArray, ImageArray]:
        """Input and target of a pair, (size, size, 3) uint8."""
        raise NotImplementedError

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        least = {"size": 1} | {f"num_{split}": self.least_pairs for split in SPLITS}
        return [
            f"{key}={value} is below {minimum}: set source.{key}={getattr(type(self), key)}"
            for key, minimum in least.items()
            if (value := getattr(self, key)) < minimum
        ]

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """Every setting but size and seed."""
        return {key: value for key, value in asdict(self).items() if key not in ("size", "seed")}

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered chunks of 1000 pairs of each task.

        Raises:
            UserError: The settings are out of range, or the split is unknown.
        """
        check_split(split)
        for error in self.validate():
            raise UserError(f"source.{error}")
        chunks = split_into_chunks(getattr(self, f"num_{split}"), PAIRS_PER_CHUNK)
        return dict.fromkeys(self.task_names(), chunks)

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example]:
        """The pairs of a chunk."""
        first = PAIRS_PER_CHUNK * int(chunk.name)
        for index in range(first, first + chunk.count):
            yield Example(f"{index:06d}", task, self.pair(split, task, index))
