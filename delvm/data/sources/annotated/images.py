"""Images with several annotations each, from directories whose files have the same names."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from delvm import tasks
from delvm.data.sources._io.minimum_splits import IMAGES_NEEDED
from delvm.data.sources.annotated.settings import AnnotatedSource, folders_with
from delvm.data.sources.base import (
    IMAGE_SUFFIXES,
    chunks_of,
    items_of,
    to_reject,
    unique_keys,
)
from delvm.data.sources.paired_base import files_of_side
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError, did_you_mean


class AnnotationOrder(StrEnum):
    """The order of the annotations after their image."""

    fixed = "fixed"
    shuffled = "shuffled"


class _Item(NamedTuple):
    """Name of an example, and its files as paths below the root, the image first."""

    name: str
    files: tuple[str, ...]


@dataclass
class Annotated(AnnotatedSource):
    """Any directory of images, and directories of annotations with the same file names.

    Each may also be a pattern such as `depth/{id}_depth.png`, where {id} stands for the same text
    in all of them. An example is an image and then all its annotations, as in LVM (Bai et al.,
    arXiv 2312.00785).

    Attributes:
        task: its name, of lower-case letters, digits and _.
        order: fixed, as in `annotations`; or shuffled for each example, by the seed and its name.
    """

    name: ClassVar[str] = "annotated"
    task: str = "annotated"
    order: AnnotationOrder = AnnotationOrder.fixed

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        if self.order not in list(AnnotationOrder):
            valid = did_you_mean(self.order, list(AnnotationOrder))
            errors.append(f"order={self.order} is unknown: {valid}")
        return errors

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered chunks of 1000 examples each."""
        self.check(split)
        task, root = tasks.get_or_default(self.task).name, self.root()

        def files(item: tuple[str, _Item | RejectedItem]) -> Iterator[Path]:
            found = item[1]
            return (root / file for file in (found.files if isinstance(found, _Item) else ()))

        return {task: chunks_of(self._items.get(split, []), root, files)}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The examples of a chunk; one with an unreadable annotation is rejected completely."""
        for key, item in items_of(chunk, self._items[split]):
            if isinstance(item, RejectedItem):
                yield item
            else:
                yield self._read_item(key, task, item)

    def _read_item(self, key: str, task: str, item: _Item) -> Example | RejectedItem:
        opened = []
        for file, annotation in zip(item.files, (None, *self._annotations), strict=True):
            try:
                opened.append(self.open_file(self.root() / file, file, annotation))
            except UserError as error:
                return to_reject(file, error)
        try:
            image, *annotations = self.squares(opened)
        except UserError as error:
            return RejectedItem(item.files[0], str(error))
        if self.order == AnnotationOrder.shuffled:
            order = self.rng("order", item.name).permutation(len(annotations))
            annotations = [annotations[index] for index in order]
        return Example(key, task, (image, *annotations))

    def found_annotations(self) -> list[str]:
        """The directories of annotations."""
        return self._annotations

    @cached_property
    def _annotations(self) -> list[str]:
        root = self.root()
        return self.choose_annotations(folders_with(root, IMAGE_SUFFIXES))

    @cached_property
    def _items(self) -> dict[str, list[tuple[str, _Item | RejectedItem]]]:
        """(key, example) of each split."""

        def list_items() -> dict[str, list[_Item | RejectedItem]]:
            splits: dict[str, list[_Item | RejectedItem]] = {}
            for name, item in matched:
                splits.setdefault(self.split_of(name), []).append(item)
            return splits

        matched = list(self._matched())
        if not matched:
            raise UserError(f"source.path={self.path} contains no images: set source.path=DIR")
        needed = max(1, IMAGES_NEEDED // (1 + len(self._annotations)))
        items = {}
        for split, found in self.with_minimum_splits(list_items, needed).items():
            names = [each.name if isinstance(each, _Item) else each.key for each in found]
            items[split] = list(zip(unique_keys(names), found, strict=True))
        return items

    def _matched(self) -> Iterator[tuple[str, _Item | RejectedItem]]:
        """(name, example) in the order of the names, and every file that is left over."""
        root = self.root()
        patterns = [self.image, *self._annotations]
        sides: dict[str, dict[str, str]] = {}  # pattern -> name -> file
        taken = set[str]()
        # `{id}.png` also matches the files of `{id}_depth.png`: they belong to the longer pattern.
        for pattern in sorted(patterns, key=len, reverse=True):
            side = sides.setdefault(pattern, {})
            key = "image" if pattern == self.image else "annotations"
            for name, ref in files_of_side(root, key, pattern):
                file = (ref.parent / ref.name).relative_to(root).as_posix()
                if file in taken:
                    continue
                taken.add(file)
                if name in side:
                    yield name, RejectedItem(file, f"its name is that of {side[name]}")
                else:
                    side[name] = file
        sides = {pattern: sides[pattern] for pattern in patterns}
        for name in sorted(set().union(*sides.values())):
            files = [side[name] for side in sides.values() if name in side]
            if len(files) == len(sides):
                yield name, _Item(name, tuple(files))
            else:
                missing = ", ".join(each for each, side in sides.items() if name not in side)
                yield name, RejectedItem(files[0], f"missing {missing}")
