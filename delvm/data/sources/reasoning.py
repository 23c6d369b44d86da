"""The synthetic reasoning tasks of visual prompting: generated, nothing to download."""

from dataclasses import dataclass, field
from typing import ClassVar

from delvm.data.datasets.sampler import seeded_rng
from delvm.data.sources.generated_base import GeneratedPairs
from delvm.data.types import ImageArray
from delvm.errors import did_you_mean
from delvm.tasks import reasoning


@dataclass
class Reasoning(GeneratedPairs):
    """Pairs in which a green circle changes, see `delvm.tasks.reasoning`.

    The paper has no training pairs, and 100 of each task for the test.

    Attributes:
        changes: any of color, shape, size, color_shape, color_size and shape_size, each a task
            (`reasoning_color`).
    """

    name: ClassVar[str] = "reasoning"
    changes: list[str] = field(default_factory=lambda: list(reasoning.CHANGES))

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = [
            f"changes has '{each}': {did_you_mean(each, reasoning.CHANGES)}"
            for each in self.changes
            if each not in reasoning.CHANGES
        ]
        if not self.changes or len(set(self.changes)) < len(self.changes):
            errors.append(f"changes={self.changes} is empty or has a duplicate: set source.changes")
        return errors + super().validate()

    def task_names(self) -> list[str]:
        """A task for each of the changes."""
        return [reasoning.TASKS[change].name for change in self.changes]

    def pair(self, split: str, task: str, index: int) -> tuple[ImageArray, ImageArray]:
        """An object before and after the change."""
        rng = seeded_rng(self.seed, f"{split} {task}", index)
        before, after = reasoning.random_pair(task.removeprefix("reasoning_"), rng)
        return reasoning.render(before, self.size), reasoning.render(after, self.size)
