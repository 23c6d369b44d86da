"""Read any example of a shard directly, without reading the ones before it.

A tar stores its members uncompressed and contiguous, so a member is a byte range of the file. A
shard is scanned once to index these ranges; after that, reading an example is one `pread`. Memory
holds the index of a bounded number of shards, never their contents.
"""

import itertools
import os
from bisect import bisect_right
from collections import OrderedDict
from tarfile import TarError
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from delvm.data.shards.manifest import Manifest, member_names
from delvm.data.shards.reader import check_count, decode_image, members
from delvm.errors import UserError
from delvm.storage import StoragePath, local_copy

MAX_OPEN_SHARDS = 256  # per stream, well below the usual limit of 1,024 open files

Index = TypeVar("Index")


class _ShardCache(Generic[Index]):
    """The shards of one task, opened and indexed on first use; least recently used are closed."""

    def __init__(
        self, root: StoragePath, manifest: Manifest, max_open: int = MAX_OPEN_SHARDS
    ) -> None:
        """Set up the readers of one task; nothing is opened yet.

        Args:
            root: Root of the shards.
            manifest: Of the task.
            max_open: Shards that may be open at the same time.
        """
        self.max_open = max(1, max_open)
        self.folder = root / manifest.split / manifest.task
        self.manifest = manifest
        self._open: OrderedDict[int, tuple[int, StoragePath, Index]] = OrderedDict()

    def index(self, path: StoragePath) -> tuple[int, Index]:
        """(number of examples, their byte ranges) of a shard."""
        raise NotImplementedError

    def shard(self, number: int) -> tuple[int, StoragePath, Index]:
        """(file descriptor, path, index) of a shard.

        Raises:
            UserError: It is missing or damaged, or its contents differ from its manifest.
        """
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self.manifest.shards[number]
        path = self.folder / shard["file"]
        count, index = self.index(path)
        check_count(path, count, shard["count"])
        if len(self._open) >= self.max_open:
            os.close(self._open.popitem(last=False)[1][0])
        self._open[number] = os.open(local_copy(path), os.O_RDONLY), path, index
        return self._open[number]

    def describe(
        self, shards: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]
    ) -> list[dict[str, Any]]:
        """Examples (n,) for a report: {"task", "shard": file name, "index": in the shard}."""
        return [
            {
                "task": self.manifest.task,
                "shard": self.manifest.shards[shard]["file"],
                "index": index,
            }
            for shard, index in zip(shards.tolist(), indices.tolist(), strict=True)
        ]

    def close(self) -> None:
        """Close every file."""
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __del__(self) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        """The state without open files: a worker process opens its own."""
        return vars(self) | {"_open": OrderedDict()}


class _TokenIndex(NamedTuple):
    """Of each record in a token shard: where its ids begin, and the number of its first example."""

    offsets: list[int]
    first: list[int]


class TokenShardReader(_ShardCache[_TokenIndex]):
    """Random access to the examples in one task's token shards."""

    def __init__(
        self, root: StoragePath, manifest: Manifest, max_open: int = MAX_OPEN_SHARDS
    ) -> None:
        super().__init__(root, manifest, max_open)
        assert manifest.tokens_per_image is not None and manifest.vocab_size is not None
        self.tokens_per_example = manifest.images_per_example * manifest.tokens_per_image
        self.vocab_size = manifest.vocab_size

    def read(
        self,
        shards: npt.NDArray[np.int64],
        indices: npt.NDArray[np.int64],
        out: npt.NDArray[np.uint16],
    ) -> None:
        """Read examples into an array.

        Args:
            shards, indices: (n,): the shard of each example, and its index there.
            out: (n, k * N) uint16, contiguous.

        Raises:
            UserError: A shard cannot be read, or holds an id outside the vocabulary.
        """
        assert out.dtype == np.uint16 and out.shape == (len(shards), self.tokens_per_example)
        size = 2 * self.tokens_per_example
        buffer = out.reshape(-1).view(np.uint8).data
        for n, (number, index) in enumerate(zip(shards.tolist(), indices.tolist(), strict=True)):
            file, path, records = self.shard(number)
            record = bisect_right(records.first, index) - 1
            offset = records.offsets[record] + (index - records.first[record]) * size
            if os.preadv(file, [buffer[n * size : (n + 1) * size]], offset) != size:
                raise UserError(f"shard {path} is damaged: it ends before its example {index}")
        if len(out) and (worst := int(out.max())) >= self.vocab_size:
            name = self.manifest.shards[int(shards[out.max(axis=1).argmax()])]["file"]
            raise UserError(
                f"{self.folder / name}: id {worst} is outside [0, {self.vocab_size}): "
                "write it again, or look at it with `delvm inspect`"
            )

    def index(self, path: StoragePath) -> tuple[int, _TokenIndex]:
        """Where the records of a shard are, each checked to be an array of ids."""
        k = self.manifest.images_per_example
        n = self.tokens_per_example // k
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
        return count, _TokenIndex(offsets, first)


class _ImageIndex(NamedTuple):
    """Of each image in a shard: (n, k, 2) int64 offset and size in bytes; and the keys."""

    ranges: npt.NDArray[np.int64]
    keys: list[str]


class ImageShardReader(_ShardCache[_ImageIndex]):
    """Random access to the images in one task's image shards."""

    def read(self, shard: int, index: int, image: int) -> tuple[str, npt.NDArray[np.uint8]]:
        """Read one image of an example.

        Args:
            shard: Number of the shard.
            index: Of the example in the shard.
            image: Of the image in the example.

        Returns:
            The example's key, and the image (H, H, 3) uint8.

        Raises:
            UserError: The shard or the image cannot be read, or the image has another size.
        """
        file, path, found = self.shard(shard)
        offset, size = found.ranges[index, image].tolist()
        key, name = found.keys[index], member_names(self.manifest.images_per_example)[image]
        contents = os.pread(file, size, offset)
        return key, decode_image(contents, f"{path}: {key}.{name}", self.manifest.image_size)

    def index(self, path: StoragePath) -> tuple[int, _ImageIndex]:
        """Where the images of a shard are."""
        names = member_names(self.manifest.images_per_example)
        keys: list[str] = []
        ranges: list[list[tuple[int, int]]] = []
        found = ((key, (name, info)) for _, info, key, name in members(path))
        for key, group in itertools.groupby(found, key=lambda member: member[0]):
            files = {name: (info.offset_data, info.size) for _, (name, info) in group}
            if files.keys() != set(names):
                raise UserError(f"{path}: {key} holds {sorted(files)}, not {sorted(names)}")
            keys.append(key)
            ranges.append([files[name] for name in names])
        return len(keys), _ImageIndex(np.array(ranges, np.int64), keys)
