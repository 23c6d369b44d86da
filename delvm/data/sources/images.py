"""Pictures in folders: one by one, or several of one class together."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from delvm.data.sources.base import (
    RawSource,
    check_split,
    distinct,
    file_parts,
    files_of,
    pictures_in,
    rejected,
)
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError


class _Group(NamedTuple):
    """Files of one example, paths below the root, and its name."""

    name: str
    files: tuple[str, ...]


@dataclass
class Images(RawSource):
    """Any folder of pictures, or ROOT/CLASS/*.jpg.

    Attributes:
        categories: whether folders are classes, whose pictures come together (task
            `categories`); otherwise pictures come one by one (task `images`).
        pictures: of one class in an example of `categories`.
    """

    name: ClassVar[str] = "images"
    categories: bool = False
    pictures: int = 8

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered parts of 1000 examples each."""
        check_split(split)
        self.root()
        task = "categories" if self.categories else "images"
        return {task: file_parts(self._listed.get(split, []))}

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The examples of a part; one whose pictures cannot all be read is rejected as a whole."""
        for key, group in files_of(part, self._listed[split]):
            if isinstance(group, RejectedItem):
                yield group
                continue
            pictures = []
            for file in group.files:
                try:
                    pictures.append(self.picture(self.root() / file, file))
                except UserError as error:
                    reject = rejected(file, error)
                    if self.categories:
                        said = f"{reject.reason} (an example of {self.pictures} is lost)"
                        reject = replace(reject, reason=said)
                    yield reject
                    break
            else:
                yield Example(key, task, tuple(pictures))

    @cached_property
    def _listed(self) -> dict[str, list[tuple[str, _Group | RejectedItem]]]:
        """(key, example) of each split."""
        root = self.root()
        files = [path.relative_to(root).as_posix() for path in pictures_in(root)]
        if not files:
            raise UserError(f"source.path={self.path} holds no pictures: set source.path=FOLDER")
        splits: dict[str, list[str]] = {}
        for file in files:
            splits.setdefault(self.split_of(file), []).append(file)
        listed = {}
        for split, mine in splits.items():
            found = list(self._grouped(split, mine) if self.categories else _alone(mine))
            names = [each.name if isinstance(each, _Group) else each.key for each in found]
            listed[split] = list(zip(distinct(names), found, strict=True))
        return listed

    def _grouped(self, split: str, files: list[str]) -> Iterator[_Group | RejectedItem]:
        """Groups of each class, of pictures in a drawn order, the classes mixed."""
        if self.pictures < 2:
            raise UserError(
                f"source.pictures={self.pictures} of one class is below 2: set source.pictures=8, "
                "or source.categories=false for single pictures"
            )
        classes: dict[str, list[str]] = {}
        for file in files:
            classes.setdefault(Path(file).parent.as_posix(), []).append(file)
        if "." in classes:
            raise UserError(
                f"{classes['.'][0]} lies in no class of source.path={self.path}, which wants "
                "CLASS/*.jpg: set source.categories=false for single pictures"
            )
        groups: list[_Group] = []
        rejects = []
        for name, members in classes.items():
            members.sort(key=lambda file: (self.draw("order", file), file))
            whole = len(members) // self.pictures
            for number in range(whole):
                first = number * self.pictures
                mine = tuple(members[first : first + self.pictures])
                groups.append(_Group(f"{name}/{number:05d}", mine))
            if left := len(members) - whole * self.pictures:
                said = f"{left} of {len(members)} pictures of {split} left, fewer than"
                rejects.append(RejectedItem(name, f"{said} pictures={self.pictures}"))
        groups.sort(key=lambda group: (self.draw("order", split, group.name), group.name))
        yield from groups
        yield from rejects


def _alone(files: list[str]) -> Iterator[_Group]:
    """Each picture an example, named by its path without the extension."""
    stems = [Path(file).with_suffix("").as_posix() for file in files]
    often = Counter(stems)
    for stem, file in zip(stems, files, strict=True):
        # Pictures that differ in nothing but the extension keep it.
        yield _Group(stem if often[stem] == 1 else file, (file,))
