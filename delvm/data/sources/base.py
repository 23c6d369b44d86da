"""What all data sources share: the protocol, common settings, splits, chunks and safe opening."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
from PIL import Image

from delvm.data.image_io import open_image
from delvm.data.resizing import ResizeMode, to_square_array
from delvm.data.sources._io.minimum_splits import SplitMoves, with_minimum_splits
from delvm.data.sources._io.walk import walk
from delvm.data.types import (
    SPLITS,
    Example,
    ImageArray,
    RejectedItem,
    SourceChunk,
    split_into_chunks,
)
from delvm.errors import UserError, check_members, did_you_mean
from delvm.progress import log

FILES_PER_CHUNK = 1000
# Taken for images: what cannot be read is rejected with a reason.
IMAGE_SUFFIXES = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".tga",
    ".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".jp2", ".jxl",
))  # fmt: skip
# Images too, but of kinds that are never read; they are counted in a message.
UNREAD_SUFFIXES = frozenset((
    ".psd", ".svg", ".eps", ".pdf", ".exr", ".hdr", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw",
))  # fmt: skip

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
T = TypeVar("T")


@runtime_checkable
class Source(Protocol):
    """Where examples come from: what `delvm prepare source=...` needs of an object.

    The examples of a chunk must depend on the settings alone. A source may also have a `name`,
    which manifests record; without one it is the name of the class in lower case. With a method
    `write_record(root)` it may write a file of its own next to the splits; `delvm prepare` calls it
    before the first chunk and after each.

    Attributes:
        size: side of its images in pixels.
        seed: of everything random about it.
    """

    size: int
    seed: int

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """What the examples depend on besides size and seed, for JSON."""
        ...

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """The chunks of each task in a split, without reading them.

        Raises:
            UserError: the raw data is missing, or has another layout.
        """
        ...

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The examples of a chunk in order, and the items that were rejected."""
        ...


def check_source(source: object) -> Source:
    """The same object, if it has everything that `Source` asks for.

    Raises:
        UserError: it has not; the message names what is missing.
    """
    check_members(source, Source, "source")
    return cast(Source, source)


def source_name(source: Source) -> str:
    """The name that manifests record."""
    name: str = getattr(source, "name", type(source).__name__.lower())
    return name


@dataclass(kw_only=True)
class RawSource:
    """A data set on disk.

    Attributes:
        path: its root directory.
        size: side of the images to make, in pixels.
        seed: of everything random, such as the split.
        resize: how an image of another shape becomes a square: `delvm.data.resizing`.
        val_fraction, test_fraction: fraction of the items that goes to a split which the data set
            itself does not have, or more where a small data set has less than a sentence in it.
            Otherwise the split of an item depends on the seed and its key alone.
    """

    name: ClassVar[str]
    path: str
    size: int = 256
    seed: int = 0
    resize: ResizeMode = ResizeMode.short_side
    val_fraction: float = 0.01
    test_fraction: float = 0.01

    def validate(self) -> list[str]:
        """Every error of the settings alone, each starting with the key."""
        errors = []
        if self.size < 1:
            errors.append(f"size={self.size} is below 1: set source.size=256")
        if self.resize not in list(ResizeMode):
            valid = did_you_mean(self.resize, list(ResizeMode))
            errors.append(f"resize={self.resize} is unknown: {valid}")
        for key in ("val_fraction", "test_fraction"):
            if not 0 <= (value := getattr(self, key)) <= 1:
                errors.append(f"{key}={value} is not in [0, 1]: set source.{key}=0.01")
        return errors

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """Every setting but size and seed, which a manifest records separately."""
        return {key: value for key, value in asdict(self).items() if key not in ("size", "seed")}

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """The chunks of each task in a split, without reading them.

        Raises:
            UserError: the raw data is missing, or has another layout.
        """
        raise NotImplementedError

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The examples of a chunk in order, and the items that were rejected."""
        raise NotImplementedError

    def root(self) -> Path:
        """The root directory of the data set.

        Raises:
            UserError: it does not exist.
        """
        root = Path(self.path)
        if not root.exists():
            raise UserError(f"source.path={self.path} does not exist: set source.path=DIR")
        return root

    def check(self, split: str) -> None:
        """Refuse an unknown split, a missing root, and settings that are out of range.

        Raises:
            UserError: one of these.
        """
        check_split(split)
        self.root()
        for error in self.validate():
            raise UserError(f"source.{error}")

    def uniform(self, *key: str | int) -> float:
        """A number in [0, 1) that depends on the seed and the key alone."""
        text = "/".join(map(str, (self.seed, *key)))
        digest = blake2b(to_bytes(text), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64

    def rng(self, *key: str | int) -> np.random.Generator:
        """A random generator that depends on the seed and the key alone."""
        text = "/".join(map(str, (self.seed, *key)))
        digest = blake2b(to_bytes(text), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))

    def split_of(self, key: str, native_split: str | None = None) -> str:
        """The split of an item.

        Args:
            key: of the item. Items that must not be separated (crops of one image, frames of one
                scene) have the same key.
            native_split: its split in the data set itself. A fraction of "train" goes to "val";
                items of other native splits stay there.
        """
        if native_split not in (None, "train"):
            assert native_split is not None
            return native_split
        if key in self._moves.moved:
            return self._moves.moved[key]
        position = self.uniform("split", key)
        if position < self.val_fraction:
            return "val"
        if native_split is None and position < self.val_fraction + self.test_fraction:
            return "test"
        if self._moves.movable is not None:
            self._moves.movable[key] = ("val", "test") if native_split is None else ("val",)
        return "train"

    @cached_property
    def _moves(self) -> SplitMoves:
        return SplitMoves()

    def with_minimum_splits(
        self,
        list_items: Callable[[], dict[str, list[T]]],
        needed: int,
        rank: Callable[[str], Any] = lambda key: 0,
    ) -> dict[str, list[T]]:
        """The items of each split, at least so many in "val" and "test" where the data allow it.

        Args:
            list_items: lists them, by `split_of`.
            needed: items that a sentence takes.
            rank: of the keys, those to move first.
        """
        fractions = {"val": self.val_fraction, "test": self.test_fraction}

        def order(key: str) -> tuple[Any, float, str]:
            return rank(key), self.uniform("split", key), key

        return with_minimum_splits(self._moves, list_items, needed, fractions, order)

    def load_image(self, file: Path | bytes, name: str = "") -> ImageArray:
        """An image (size, size, 3), made a square as in `resize`.

        Raises:
            UserError: it cannot be opened.
        """
        return self.to_square(open_image(file, name))

    def to_square(self, image: Image.Image, *, labels: bool = False) -> ImageArray:
        """An RGB image as (size, size, 3), made a square as in `resize`.

        Args:
            image: of any shape.
            labels: whether its colors stand for labels, which must not be mixed.
        """
        return to_square_array(image, self.size, ResizeMode(self.resize), labels=labels)


def to_bytes(text: str) -> bytes:
    """Text as bytes, even the name of a file that is not valid Unicode."""
    return text.encode("utf-8", "surrogatepass")


def check_split(split: str) -> None:
    """Refuse an unknown split.

    Raises:
        UserError: the split is unknown.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")


def image_files(folder: Path) -> list[Path]:
    """Every image file below a directory, sorted by path; hidden files are skipped."""
    paths = [path for path in walk(folder) if not path.name.startswith(".")]
    unread = Counter(path.suffix.lower() for path in paths)
    found = sorted(unread.keys() & UNREAD_SUFFIXES)
    if left_out := [f"{unread[suffix]} {suffix}" for suffix in found]:
        log(f"prepare: not read in {folder}: {', '.join(left_out)}")
    return sorted(path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES)


def chunks_of(
    items: Sequence[T], root: Path, files: Callable[[T], Iterable[Path]]
) -> list[SourceChunk]:
    """Numbered chunks of `FILES_PER_CHUNK` items each.

    Args:
        items: Of a split.
        root: Of the data set.
        files: Those that an item is made from.
    """
    return [
        replace(
            chunk,
            inputs=files_digest(
                root, (file for item in items_of(chunk, items) for file in files(item))
            ),
        )
        for chunk in split_into_chunks(len(items), FILES_PER_CHUNK)
    ]


def tar_chunks(tars: Mapping[str, Path], root: Path) -> list[SourceChunk]:
    """A chunk for each tar, whose examples are not counted before it is read."""
    return [SourceChunk(name, inputs=files_digest(root, [path])) for name, path in tars.items()]


def files_digest(root: Path, files: Iterable[Path]) -> str:
    """A digest of the names, sizes and times of files, or of all that is in directories.

    It is the same where the data set is moved; reading contents would take as long as preparing.
    """
    digest = blake2b(digest_size=8)
    for file in files:
        for path in sorted(file.iterdir()) if file.is_dir() else [file]:
            try:
                stat = path.stat()
                version = f"{stat.st_size} {stat.st_mtime_ns}"
            except OSError:  # its item will be rejected
                version = "missing"
            digest.update(to_bytes(f"{os.path.relpath(path, root)}\0{version}\0"))
    return digest.hexdigest()


def items_of(chunk: SourceChunk, items: Sequence[T]) -> Sequence[T]:
    """The items of one of `chunks_of`."""
    first = int(chunk.name) * FILES_PER_CHUNK
    return items[first : first + FILES_PER_CHUNK]


def sanitize_key(*texts: str | int) -> str:
    """Any texts as a key that can be a file name: other characters become `_`."""
    return re.sub(r"[^\w-]", "_", "-".join(map(str, texts)), flags=re.ASCII)


def unique_keys(names: Sequence[str]) -> list[str]:
    """A key for each name; a digest is added where two would be equal."""
    keys = [sanitize_key(*name.split("/")) for name in names]
    counts = Counter(keys)
    return [
        key if counts[key] == 1 else f"{key}-{blake2b(to_bytes(name), digest_size=6).hexdigest()}"
        for key, name in zip(keys, names, strict=True)
    ]


def to_reject(name: str, error: UserError) -> RejectedItem:
    """The rejected item of an error of `open_image`, whose reason need not repeat the name."""
    return RejectedItem(name, str(error).removeprefix(f"{name} ").removesuffix(f": {name}"))


def require_same_size(images: Sequence[Image.Image]) -> None:
    """Refuse images of one example that differ in size.

    Raises:
        UserError: their sizes.
    """
    sizes = {image.size for image in images}
    if len(sizes) > 1:
        listed = " and ".join(f"{w} x {h}" for w, h in sorted(sizes))
        raise UserError(f"images of one example have different sizes: {listed} pixels")
