"""Images in folders: one by one, or several of one class together."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from delvm.data.sources._io.minimum_splits import IMAGES_NEEDED
from delvm.data.sources.base import (
    RawSource,
    chunks_of,
    image_files,
    items_of,
    to_reject,
    unique_keys,
)
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError


class _Group(NamedTuple):
    """Name of one example, and its files as paths below the root."""

    name: str
    files: tuple[str, ...]


@dataclass
class Images(RawSource):
    """Any directory of images, or ROOT/CLASS/*.jpg.

    Attributes:
        categories: whether directories are classes, whose images are grouped into examples (task
            `categories`); otherwise every image is an example (task `images`).
        group_size: images of one class in an example of `categories`.
    """

    name: ClassVar[str] = "images"
    categories: bool = False
    group_size: int = 8

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        if self.categories and self.group_size < 2:
            errors.append(
                f"group_size={self.group_size} of one class is below 2: set "
                "source.group_size=8, or source.categories=false for single images"
            )
        return errors

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered chunks of 1000 examples each."""
        self.check(split)
        task = "categories" if self.categories else "images"
        root = self.root()

        def files(item: tuple[str, _Group | RejectedItem]) -> Iterator[Path]:
            group = item[1]
            return (root / file for file in (group.files if isinstance(group, _Group) else ()))

        return {task: chunks_of(self._items.get(split, []), root, files)}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The examples of a chunk; one with an unreadable image is rejected completely."""
        for key, group in items_of(chunk, self._items[split]):
            if isinstance(group, RejectedItem):
                yield group
                continue
            images = []
            for file in group.files:
                try:
                    images.append(self.load_image(self.root() / file, file))
                except UserError as error:
                    reject = to_reject(file, error)
                    if self.categories:
                        reason = f"{reject.reason} (an example of {self.group_size} is lost)"
                        reject = replace(reject, reason=reason)
                    yield reject
                    break
            else:
                yield Example(key, task, tuple(images))

    @cached_property
    def _items(self) -> dict[str, list[tuple[str, _Group | RejectedItem]]]:
        """(key, example) of each split."""
        root = self.root()
        files = [path.relative_to(root).as_posix() for path in image_files(root)]
        if not files:
            raise UserError(f"source.path={self.path} contains no images: set source.path=DIR")
        sizes = Counter(Path(file).parent for file in files)

        def list_items() -> dict[str, list[_Group | RejectedItem]]:
            splits: dict[str, list[str]] = {}
            for file in files:
                splits.setdefault(self.split_of(file), []).append(file)
            return {
                split: list(self._grouped(split, members) if self.categories else _single(members))
                for split, members in splits.items()
            }

        def largest_class(file: str) -> tuple[int, str]:
            folder = Path(file).parent
            return (-sizes[folder], folder.as_posix()) if self.categories else (0, "")

        needed = -(-IMAGES_NEEDED // self.group_size) if self.categories else IMAGES_NEEDED
        items = {}
        for split, groups in self.with_minimum_splits(list_items, needed, largest_class).items():
            names = [each.name if isinstance(each, _Group) else each.key for each in groups]
            items[split] = list(zip(unique_keys(names), groups, strict=True))
        return items

    def _grouped(self, split: str, files: list[str]) -> Iterator[_Group | RejectedItem]:
        """Groups of each class; images within a class and groups of all classes are shuffled."""
        classes: dict[str, list[str]] = {}
        for file in files:
            classes.setdefault(Path(file).parent.as_posix(), []).append(file)
        if "." in classes:
            raise UserError(
                f"{classes['.'][0]} is not in a class of source.path={self.path}, which needs "
                "CLASS/*.jpg: set source.categories=false for single images"
            )
        size = self.group_size
        groups: list[_Group] = []
        rejects = []
        for name, members in classes.items():
            members.sort(key=lambda file: (self.uniform("order", file), file))
            for number in range(len(members) // size):
                group = tuple(members[number * size : (number + 1) * size])
                groups.append(_Group(f"{name}/{number:05d}", group))
            if left := len(members) % size:
                reason = (
                    f"{left} of {len(members)} images of {split} left, fewer than group_size={size}"
                )
                rejects.append(RejectedItem(name, reason))
        groups.sort(key=lambda group: (self.uniform("order", split, group.name), group.name))
        yield from groups
        yield from rejects


def _single(files: list[str]) -> Iterator[_Group]:
    """Each image as an example, named by its path without the extension."""
    stems = [Path(file).with_suffix("").as_posix() for file in files]
    counts = Counter(stems)
    for stem, file in zip(stems, files, strict=True):
        # Images whose paths differ only in the extension keep it.
        yield _Group(stem if counts[stem] == 1 else file, (file,))
