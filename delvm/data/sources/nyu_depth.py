"""NYU Depth v2: photographs of rooms and their depth (Silberman et al., ECCV 2012)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

from delvm.data.image_io import aligned
from delvm.data.sources._io.annotation_images import AnnotationKind, open_annotation
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
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError
from delvm.progress import log
from delvm.tasks import depth

# Directory of the data set -> its split there.
_FOLDERS = {"official_splits/train": "train", "sync": "train", "official_splits/test": "test"}
_MILLIMETERS = 1000.0


class _Item(NamedTuple):
    """A photograph and its depth, as paths below the root; without a photograph it is rejected."""

    name: str
    photo: str | None
    depth: str


@dataclass
class NyuDepth(RawSource):
    """{official_splits/train,official_splits/test,sync}/SCENE/rgb_N.jpg and sync_depth_N.png.

    The layout of BTS (Lee et al., arXiv 1907.10326), which most methods use: depth in millimeters,
    16 bits. The frames of a scene look alike, so "val" takes entire scenes of the training set.
    """

    name: ClassVar[str] = "nyu_depth"

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered chunks of 1000 pairs each."""
        self.check(split)
        root = self.root()

        def files(item: tuple[str, _Item]) -> list[Path]:
            return [root / path for path in (item[1].photo, item[1].depth) if path is not None]

        return {depth.TASK.name: chunks_of(self._items.get(split, []), root, files)}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The pairs of a chunk."""
        limits = (depth.NEAR * _MILLIMETERS, depth.FAR * _MILLIMETERS)
        for key, item in items_of(chunk, self._items[split]):
            if item.photo is None:
                yield RejectedItem(item.depth, "missing rgb")
                continue
            label = item.photo
            try:
                photo = open_annotation(self.root() / label, label, None, None)
                label = item.depth
                kind = AnnotationKind.depth
                found = open_annotation(self.root() / label, label, kind, limits)
                images = aligned(photo.stored, found.stored)
                require_same_size(images)
            except UserError as error:
                yield to_reject(label, error)
                continue
            target = self.to_square(images[1], labels=found.unsmoothed)
            yield Example(key, task, (self.to_square(images[0]), target))

    @cached_property
    def _items(self) -> dict[str, list[tuple[str, _Item]]]:
        """(key, pair) of each split."""

        def list_items() -> dict[str, list[_Item]]:
            found: dict[str, list[_Item]] = {}
            for folder, native in _FOLDERS.items():
                if not (self.root() / folder).is_dir():
                    continue
                for item in _scene_items(self.root(), self.root() / folder):
                    split = self.split_of(item.depth.rpartition("/")[0], native)
                    found.setdefault(split, []).append(item)
            return found

        splits = self.with_minimum_splits(list_items, PAIRS_NEEDED)
        if not any(splits.values()):
            raise UserError(
                f"source.path={self.path} has no official_splits/SPLIT/SCENE/rgb_*.jpg: set "
                "source.path to the directory that contains official_splits"
            )
        return {
            split: list(zip(unique_keys([item.name for item in items]), items, strict=True))
            for split, items in splits.items()
        }


def _scene_items(root: Path, folder: Path) -> Iterator[_Item]:
    """The pairs below a directory, and depths without a photograph; logs what is neither."""
    paths, others = image_files(folder), 0
    named = {path.with_suffix("") for path in paths}
    for path in paths:
        scene = path.parent.relative_to(root).as_posix()
        match = re.fullmatch(r"(rgb|sync_depth)_(\w+)", path.stem)
        if match is None:
            others += 1
            continue
        name, depth_path = f"{scene}/{match[2]}", f"{scene}/sync_depth_{match[2]}.png"
        if match[1] == "rgb":
            yield _Item(name, f"{scene}/{path.name}", depth_path)
        elif path.with_name(f"rgb_{match[2]}") not in named:
            yield _Item(name, None, f"{scene}/{path.name}")
    if others:
        log(f"prepare: {others:,} images in {folder} are neither rgb_* nor sync_depth_*, left out")
