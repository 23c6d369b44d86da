"""What the readers of raw data sets share: their settings, splits, parts and safe opening."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from PIL import Image

from delvm.data.image_io import open_image, resize_center_crop
from delvm.data.types import SPLITS, Example, RejectedItem, SourceChunk, split_into_chunks
from delvm.errors import UserError, check_members, did_you_mean

FILES_A_PART = 1000
PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm"))

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@runtime_checkable
class Source(Protocol):
    """Where examples come from: what `delvm prepare source=...` needs of an object.

    The examples of a chunk must be a function of the settings alone. A source may also have a
    `name`, which manifests record; without one it is the name of the class in lower case.

    Attributes:
        size: side of the images it makes, in pixels.
        seed: of whatever is random about it.
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
    wanted = {
        "size": "size",
        "seed": "seed",
        "settings": "settings(split, task)",
        "chunks": "chunks(split)",
        "read": "read(split, task, chunk)",
    }
    check_members(source, "source", wanted)
    return cast(Source, source)


def source_name(source: Source) -> str:
    """The name that manifests record."""
    name: str = getattr(source, "name", type(source).__name__.lower())
    return name


@dataclass(kw_only=True)
class RawSource:
    """A data set on disk.

    Attributes:
        path: its root.
        size: side of the pictures to be made, in pixels.
        seed: of whatever is random, the split included.
        val, test: share of the material that goes to a split which the data set does not have
            itself; an item's split is a function of (seed, key).
    """

    path: str
    size: int = 256
    seed: int = 0
    val: float = 0.01
    test: float = 0.01

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """Every setting but size and seed, which a manifest says apart."""
        values = asdict(self)
        return {name: values[name] for name in values if name not in ("size", "seed")}

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """The parts of each task in a split, without reading them.

        Raises:
            UserError: the raw material is not there, or is of another layout.
        """
        raise NotImplementedError

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The examples of a part in order, and what had to be left out."""
        raise NotImplementedError

    def root(self) -> Path:
        """The folder of the data set.

        Raises:
            UserError: it is not there.
        """
        root = Path(self.path)
        if not root.exists():
            raise UserError(f"source.path={self.path} is not there: set source.path=FOLDER")
        return root

    def draw(self, *parts: str | int) -> float:
        """A number in [0, 1) that is a function of the seed and the parts."""
        text = "/".join(map(str, (self.seed, *parts)))
        digest = blake2b(encoded(text), digest_size=8).digest()
        return int.from_bytes(digest, "little") / 2**64

    def rng(self, *parts: str | int) -> np.random.Generator:
        """A generator that is a function of the seed and the parts."""
        text = "/".join(map(str, (self.seed, *parts)))
        digest = blake2b(encoded(text), digest_size=16).digest()
        return np.random.default_rng(int.from_bytes(digest, "little"))

    def split_of(self, key: str, natural: str | None = None) -> str:
        """The split of an item.

        Args:
            key: of the item; items that must not be parted (crops of one picture, frames of one
                scene) are given one key.
            natural: the split that the data set itself has it in; "train" gives up a share to
                "val", and others are left as they are.
        """
        if natural not in (None, "train"):
            assert natural is not None
            return natural
        place = self.draw("split", key)
        if place < self.val:
            return "val"
        return "test" if natural is None and place < self.val + self.test else "train"

    def picture(self, file: Path | bytes, name: str = "") -> np.ndarray:
        """A picture (size, size, 3) uint8, its short side scaled and its middle cropped.

        Raises:
            UserError: it cannot be opened.
        """
        return np.asarray(resize_center_crop(open_image(file, name), self.size))


def middle_square(width: int, height: int) -> Box:
    """The largest square in the middle of a picture."""
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def encoded(text: str) -> bytes:
    """Text as bytes, even the name of a file that is no Unicode."""
    return text.encode("utf-8", "surrogatepass")


def check_split(split: str) -> None:
    """Refuse a split that does not exist.

    Raises:
        UserError: there is no such split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")


def pictures_in(folder: Path) -> list[Path]:
    """Every picture below a folder, in the order of their paths; hidden files are none."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and not path.name.startswith(".")
    )


def file_parts(files: Sequence[Any]) -> list[SourceChunk]:
    """Files in numbered parts."""
    return split_into_chunks(len(files), FILES_A_PART)


def files_of(part: SourceChunk, files: Sequence[Any]) -> Sequence[Any]:
    """The files of one of `file_parts`."""
    first = int(part.name) * FILES_A_PART
    return files[first : first + FILES_A_PART]


def plain(*parts: str | int) -> str:
    """A key that can be a file's name, made of any text: other signs become `_`."""
    return re.sub(r"[^\w-]", "_", "-".join(map(str, parts)), flags=re.ASCII)


def distinct(names: Sequence[str]) -> list[str]:
    """A key of each name, made of its text; where two would be alike, a digest sets them apart."""
    keys = [plain(*name.split("/")) for name in names]
    often = Counter(keys)
    return [
        key if often[key] == 1 else f"{key}-{blake2b(encoded(name), digest_size=6).hexdigest()}"
        for key, name in zip(keys, names, strict=True)
    ]


def rejected(name: str, error: UserError) -> RejectedItem:
    """What `open_image` refused under this name, which its reason need not repeat."""
    return RejectedItem(name, str(error).removeprefix(f"{name} ").removesuffix(f": {name}"))


def same_size(pictures: Sequence[Image.Image]) -> None:
    """Refuse pictures that belong together and are of different size.

    Raises:
        UserError: their sizes.
    """
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        named = " and ".join(f"{w} x {h}" for w, h in sorted(sizes))
        raise UserError(f"pictures of {named} pixels belong together")
