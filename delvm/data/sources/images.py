"""Images in folders: one by one, or several of one class together."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

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
        group_sizes: several sizes instead, each a task of its own (`categories_2`, `categories_4`),
            as LVM (Bai et al., arXiv 2312.00785) mixes them.
    """

    name: ClassVar[str] = "images"
    categories: bool = False
    group_size: int = 8
    group_sizes: list[int] = field(default_factory=list)

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        if self.categories and self.group_size < 2:
            errors.append(
                f"group_size={self.group_size} of one class is below 2: set "
                "source.group_size=8, or source.categories=false for single images"
            )
        sizes = self.group_sizes
        if any(size < 2 for size in sizes) or len(set(sizes)) < len(sizes):
            errors.append(
                f"group_sizes={sizes} has one below 2, or a duplicate: set source.group_sizes=[2,4]"
            )
        if sizes and not self.categories:
            errors.append(f"group_sizes={sizes} is of classes: set source.categories=true")
        return errors

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """Every setting but size and seed; `group_sizes` only where it is set."""
        settings = super().settings(split, task)
        if not self.group_sizes:
            del settings["group_sizes"]
        return settings

    def _sizes(self) -> dict[str, int]:
        """Task -> images per example."""
        if self.group_sizes:
            return {f"categories_{size}": size for size in self.group_sizes}
        return {"categories": self.group_size} if self.categories else {"images": 1}

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered chunks of 1000 examples each."""
        self.check(split)
        root = self.root()

        def files(item: tuple[str, _Group | RejectedItem]) -> Iterator[Path]:
            group = item[1]
            return (root / file for file in (group.files if isinstance(group, _Group) else ()))

        return {
            task: chunks_of(self._items[task].get(split, []), root, files) for task in self._sizes()
        }

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The examples of a chunk; one with an unreadable image is rejected completely."""
        for key, group in items_of(chunk, self._items[task][split]):
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
                        reason = f"{reject.reason} (an example of {self._sizes()[task]} is lost)"
                        reject = replace(reject, reason=reason)
                    yield reject
                    break
            else:
                yield Example(key, task, tuple(images))

    @cached_property
    def _items(self) -> dict[str, dict[str, list[tuple[str, _Group | RejectedItem]]]]:
        """(key, example) of each task and split."""
        root = self.root()
        files = [path.relative_to(root).as_posix() for path in image_files(root)]
        if not files:
            raise UserError(f"source.path={self.path} contains no images: set source.path=DIR")
        sizes = Counter(Path(file).parent for file in files)

        def list_items(size: int) -> dict[str, list[_Group | RejectedItem]]:
            splits: dict[str, list[str]] = {}
            for file in files:
                splits.setdefault(self.split_of(file), []).append(file)
            return {
                split: list(
                    self._grouped(split, members, size) if self.categories else _single(members)
                )
                for split, members in splits.items()
            }

        def largest_class(file: str) -> tuple[int, str]:
            folder = Path(file).parent
            return (-sizes[folder], folder.as_posix()) if self.categories else (0, "")

        # The largest decides which images leave train, and the others have the same splits.
        largest = max(self._sizes().values())
        needed = -(-IMAGES_NEEDED // largest)
        first = self.with_minimum_splits(partial(list_items, largest), needed, largest_class)
        items: dict[str, dict[str, list[tuple[str, _Group | RejectedItem]]]] = {}
        for task, size in self._sizes().items():
            for split, groups in (first if size == largest else list_items(size)).items():
                names = [each.name if isinstance(each, _Group) else each.key for each in groups]
                keyed = list(zip(unique_keys(names), groups, strict=True))
                items.setdefault(task, {})[split] = keyed
        return items

    def _grouped(self, split: str, files: list[str], size: int) -> Iterator[_Group | RejectedItem]:
        """Groups of each class; images within a class and groups of all classes are shuffled."""
        classes: dict[str, list[str]] = {}
        for file in files:
            classes.setdefault(Path(file).parent.as_posix(), []).append(file)
        if "." in classes:
            raise UserError(
                f"{classes['.'][0]} is not in a class of source.path={self.path}, which needs "
                "CLASS/*.jpg: set source.categories=false for single images"
            )
        # Groups of one size are not those of another, cut into pieces.
        word = f"order {size}" if self.group_sizes else "order"
        groups: list[_Group] = []
        rejects = []
        for name, members in classes.items():
            members.sort(key=lambda file: (self.uniform(word, file), file))
            for number in range(len(members) // size):
                group = tuple(members[number * size : (number + 1) * size])
                groups.append(_Group(f"{name}/{number:05d}", group))
            if left := len(members) % size:
                reason = (
                    f"{left} of {len(members)} images of {split} left, fewer than group_size={size}"
                )
                rejects.append(RejectedItem(name, reason))
        groups.sort(key=lambda group: (self.uniform(word, split, group.name), group.name))
        yield from groups
        yield from rejects


def _single(files: list[str]) -> Iterator[_Group]:
    """Each image as an example, named by its path without the extension."""
    stems = [Path(file).with_suffix("").as_posix() for file in files]
    counts = Counter(stems)
    for stem, file in zip(stems, files, strict=True):
        # Images whose paths differ only in the extension keep it.
        yield _Group(stem if counts[stem] == 1 else file, (file,))
