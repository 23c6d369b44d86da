"""Read shards from front to back. Tars may come from elsewhere: all that is read is checked."""

import io
import itertools
import os
import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from webdataset.tariterators import group_by_keys

from delvm.data.image_io import open_image
from delvm.data.shards.fetch import ShardCommand, ShardPath, fetch, read_ahead
from delvm.data.shards.manifest import (
    Manifest,
    TokenIds,
    ids_error,
    load_manifest,
    member_names,
)
from delvm.data.types import Example, ImageArray
from delvm.errors import UserError
from delvm.storage import StoragePath, as_path, local_copy
from delvm.untrusted import parse_npy

T = TypeVar("T")
FileBytes: TypeAlias = bytes | memoryview  # a member of a tar; a view where the tar is in memory

READ_RETRIES, READ_TIMEOUT_S = 3, 600.0  # of a remote shard


def read_examples(
    root: StoragePath, split: str, task: str, start: int = 0, manifest: Manifest | None = None
) -> Iterator[Example]:
    """The examples of a task in order, from index `start` on.

    Args:
        root: Root of the image shards; of remote ones no copies are kept.
        manifest: Of this split and task, if it has been loaded and checked already.

    Raises:
        UserError: A shard is missing or damaged, or its contents differ from its manifest.
    """
    for decode in iter_lazy(root, split, task, start, manifest):
        yield decode()


def iter_lazy(
    root: StoragePath,
    split: str,
    task: str,
    start: int = 0,
    manifest: Manifest | None = None,
    stop: int | None = None,
) -> Iterator[Callable[[], Example]]:
    """Like `read_examples`, but yields calls that decode an example, in any thread.

    Args:
        root, split, task, start, manifest: As for `read_examples`.
        stop: Index of the first example that is left out. Where it is given, remote shards are
            fetched one ahead, so that memory holds two of them; otherwise one.

    Raises:
        UserError: As `read_examples`; a damaged image is reported when it is decoded.
    """
    manifest = manifest or load_manifest(root, split, task, "images")
    folder = as_path(root) / split / task
    shards = _image_records(folder, manifest, start, manifest.count if stop is None else stop)
    if stop is not None and not isinstance(folder, Path):
        shards = read_ahead(shards)
    for path, records in shards:
        for key, files in records:
            yield partial(_decode, path, key, files, manifest)


def _image_records(
    folder: StoragePath, manifest: Manifest, start: int, stop: int
) -> Iterator[tuple[StoragePath, Iterator[tuple[str, list[FileBytes]]]]]:
    """The path of each shard that holds any of the examples `start` to `stop`, and these."""
    end = 0
    for shard in manifest.shards:
        count = shard["count"]
        first, end = end, end + count
        if start < end and first < stop:
            path = folder / shard["file"]
            records = _from_store(path, partial(read_image_shard, path, manifest, count))
            # To its end, where its count is checked, if its last example is asked for.
            last = stop - first if stop < end else None
            yield path, itertools.islice(records, max(0, start - first), last)


def _from_store(path: StoragePath, read: Callable[[bytes | None], Iterator[T]]) -> Iterator[T]:
    """What is read of a shard. A remote one is fetched, several times if need be, and not kept."""
    if isinstance(path, Path):
        return read(None)
    return iter(fetch(path, lambda contents: [*read(contents)], READ_RETRIES, READ_TIMEOUT_S))


def read_image_shard(
    path: ShardPath, manifest: Manifest, expected: int, contents: bytes | None = None
) -> Iterator[tuple[str, list[FileBytes]]]:
    """The examples of one shard in order: the key, and each image as its file.

    Args:
        path: Of the shard.
        manifest: Of its task.
        expected: Examples that it holds by the manifest.
        contents: Of it, if they have been fetched already.

    Raises:
        UserError: The shard is missing or damaged, or its contents differ from its manifest.
    """
    names, count = member_names(manifest.images_per_example), 0
    for key, files in _read_records(path, set(names), contents):
        count += 1
        yield key, [files[name] for name in names]
    check_count(path, count, expected)


def decode_image(file: FileBytes, name: str, side: int) -> ImageArray:
    """An image of a shard, (side, side, 3) uint8.

    Raises:
        UserError: It cannot be read, or has another size.
    """
    image = np.asarray(open_image(bytes(file), name))
    if image.shape != (side, side, 3):
        raise UserError(f"{name} is {image.shape}, not {(side, side, 3)}")
    return image


def _decode(path: StoragePath, key: str, files: list[FileBytes], manifest: Manifest) -> Example:
    names = member_names(manifest.images_per_example)
    images = (
        decode_image(file, f"{path}: {key}.{name}", manifest.image_size)
        for name, file in zip(names, files, strict=True)
    )
    return Example(key, manifest.task, tuple(images))


def read_tokens(
    root: StoragePath, split: str, task: str, manifest: Manifest | None = None
) -> Iterator[TokenIds]:
    """The records of a task in order: uint16 (n, k, N), k images per example.

    Args:
        root: Root of the token shards; of remote ones no copies are kept.
        manifest: Of this split and task, if it has been loaded and checked already.

    Raises:
        UserError: A shard is missing or damaged, or its contents differ from its manifest.
    """
    manifest = manifest or load_manifest(root, split, task, "tokens")
    for shard in manifest.shards:
        path = as_path(root) / split / task / shard["file"]
        yield from _from_store(path, partial(read_token_shard, path, manifest, shard["count"]))


def read_token_shard(
    path: ShardPath, manifest: Manifest, expected: int, contents: bytes | None = None
) -> Iterator[TokenIds]:
    """The records of one shard in order: uint16 (n, k, N), k images per example.

    Args:
        path: Of the shard.
        manifest: Of its task.
        expected: Examples that it holds by the manifest.
        contents: Of it, if they have been fetched already.

    Raises:
        UserError: The shard is missing or damaged, or its contents differ from its manifest.
    """
    count = 0
    for key, files in _read_records(path, {"ids.npy"}, contents):
        try:
            array = parse_npy(files["ids.npy"])
        except ValueError as error:
            raise UserError(f"{path}: {key}.ids.npy cannot be read: {error}") from None
        wrong = ids_error(array, manifest)
        if array.dtype != np.uint16:
            wrong = f"{array.dtype} is not uint16"
        if wrong:
            raise UserError(f"{path}: {key}.ids.npy: {wrong}")
        count += len(array)
        yield array
    check_count(path, count, expected)


def check_count(path: ShardPath, count: int, expected: int) -> None:
    """Refuse a shard that holds another number of examples than its manifest lists."""
    if count != expected:
        raise UserError(
            f"{path} holds {count} examples, its manifest lists {expected}: write it again"
        )


def _read_records(
    path: ShardPath, names: set[str], contents: bytes | None = None
) -> Iterator[tuple[str, dict[str, FileBytes]]]:
    """(key, {name: bytes}) of a tar whose records hold exactly the `names`."""
    with shard_errors(path):
        for record in group_by_keys(_read_members(path, contents)):
            key = record["__key__"]
            files = {name: data for name, data in record.items() if not name.startswith("__")}
            if files.keys() != names:
                raise UserError(f"{path}: {key} holds {sorted(files)}, not {sorted(names)}")
            yield key, files


def _read_members(path: ShardPath, contents: bytes | None) -> Iterator[dict[str, Any]]:
    """Each member as WebDataset's stages pass it on; nothing is ever unpacked to disk.

    In place of webdataset's tar_file_expander, which unpacks compressed tars of any size, trusts
    the size that a sparse member claims, skips links silently, and takes up to 1.7 times as long.
    """
    for tar, info, _, _ in members(path, contents):
        if contents is not None:
            # Without a copy, so that memory holds a shard once.
            data: FileBytes = memoryview(contents)[info.offset_data :][: info.size]
        else:
            # Not through tar.extractfile, whose buffers cost as much as reading a small image.
            assert tar.fileobj is not None
            tar.fileobj.seek(info.offset_data)
            data = tar.fileobj.read(info.size)
        if len(data) != info.size:
            raise EOFError("unexpected end of data")
        yield {"fname": info.name, "data": data, "__url__": str(path)}


def members(
    path: ShardPath, contents: bytes | None = None
) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str, str]]:
    """(tar, member, key, name) of each member KEY.NAME of a shard.

    Args:
        path: Of the shard.
        contents: Of it, if they have been fetched already.

    Raises:
        UserError: The shard is missing or damaged, or a member is not a plain file of such a name.
    """
    with shard_errors(path), _open_tar(path, contents) as tar:
        end = os.path.getsize(str(tar.name)) if contents is None else len(contents)
        for info in tar:
            parts = re.fullmatch(r"([\w-]+)\.([a-z0-9]+\.[a-z]+)", info.name)
            # A sparse member may claim a size that no disk holds.
            if not parts or not info.isreg() or info.issparse():
                raise UserError(f"{path}: unexpected member {info.name!r}")
            if not 0 <= info.size <= end - info.offset_data:
                raise EOFError(f"{info.name} claims {info.size:,} bytes")
            yield tar, info, parts[1], parts[2]


def _open_tar(path: ShardPath, contents: bytes | None) -> tarfile.TarFile:
    if contents is None:
        assert not isinstance(path, ShardCommand)
        return tarfile.open(local_copy(path), "r:")
    return tarfile.open(fileobj=io.BytesIO(contents), mode="r:")


@contextmanager
def shard_errors(path: ShardPath) -> Iterator[None]:
    """Report what is wrong with a shard in one line."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"shard not found: {path}") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise _damaged(path, error) from None
    except RecursionError:  # of tarfile, once for each header that only extends the next one
        raise _damaged(path, "too many headers in a row") from None
    except ValueError as error:  # of group_by_keys: its message, then objects
        raise _damaged(path, error.args[0]) from None


def _damaged(path: ShardPath, reason: object) -> UserError:
    return UserError(
        f"shard {path} is damaged ({reason}): delete it, and run again what made it, "
        "`delvm prepare` (images) or `delvm encode` (tokens)"
    )
