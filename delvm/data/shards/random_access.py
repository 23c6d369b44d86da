"""Reading any example of a shard at once, without the ones before it.

Tars keep their members whole and uncompressed, so a member is a stretch of the file. A shard is
walked once to learn where they are; then reading an example is one `pread`. Memory holds the
places in a bounded number of shards, never what they contain.
"""

import itertools
import os
from bisect import bisect_right
from collections import OrderedDict
from tarfile import TarError
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from delvm.data.image_io import open_image
from delvm.data.shards.io import members
from delvm.data.shards.manifest import Manifest, member_names
from delvm.errors import UserError
from delvm.storage import StoragePath, local_copy

OPEN_SHARDS = 256  # of a stream, so that the system's usual limit of 1,024 files is far

Index = TypeVar("Index")


class _Open(Generic[Index]):
    """The shards of one task, each opened and indexed when first asked for and kept a while."""

    def __init__(self, root: StoragePath, manifest: Manifest, keep: int = OPEN_SHARDS) -> None:
        """Say where the shards are, and how many may be open at a time."""
        self.keep = max(1, keep)
        self.folder = root / manifest.split / manifest.task
        self.manifest = manifest
        self._open: OrderedDict[int, tuple[int, StoragePath, Index]] = OrderedDict()

    def index(self, path: StoragePath) -> tuple[int, Index]:
        """(number of examples, where they are) of a shard."""
        raise NotImplementedError

    def shard(self, number: int) -> tuple[int, StoragePath, Index]:
        """(file descriptor, path, index) of a shard.

        Raises:
            UserError: It is missing or damaged, or holds something else than its manifest says.
        """
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self.manifest.shards[number]
        path = self.folder / shard["file"]
        count, index = self.index(path)
        if count != shard["count"]:
            raise UserError(
                f"{path} holds {count} examples, its manifest says {shard['count']}: make it again"
            )
        if len(self._open) >= self.keep:
            os.close(self._open.popitem(last=False)[1][0])
        self._open[number] = os.open(local_copy(path), os.O_RDONLY), path, index
        return self._open[number]

    def named(self, shards: np.ndarray, places: np.ndarray) -> list[dict[str, Any]]:
        """Examples (n,) as people find them: {"task", "shard": file, "place": in it}."""
        return [
            {
                "task": self.manifest.task,
                "shard": self.manifest.shards[shard]["file"],
                "place": place,
            }
            for shard, place in zip(shards.tolist(), places.tolist(), strict=True)
        ]

    def close(self) -> None:
        """Close every file."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """Without open files: a worker process opens its own."""
        return vars(self) | {"_open": OrderedDict()}


class _Records(NamedTuple):
    """Of a token shard: where each record's ids begin, and the number of its first example."""

    offsets: list[int]
    first: list[int]


class TokenAccess(_Open[_Records]):
    """Any example of one task's token shards."""

    def __init__(self, root: StoragePath, manifest: Manifest, keep: int = OPEN_SHARDS) -> None:
        super().__init__(root, manifest, keep)
        assert manifest.tokens_per_image is not None and manifest.vocab_size is not None
        self.tokens = manifest.pictures * manifest.tokens_per_image  # an example
        self.vocab_size = manifest.vocab_size

    def read(self, shards: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
        """Read examples into an array.

        Args:
            shards, places: (n,): which shard each example is in, and its place there.
            out: (n, k * N) uint16, contiguous.

        Raises:
            UserError: A shard cannot be read, or holds an id outside the vocabulary.
        """
        assert out.dtype == np.uint16 and out.shape == (len(shards), self.tokens)
        size = 2 * self.tokens
        buffer = out.reshape(-1).view(np.uint8).data
        for n, (number, place) in enumerate(zip(shards.tolist(), places.tolist(), strict=True)):
            file, path, records = self.shard(number)
            record = bisect_right(records.first, place) - 1
            offset = records.offsets[record] + (place - records.first[record]) * size
            if os.preadv(file, [buffer[n * size : (n + 1) * size]], offset) != size:
                raise UserError(f"shard {path} is damaged: it ends before its example {place}")
        if len(out) and (worst := int(out.max())) >= self.vocab_size:
            at = self.manifest.shards[int(shards[out.max(axis=1).argmax()])]["file"]
            raise UserError(
                f"{self.folder / at}: id {worst} is outside [0, {self.vocab_size}): "
                "make it again, or look with `delvm inspect`"
            )

    def index(self, path: StoragePath) -> tuple[int, _Records]:
        """Where the records of a shard are, each checked to be an array of ids."""
        k = self.manifest.pictures
        n = self.tokens // k
        offsets, first, count = [], [], 0
        for tar, info, key, name in members(path):
            file = tar.extractfile(info)
            assert file is not None
            try:
                if name != "ids.npy" or np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError(f"{name} is not ids.npy of version 1.0")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                if dtype != np.dtype("<u2") or fortran or shape[1:] != (k, n) or not shape[0]:
                    raise ValueError(f"{dtype} {shape} is not <u2 (n, {k}, {n})")
                if file.tell() + 2 * shape[0] * k * n != info.size:
                    raise ValueError(f"{info.size} bytes are not an array {shape} of {dtype}")
            except (ValueError, EOFError, TarError) as error:
                raise UserError(f"{path}: {key}.{name}: {error}") from None
            offsets.append(info.offset_data + file.tell())
            first.append(count)
            count += shape[0]
        return count, _Records(offsets, first)


class _Members(NamedTuple):
    """Of a shard of pictures: where each one is, (n, k, 2): offset and size; and the keys."""

    places: np.ndarray
    keys: list[str]


class PictureAccess(_Open[_Members]):
    """Any picture of one task's image shards."""

    def read(self, number: int, place: int, picture: int) -> tuple[str, np.ndarray]:
        """One picture of an example.

        Args:
            number: Of the shard.
            place: Of the example in it.
            picture: Which of the example's.

        Returns:
            The example's key, and the picture (H, H, 3) uint8.

        Raises:
            UserError: The shard or the picture cannot be read, or is of another size.
        """
        file, path, index = self.shard(number)
        offset, size = index.places[place, picture].tolist()
        key, name = index.keys[place], member_names(self.manifest.pictures)[picture]
        pixels = np.asarray(open_image(os.pread(file, size, offset), f"{path}: {key}.{name}"))
        side = self.manifest.image_size
        if pixels.shape != (side, side, 3):
            raise UserError(f"{path}: {key}.{name} is {pixels.shape}, not {(side, side, 3)}")
        return key, pixels

    def index(self, path: StoragePath) -> tuple[int, _Members]:
        """Where the pictures of a shard are."""
        names = member_names(self.manifest.pictures)
        keys: list[str] = []
        places: list[list[tuple[int, int]]] = []
        found = ((key, (name, info)) for _, info, key, name in members(path))
        for key, group in itertools.groupby(found, key=lambda member: member[0]):
            files = {name: (info.offset_data, info.size) for _, (name, info) in group}
            if files.keys() != set(names):
                raise UserError(f"{path}: {key} holds {sorted(files)}, not {sorted(names)}")
            keys.append(key)
            places.append([files[name] for name in names])
        return len(keys), _Members(np.array(places, np.int64), keys)
