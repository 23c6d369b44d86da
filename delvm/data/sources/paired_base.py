"""What readers of pairs of files share: matching inputs with targets, opening, cropping."""

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from delvm.data.image_io import open_image, resize_center_crop
from delvm.data.sources.base import (
    RawSource,
    check_split,
    distinct,
    file_parts,
    files_of,
    pictures_in,
    rejected,
    same_size,
)
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError


class At(NamedTuple):
    """Where a picture is: a folder, or a store, and its name there."""

    place: Path
    name: str


@dataclass(frozen=True)
class Pair:
    """An input and its target, not opened yet.

    Attributes:
        name: of the pair, unique in its data set.
    """

    name: str
    input: At
    target: At


@dataclass
class PairSource(RawSource):
    """A data set of pairs of files.

    Attributes:
        crops: random squares cut from each pair, of `size` pixels where it has as many; 0 takes
            the whole picture, its short side scaled and its middle cropped.
    """

    crops: int = 0

    def made_task(self) -> str:
        """Name of the one task that it makes."""
        raise NotImplementedError

    def pairs(self) -> Iterator[tuple[str, Pair | RejectedItem]]:
        """Every pair of the data set in order, and each file that has no partner.

        Yields:
            (split, pair)

        Raises:
            UserError: the layout is another one.
        """
        raise NotImplementedError

    def load(self, at: At) -> Path | bytes:
        """The file of a picture, or what it holds.

        Raises:
            UserError: it is not there.
        """
        return at.place / at.name

    def label(self, at: At) -> str:
        """A picture's place below the root of the data set, for people."""
        place = Path(os.path.relpath(at.place, self.path)).as_posix()
        return at.name if place == "." else f"{place}/{at.name}"

    @cached_property
    def _listed(self) -> dict[str, list[tuple[str, Pair | RejectedItem]]]:
        """(key, pair) of each split."""
        splits: dict[str, list[Pair | RejectedItem]] = {}
        for split, each in self.pairs():
            splits.setdefault(split, []).append(each)
        if not splits:
            raise UserError(f"source.path={self.path} holds no pictures: set source.path=FOLDER")
        keys = {
            split: distinct([each.name if isinstance(each, Pair) else each.key for each in items])
            for split, items in splits.items()
        }
        return {split: list(zip(keys[split], splits[split], strict=True)) for split in splits}

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered parts of 1000 pairs each of the one task."""
        check_split(split)
        self.root()
        if self.crops < 0:
            raise UserError(f"source.crops={self.crops} is below 0: set source.crops=0")
        views = max(1, self.crops)
        found = file_parts(self._listed.get(split, []))
        return {self.made_task(): [SourceChunk(part.name, part.count * views) for part in found]}

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The pairs of a part, cut into crops if that was asked for."""
        for key, pair in files_of(part, self._listed[split]):
            if isinstance(pair, RejectedItem):
                yield pair
                continue
            opened = self._open(pair)
            if isinstance(opened, RejectedItem):
                yield opened
                continue
            for name, pictures in self._views(key, pair, opened):
                yield Example(name, task, pictures)

    def _open(self, pair: Pair) -> tuple[Image.Image, ...] | RejectedItem:
        pictures = []
        for at in (pair.input, pair.target):
            label = self.label(at)
            try:
                pictures.append(open_image(self.load(at), label))
            except UserError as error:
                return rejected(label, error)
        try:
            same_size(pictures)
        except UserError as error:
            return RejectedItem(self.label(pair.input), str(error))
        return tuple(pictures)

    def _views(
        self, key: str, pair: Pair, pictures: tuple[Image.Image, ...]
    ) -> Iterator[tuple[str, tuple[np.ndarray, ...]]]:
        """The whole pair, or crops of it: the same square of the input and of the target."""
        if not self.crops:
            yield key, tuple(np.asarray(resize_center_crop(each, self.size)) for each in pictures)
        width, height = pictures[0].size
        side = min(self.size, width, height)
        for number in range(self.crops):
            rng = self.rng("crop", pair.name, number)
            left, top = (int(rng.integers(0, room - side + 1)) for room in (width, height))
            box = (left, top, left + side, top + side)
            cut = tuple(
                np.asarray(resize_center_crop(each.crop(box), self.size)) for each in pictures
            )
            yield f"{key}-c{number}", cut


def files_in(folder: Path) -> Iterator[tuple[str, At]]:
    """(id, place) of each picture below a folder; the id is its path without the extension."""
    for path in pictures_in(folder):
        name = path.relative_to(folder)
        yield name.with_suffix("").as_posix(), At(folder, name.as_posix())


def match(
    source: PairSource,
    inputs: Iterable[tuple[str, At]],
    targets: Iterable[tuple[str, At]],
    split: Callable[[str], str],
    within: str = "",
) -> Iterator[tuple[str, Pair | RejectedItem]]:
    """Pairs of the same id, in the order of the ids, and a reject of each that is without.

    Args:
        source: Names the pictures.
        inputs, targets: (id, place) of each.
        split: Of the name of a pair.
        within: What the ids are unique within, such as a scene; a pair's name begins with it.

    Yields:
        (split, pair)
    """
    sides: tuple[dict[str, At], dict[str, At]] = ({}, {})
    for side, found in zip(sides, (inputs, targets), strict=True):
        for name, at in found:
            if name in side:
                taken = source.label(side[name])
                whole = f"{within}/{name}" if within else name
                yield split(whole), RejectedItem(source.label(at), f"its name is that of {taken}")
            else:
                side[name] = at
    first, second = sides
    for name in sorted(first.keys() | second.keys()):
        at = first[name] if name in first else second[name]
        whole = f"{within}/{name}" if within else name
        if name in first and name in second:
            yield split(whole), Pair(whole, first[name], second[name])
        else:
            missing = "target" if name in first else "input"
            yield split(whole), RejectedItem(source.label(at), f"missing {missing}")
