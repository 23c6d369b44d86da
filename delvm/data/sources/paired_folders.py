"""Any two sets of files, inputs and targets, of a task that the user names."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from delvm import tasks
from delvm.data.sources._io.label_images import Palette
from delvm.data.sources.paired_base import Pair, PairSource, files_of_side, match_pairs
from delvm.data.types import RejectedItem
from delvm.errors import UserError
from delvm.tasks import sam_masks


@dataclass
class Paired(PairSource):
    """Two directories, or two file patterns, below the root.

    Attributes:
        task: its name, of lower-case letters, digits and _.
        inputs, targets: a directory, whose files are matched by their paths without the extension,
            or a pattern such as `{id}_in.png`, where {id} stands for the same text on both sides
            and may contain directories.
        label_targets: whether the targets consist of colors or ids of labels, which are resized
            without smoothing; None: if the task's do, as those of `masks` and `segmentation`.
    """

    name: ClassVar[str] = "paired"
    task: str = field(kw_only=True)
    inputs: str = "input"
    targets: str = "target"
    label_targets: bool | None = None

    def task_name(self) -> str:
        """The configured name.

        Raises:
            UserError: it has other characters.
        """
        return tasks.get_or_default(self.task).name

    def label_palette(self) -> Palette | None:
        """The task's own colors; those of `masks` for a task without."""
        own = tasks.get_or_default(self.task).label_palette
        if self.label_targets is None:
            return own
        return (own or sam_masks.PALETTE) if self.label_targets else None

    def pairs(self) -> Iterator[tuple[str, Pair | RejectedItem]]:
        """Pairs in the order of their ids.

        Raises:
            UserError: a side has no files, or both sides are the same.
        """
        if self.inputs == self.targets:
            raise UserError(
                f"source.inputs={self.inputs} and source.targets={self.targets} are the same: "
                "set source.targets=DIR"
            )
        root = self.root()
        inputs = files_of_side(root, "inputs", self.inputs)
        targets = files_of_side(root, "targets", self.targets)
        # `{id}.png` also matches the files of `{id}_gt.png`: a file belongs to the longer pattern.
        longer = targets if len(self.targets) > len(self.inputs) else inputs
        taken = {file.parent / file.name for _, file in longer}
        first, second = (
            [
                (name, file)
                for name, file in side
                if side is longer or file.parent / file.name not in taken
            ]
            for side in (inputs, targets)
        )
        yield from match_pairs(self, first, second, self.split_of)
