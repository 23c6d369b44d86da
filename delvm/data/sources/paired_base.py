"""What sources of file pairs share: matching inputs with targets, opening, cropping."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from delvm.data.image_io import aligned, open_stored
from delvm.data.sources._io.label_images import Palette, labels_to_rgb
from delvm.data.sources._io.minimum_splits import PAIRS_NEEDED
from delvm.data.sources.base import (
    RawSource,
    chunks_of,
    image_files,
    items_of,
    require_same_size,
    to_reject,
    unique_keys,
)
from delvm.data.types import Example, ImageArray, RejectedItem, SourceChunk
from delvm.errors import UserError

ID = "{id}"  # in a pattern: the same text on all sides


class FileRef(NamedTuple):
    """Where an image is: a directory or an LMDB store, and its name there."""

    parent: Path
    name: str


@dataclass(frozen=True)
class Pair:
    """An input and its target, not opened yet.

    Attributes:
        name: of the pair, unique in its data set.
        input, target: the files.
    """

    name: str
    input: FileRef
    target: FileRef


@dataclass
class PairSource(RawSource):
    """A data set of file pairs.

    Attributes:
        num_crops: random squares cut from each pair, of `size` pixels, or of the short side of a
            smaller image; 0 takes the image itself.
    """

    num_crops: int = 0

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        if self.num_crops < 0:
            errors.append(f"num_crops={self.num_crops} is below 0: set source.num_crops=0")
        return errors

    def task_name(self) -> str:
        """Name of its only task."""
        raise NotImplementedError

    def label_palette(self) -> Palette | None:
        """Colors of the labels that targets consist of; None if they may be smoothed."""
        return None

    def pairs(self) -> Iterator[tuple[str, Pair | RejectedItem]]:
        """Every pair of the data set in order, and each file without a partner.

        Yields:
            (split, pair or rejected file)

        Raises:
            UserError: the data set has another layout.
        """
        raise NotImplementedError

    def load(self, file: FileRef) -> Path | bytes:
        """The path of an image, or its bytes.

        Raises:
            UserError: it is missing.
        """
        return file.parent / file.name

    def location(self, file: FileRef) -> Path:
        """The file on disk that an image is in."""
        return file.parent / file.name

    def label(self, file: FileRef) -> str:
        """The path of an image below the root of the data set, for messages."""
        parent = Path(os.path.relpath(file.parent, self.path)).as_posix()
        return file.name if parent == "." else f"{parent}/{file.name}"

    @cached_property
    def _items(self) -> dict[str, list[tuple[str, Pair | RejectedItem]]]:
        """(key, pair) of each split."""

        def list_items() -> dict[str, list[Pair | RejectedItem]]:
            found: dict[str, list[Pair | RejectedItem]] = {}
            for split, each in self.pairs():
                found.setdefault(split, []).append(each)
            return found

        splits = self.with_minimum_splits(list_items, -(-PAIRS_NEEDED // max(1, self.num_crops)))
        if not splits:
            raise UserError(f"source.path={self.path} contains no images: set source.path=DIR")
        keys = {
            split: unique_keys(
                [each.name if isinstance(each, Pair) else each.key for each in items]
            )
            for split, items in splits.items()
        }
        return {split: list(zip(keys[split], splits[split], strict=True)) for split in splits}

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered chunks of 1000 pairs each, of the only task."""
        self.check(split)
        views = max(1, self.num_crops)

        def files(item: tuple[str, Pair | RejectedItem]) -> Iterator[Path]:
            pair = item[1]
            return map(self.location, (pair.input, pair.target) if isinstance(pair, Pair) else ())

        chunks = chunks_of(self._items.get(split, []), self.root(), files)
        return {self.task_name(): [replace(each, count=each.count * views) for each in chunks]}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The pairs of a chunk, cut into crops if `num_crops` is set."""
        for key, pair in items_of(chunk, self._items[split]):
            if isinstance(pair, RejectedItem):
                yield pair
                continue
            images = self._open(pair)
            if isinstance(images, RejectedItem):
                yield images
                continue
            for crop_key, crops in self._crops(key, pair, images):
                yield Example(crop_key, task, crops)

    def _open(self, pair: Pair) -> tuple[Image.Image, ...] | RejectedItem:
        stored = []
        palette = self.label_palette()
        labels_only = None if palette is None else partial(labels_to_rgb, palette=palette)
        for file, convert in ((pair.input, None), (pair.target, labels_only)):
            label = self.label(file)
            try:
                stored.append(open_stored(self.load(file), label, convert))
            except UserError as error:
                return to_reject(label, error)
        images = aligned(*stored)
        try:
            require_same_size(images)
        except UserError as error:
            return RejectedItem(self.label(pair.input), str(error))
        return images

    def _crops(
        self, key: str, pair: Pair, images: tuple[Image.Image, ...]
    ) -> Iterator[tuple[str, tuple[ImageArray, ...]]]:
        """The pair as it is, or crops: the same square of the input and of the target."""
        if not self.num_crops:
            yield key, self._squares(images)
        width, height = images[0].size
        side = min(self.size, width, height)
        for number in range(self.num_crops):
            rng = self.rng("crop", pair.name, number)
            left, top = (int(rng.integers(0, room - side + 1)) for room in (width, height))
            box = (left, top, left + side, top + side)
            yield f"{key}-c{number}", self._squares(tuple(each.crop(box) for each in images))

    def _squares(self, images: tuple[Image.Image, ...]) -> tuple[ImageArray, ...]:
        labels = self.label_palette() is not None
        return self.to_square(images[0]), self.to_square(images[1], labels=labels)


def files_below(folder: Path) -> Iterator[tuple[str, FileRef]]:
    """(id, file) of each image below a directory; the id is its path without the extension."""
    for path in image_files(folder):
        name = path.relative_to(folder)
        yield name.with_suffix("").as_posix(), FileRef(folder, name.as_posix())


def files_of_side(root: Path, key: str, pattern: str) -> list[tuple[str, FileRef]]:
    """(id, file) of every image of one side of a data set.

    Args:
        root: of the data set.
        key: name of the setting, for messages.
        pattern: a directory below the root, whose files have their paths without the extension as
            ids; or a pattern such as `{id}_in.png`, where {id} may contain directories.

    Raises:
        UserError: there are none.
    """
    if ID not in pattern:
        if not (root / pattern).is_dir():
            raise UserError(
                f"source.{key}={pattern} is not a directory in source.path={root}: "
                f"set source.{key}=DIR, or a pattern with {ID}"
            )
        files = list(files_below(root / pattern))
    else:
        before, _, after = pattern.partition(ID)
        regex = re.compile(f"{re.escape(before)}(.+){re.escape(after)}", re.DOTALL)
        names = [path.relative_to(root).as_posix() for path in image_files(root)]
        matches = [(regex.fullmatch(name), name) for name in names]
        files = [(match[1], FileRef(root, name)) for match, name in matches if match]
    if not files:
        raise UserError(
            f"source.{key}={pattern} matches no image in source.path={root}: "
            f"set source.{key}=DIR, or a pattern with {ID}"
        )
    return files


def match_pairs(
    source: PairSource,
    inputs: Iterable[tuple[str, FileRef]],
    targets: Iterable[tuple[str, FileRef]],
    split_of: Callable[[str], str],
    prefix: str = "",
) -> Iterator[tuple[str, Pair | RejectedItem]]:
    """Pairs with equal ids, in the order of the ids; files without a partner are rejected.

    Args:
        source: Labels the files.
        inputs, targets: (id, file) of each.
        split_of: The split of a pair, given its name.
        prefix: What the ids are unique within, such as a scene; the names of pairs start with it.

    Yields:
        (split, pair or rejected file)
    """
    sides: tuple[dict[str, FileRef], dict[str, FileRef]] = ({}, {})
    for side, files in zip(sides, (inputs, targets), strict=True):
        for name, file in files:
            if name in side:
                reason = f"its name is that of {source.label(side[name])}"
                yield (
                    split_of(f"{prefix}/{name}" if prefix else name),
                    RejectedItem(source.label(file), reason),
                )
            else:
                side[name] = file
    first, second = sides
    for name in sorted(first.keys() | second.keys()):
        file = first[name] if name in first else second[name]
        full_name = f"{prefix}/{name}" if prefix else name
        if name in first and name in second:
            yield split_of(full_name), Pair(full_name, first[name], second[name])
        else:
            missing = "target" if name in first else "input"
            yield split_of(full_name), RejectedItem(source.label(file), f"missing {missing}")
