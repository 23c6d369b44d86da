"""Images in tars as img2dataset writes them, such as LAION."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import ClassVar

from delvm.data.image_io import open_image
from delvm.data.sources._io.tar import find_tars, iter_members
from delvm.data.sources.base import IMAGE_SUFFIXES, RawSource, sanitize_key, tar_chunks, to_reject
from delvm.data.types import Example, ImageArray, RejectedItem, SourceChunk
from delvm.errors import UserError

# What img2dataset writes next to an image: its metadata and its caption.
SIDECAR_SUFFIXES = frozenset((".json", ".txt"))


@dataclass
class Laion(RawSource):
    """NNNNN.tar with KEY.jpg (or webp, png), KEY.json and KEY.txt.

    Tars are streamed, and nothing is extracted. The split of an image depends on its tar and name,
    so each tar contains all the splits and is read once for each.

    Attributes:
        min_side: images with a shorter side are rejected; 0 accepts all.
    """

    name: ClassVar[str] = "laion"
    min_side: int = 0

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """A chunk for each tar, named after it."""
        self.check(split)
        return {"images": tar_chunks(self._tars, self.root())}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The images of a tar that belong to the split, and the rejected members."""
        path = self._tars[chunk.name]
        tar = path.relative_to(self.root()).as_posix()
        keys: set[str] = set()
        for name, content in iter_members(path, IMAGE_SUFFIXES, SIDECAR_SUFFIXES):
            full_name = f"{tar}/{name}" if name else tar
            if self.split_of(full_name.rpartition(".")[0] if name else tar) != split:
                continue
            if isinstance(content, str):
                yield RejectedItem(full_name, content)
                continue
            key = sanitize_key(chunk.name, *PurePosixPath(name).with_suffix("").parts)
            try:
                image = self._open(content, full_name)
            except UserError as error:
                yield to_reject(full_name, error)
                continue
            if key in keys:
                yield RejectedItem(full_name, f"duplicate key {key}")
                continue
            keys.add(key)
            yield Example(key, task, (image,))

    def _open(self, content: bytes, name: str) -> ImageArray:
        image = open_image(content, name)
        if min(image.size) < self.min_side:
            width, height = image.size
            raise UserError(f"{width} x {height} pixels, below min_side={self.min_side}")
        return self.to_square(image)

    @cached_property
    def _tars(self) -> dict[str, Path]:
        """The tars below the root, by the names of their chunks."""
        return find_tars(self.root())
