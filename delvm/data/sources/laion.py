"""Pictures in tars as img2dataset writes them: LAION and whatever else it has fetched."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar

import numpy as np

from delvm.data.image_io import open_image, resize_center_crop
from delvm.data.sources._io.tar import members, tars_in
from delvm.data.sources.base import PICTURES, RawSource, check_split, plain, rejected
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError

# What img2dataset writes beside a picture: its caption and what else is known of it.
BESIDE = frozenset((".json", ".txt"))


@dataclass
class Laion(RawSource):
    """NNNNN.tar with KEY.jpg (or webp, png), KEY.json and KEY.txt.

    Tars are read as streams, and nothing is unpacked. A picture's split is drawn by its tar and
    name, so each tar holds all the splits and is read once for each.

    Attributes:
        min_side: pictures with a shorter side are rejected; 0 takes all.
    """

    name: ClassVar[str] = "laion"
    min_side: int = 0

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """A part for each tar, called as it is."""
        check_split(split)
        return {"images": [SourceChunk(name) for name in self._tars]}

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The pictures of a tar that belong to the split, and what had to be left out."""
        path = self._tars[part.name]
        tar = path.relative_to(self.root()).as_posix()
        keys: set[str] = set()
        for name, content in members(path, PICTURES, BESIDE):
            whole = f"{tar}/{name}" if name else tar
            if self.split_of(whole.rpartition(".")[0] if name else tar) != split:
                continue
            if isinstance(content, str):
                yield RejectedItem(whole, content)
                continue
            key = plain(part.name, *PurePosixPath(name).with_suffix("").parts)
            try:
                picture = self._picture(content, whole)
            except UserError as error:
                yield rejected(whole, error)
                continue
            if key in keys:
                yield RejectedItem(whole, f"its key {key} comes twice")
                continue
            keys.add(key)
            yield Example(key, task, (picture,))

    def _picture(self, content: bytes, name: str) -> np.ndarray:
        image = open_image(content, name)
        if min(image.size) < self.min_side:
            width, height = image.size
            raise UserError(f"{width} x {height} pixels, below min_side={self.min_side}")
        return np.asarray(resize_center_crop(image, self.size))

    @cached_property
    def _tars(self) -> dict[str, Path]:
        """The tars below the root, by the names of their parts."""
        return tars_in(self.root())
