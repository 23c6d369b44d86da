"""Any two sets of files, inputs and targets, of a task that the user names."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from delvm import tasks
from delvm.data.sources.base import pictures_in
from delvm.data.sources.paired_base import At, Pair, PairSource, files_in, match
from delvm.data.types import RejectedItem
from delvm.errors import UserError

_ID = "{id}"


@dataclass
class Paired(PairSource):
    """Two folders, or two patterns, below the root.

    Attributes:
        task: its name; any plain one.
        inputs, targets: a folder, whose files are matched by their paths without the extension,
            or a pattern such as `{id}_in.png`, where {id} stands for the same text on both sides
            and may hold folders.
    """

    name: ClassVar[str] = "paired"
    task: str = field(kw_only=True)
    inputs: str = "input"
    targets: str = "target"

    def made_task(self) -> str:
        """The name that the config gives.

        Raises:
            UserError: it is no plain name.
        """
        return tasks.of(self.task).name

    def pairs(self) -> Iterator[tuple[str, Pair | RejectedItem]]:
        """Pairs in the order of their ids.

        Raises:
            UserError: a side has no files, or both are the same.
        """
        if self.inputs == self.targets:
            raise UserError(
                f"source.inputs={self.inputs} and source.targets={self.targets} are the same: "
                "set source.targets=FOLDER"
            )
        inputs, targets = self._side("inputs", self.inputs), self._side("targets", self.targets)
        # `{id}.png` also fits what `{id}_gt.png` is for: a file belongs to the longer pattern.
        longer = targets if len(self.targets) > len(self.inputs) else inputs
        taken = {at.place / at.name for _, at in longer}
        first, second = (
            [(name, at) for name, at in side if side is longer or at.place / at.name not in taken]
            for side in (inputs, targets)
        )
        yield from match(self, first, second, self.split_of)

    def _side(self, key: str, place: str) -> list[tuple[str, At]]:
        """(id, place) of every picture of one side."""
        root = self.root()
        if _ID not in place:
            if not (root / place).is_dir():
                raise UserError(
                    f"source.{key}={place} is no folder in source.path={self.path}: "
                    f"set source.{key}=FOLDER, or a pattern with {_ID}"
                )
            found = list(files_in(root / place))
        else:
            before, _, after = place.partition(_ID)
            fits = re.compile(f"{re.escape(before)}(.+){re.escape(after)}", re.DOTALL)
            names = [path.relative_to(root).as_posix() for path in pictures_in(root)]
            hits = [(fits.fullmatch(name), name) for name in names]
            found = [(hit[1], At(root, name)) for hit, name in hits if hit]
        if not found:
            raise UserError(
                f"source.{key}={place} finds no picture in source.path={self.path}: "
                f"set source.{key}=FOLDER, or a pattern with {_ID}"
            )
        return found
