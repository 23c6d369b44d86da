"""The synthetic reasoning tasks of visual prompting: generated, nothing to download."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from delvm.data.datasets.sampler import seeded_rng
from delvm.data.sources.base import check_split
from delvm.data.types import Example, SourceChunk, split_into_chunks
from delvm.errors import UserError, did_you_mean
from delvm.tasks import reasoning

_CHUNK = 1000


@dataclass
class Reasoning:
    """Pairs in which a green circle changes, see `delvm.tasks.reasoning`.

    Attributes:
        size: side of the images in pixels.
        seed: of the objects.
        changes: any of color, shape, size, color_shape, color_size and shape_size, each a task
            (`reasoning_color`).
        num_train, num_val, num_test: pairs per task; the paper has no training pairs and 100 of
            each for the test.
    """

    name: ClassVar[str] = "reasoning"
    size: int = 256
    seed: int = 0
    changes: list[str] = field(default_factory=lambda: list(reasoning.CHANGES))
    num_train: int = 0
    num_val: int = 100
    num_test: int = 100

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = [
            f"changes has '{each}': {did_you_mean(each, reasoning.CHANGES)}"
            for each in self.changes
            if each not in reasoning.CHANGES
        ]
        if not self.changes or len(set(self.changes)) < len(self.changes):
            errors.append(f"changes={self.changes} is empty or has a duplicate: set source.changes")
        if self.size < 1:
            errors.append(f"size={self.size} is below 1: set source.size=256")
        for split in ("train", "val", "test"):
            if (count := getattr(self, f"num_{split}")) < 0:
                errors.append(f"num_{split}={count} is below 0: set source.num_{split}=100")
        return errors

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
        chunks = split_into_chunks(getattr(self, f"num_{split}"), _CHUNK)
        return {reasoning.TASKS[change].name: chunks for change in self.changes}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example]:
        """The pairs of a chunk."""
        change = task.removeprefix("reasoning_")
        first = _CHUNK * int(chunk.name)
        for index in range(first, first + chunk.count):
            rng = seeded_rng(self.seed, f"{split} {task}", index)
            before, after = reasoning.random_pair(change, rng)
            images = (reasoning.render(before, self.size), reasoning.render(after, self.size))
            yield Example(f"{index:06d}", task, images)
