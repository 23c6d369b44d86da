"""Shards of pairs and of tokens: WebDataset tars with a manifest for each split and task.

    ROOT/SPLIT/TASK/NAME.tar ...       pictures: KEY.input.png, KEY.target.png of a pair,
                                                 KEY.000.png ... of other examples
                                       tokens:   KEY.ids.npy, uint16 (n, k, N), many a record
    ROOT/SPLIT/TASK/manifest.json      what the folder holds; written last
    ROOT/codebook.safetensors          token roots only: what the ids stand for

The same plan gives the same bytes. Tars may come from elsewhere: what is read is checked.
"""

import io
import itertools
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from delvm.data.image_io import open_image
from delvm.data.shards.manifest import (
    INCOMPLETE,
    MANIFEST,
    Manifest,
    examples_per_record,
    load_manifests,
    member_names,
    pending,
)
from delvm.data.types import Example
from delvm.errors import UserError
from delvm.storage import StoragePath, as_path, atomic_path, local_copy

Files = tuple[str, bytes]  # a member of a tar: its name and what it holds


# ---------------------------------------------------------------- writing


def write_tar(path: Path, members: Iterable[Files]) -> int:
    """Write a tar whose bytes depend on its members alone; returns how many there were."""
    count = 0
    # TarInfo's own defaults (time 0, user 0, mode 644) make the bytes depend on nothing else.
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            count += 1
    return count


def write_tokens(
    root: StoragePath,
    plan: Manifest,
    ids: Callable[[int, int], Iterable[np.ndarray]],
    overwrite: bool = False,
) -> Manifest:
    """Write the shards of token ids that are pending of a plan, then its manifest.

    Args:
        root: Folder of the whole corpus.
        plan: From `plan_tokens`.
        ids: ids(start, stop) gives the ids of the examples from start to stop, in order, as
            integer arrays (n, k, N) of any n; called once a shard.
        overwrite: Replace what was made with other settings.

    Raises:
        UserError: The folder is finished but was made with other settings.
        ValueError: Ids of another shape, outside the vocabulary, or too few or many of them.
    """
    for number in start_tokens(root, plan, overwrite):
        write_token_shard(root, plan, number, ids)
    return finalize_tokens(root, plan)


def start_tokens(root: StoragePath, plan: Manifest, overwrite: bool = False) -> list[int]:
    """Make a folder ready for `write_token_shard`; one process does so before any writes.

    Returns:
        The numbers of the shards to be written.

    Raises:
        UserError: The folder is finished but was made with other settings.
    """
    folder = as_path(root) / plan.split / plan.task
    todo = [shard["file"] for shard in pending(root, plan, overwrite)]
    if not started(root, plan) or ((folder / MANIFEST).exists() and overwrite):
        folder.mkdir(parents=True, exist_ok=True)
        # In this order a job killed here never takes old shards for those of the new plan.
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / INCOMPLETE).unlink(missing_ok=True)
        keep = {shard["file"] for shard in plan.shards} - set(todo)
        for file in {*folder.glob("*.tar"), *folder.glob(".*.part*")}:
            if file.name not in keep:
                file.unlink()
        plan.save(folder / INCOMPLETE)
    return missing_shards(root, plan)


def started(root: StoragePath, plan: Manifest) -> bool:
    """Whether a folder holds nothing but shards of a plan: some of them, or all and finished."""
    folder = as_path(root) / plan.split / plan.task
    try:
        if (folder / MANIFEST).exists():
            return Manifest.load(folder / MANIFEST) == plan and not missing_shards(root, plan)
        return (folder / INCOMPLETE).exists() and Manifest.load(folder / INCOMPLETE) == plan
    except UserError:  # another process is just starting or finishing it
        return False


def missing_shards(root: StoragePath, plan: Manifest) -> list[int]:
    """The numbers of the shards that are not there."""
    folder = as_path(root) / plan.split / plan.task
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [number for number, shard in enumerate(plan.shards) if shard["file"] not in there]


def write_token_shard(
    root: StoragePath, plan: Manifest, number: int, ids: Callable[[int, int], Iterable[np.ndarray]]
) -> None:
    """Write one shard of a plan; safe to call again, in any process.

    Args:
        root, plan, ids: As for `write_tokens`.
        number: Of the shard.
    """
    assert plan.tokens_per_image is not None
    shard = plan.shards[number]
    start = sum(each["count"] for each in plan.shards[:number])
    stop = start + shard["count"]
    per_record = examples_per_record(plan.images_per_example * plan.tokens_per_image)

    def members() -> Iterator[Files]:
        arrays = (_checked(array, plan) for array in ids(start, stop))
        for first, record in _regroup(arrays, start, stop, per_record):
            buffer = io.BytesIO()
            np.save(buffer, record, allow_pickle=False)
            yield f"{first:09d}.ids.npy", buffer.getvalue()

    with atomic_path(as_path(root) / plan.split / plan.task / shard["file"]) as part:
        write_tar(part, members())


def finalize_tokens(root: StoragePath, plan: Manifest) -> Manifest:
    """Declare a folder finished, all of whose shards are there; safe to call again, anywhere."""
    folder = as_path(root) / plan.split / plan.task
    if not (folder / MANIFEST).exists():
        plan.save(folder / MANIFEST)
    (folder / INCOMPLETE).unlink(missing_ok=True)
    for file in folder.glob(".*.part.tar"):  # of processes that were killed
        file.unlink(missing_ok=True)
    return plan


def _checked(array: np.ndarray, plan: Manifest) -> np.ndarray:
    fault = _ids_fault(array, plan)
    if fault:
        raise ValueError(f"ids of task '{plan.task}': {fault}")
    return array.astype(np.uint16)


def _ids_fault(array: np.ndarray, plan: Manifest) -> str | None:
    assert plan.vocab_size is not None
    if not np.issubdtype(array.dtype, np.integer):
        return f"{array.dtype} is no integer type"
    if (
        array.ndim != 3
        or array.shape[1:] != (plan.images_per_example, plan.tokens_per_image)
        or not len(array)
    ):
        return f"shape {array.shape} is not (n, {plan.images_per_example}, {plan.tokens_per_image})"
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= plan.vocab_size:
        bad = low if low < 0 else high
        return f"id {bad} is outside [0, {plan.vocab_size})"
    return None


def _regroup(
    arrays: Iterable[np.ndarray], start: int, stop: int, size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Arrays of any length as (number of the first item, array of `size` items)."""
    held: list[np.ndarray] = []
    first, count = start, 0
    for array in arrays:
        held.append(array)
        count += len(array)
        if count >= size:
            joined = np.concatenate(held)
            while len(joined) >= size:
                yield first, joined[:size]
                first, joined = first + size, joined[size:]
            held, count = [joined], len(joined)
    if first + count != stop:
        raise ValueError(f"{first + count - start} examples came where {stop - start} were planned")
    if count:
        yield first, np.concatenate(held)


# ---------------------------------------------------------------- reading


def read_examples(
    root: StoragePath, split: str, task: str, start: int = 0, manifest: Manifest | None = None
) -> Iterator[Example]:
    """The examples of a task in order, from the `start`-th on.

    A `manifest` that is given is believed; otherwise the whole split is checked first.

    Raises:
        UserError: A shard is missing or damaged, or holds something else than its manifest says.
    """
    for decode in iter_lazy(root, split, task, start, manifest):
        yield decode()


def iter_lazy(
    root: StoragePath, split: str, task: str, start: int = 0, manifest: Manifest | None = None
) -> Iterator[Callable[[], Example]]:
    """The same, each as a call that decodes it, in whatever thread.

    Raises:
        UserError: As `read_examples`; what is wrong with a picture, when it is decoded.
    """
    manifest = manifest or _manifest(root, split, task, "images")
    names = set(member_names(manifest.images_per_example))
    for shard in manifest.shards:
        if start >= shard["count"]:
            start -= shard["count"]
            continue
        path = as_path(root) / split / task / shard["file"]
        count = 0
        for key, files in _read_records(path, names):
            count += 1
            if count > start:
                yield partial(_decode, path, key, files, manifest)
        start = 0
        _check_count(path, count, shard["count"])


def _decode(path: StoragePath, key: str, files: dict[str, bytes], manifest: Manifest) -> Example:
    shape = (manifest.image_size, manifest.image_size, 3)
    pictures = []
    for name in member_names(manifest.images_per_example):
        picture = np.asarray(open_image(files[name], f"{path}: {key}.{name}"))
        if picture.shape != shape:
            raise UserError(f"{path}: {key}.{name} is {picture.shape}, not {shape}")
        pictures.append(picture)
    return Example(key, manifest.task, tuple(pictures))


def read_tokens(
    root: StoragePath, split: str, task: str, manifest: Manifest | None = None
) -> Iterator[np.ndarray]:
    """The records of a task in order: uint16 (n, k, N): k pictures an example.

    A `manifest` that is given is believed; otherwise the whole split is checked first.

    Raises:
        UserError: A shard is missing or damaged, or holds something else than its manifest says.
    """
    manifest = manifest or _manifest(root, split, task, "tokens")
    for shard in manifest.shards:
        path = as_path(root) / split / task / shard["file"]
        count = 0
        for key, files in _read_records(path, {"ids.npy"}):
            try:
                array = np.lib.format.read_array(io.BytesIO(files["ids.npy"]), allow_pickle=False)
            except (ValueError, EOFError, MemoryError) as error:
                raise UserError(f"{path}: {key}.ids.npy cannot be read: {error}") from None
            fault = _ids_fault(array, manifest)
            if array.dtype != np.uint16:
                fault = f"{array.dtype} is not uint16"
            if fault:
                raise UserError(f"{path}: {key}.ids.npy: {fault}")
            count += len(array)
            yield array
        _check_count(path, count, shard["count"])


def _manifest(root: StoragePath, split: str, task: str, kind: str) -> Manifest:
    """The manifest of one task, through all the checks of its split."""
    manifests = load_manifests(root, split, kind)
    if task not in manifests:
        raise UserError(f"no task '{task}' in {as_path(root) / split}, only {sorted(manifests)}")
    return manifests[task]


def _check_count(path: StoragePath, count: int, wanted: int) -> None:
    if count != wanted:
        raise UserError(f"{path} holds {count} examples, its manifest says {wanted}: make it again")


def _read_records(path: StoragePath, names: set[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {name: bytes}) of a tar whose records hold exactly the `names`."""
    members = _read_members(path)
    for key, group in itertools.groupby(members, key=lambda member: member[0]):
        files = {name: data for _, name, data in group}
        if files.keys() != names:
            raise UserError(f"{path}: {key} holds {sorted(files)}, not {sorted(names)}")
        yield key, files


def _read_members(path: StoragePath) -> Iterator[tuple[str, str, bytes]]:
    """(key, name, bytes) of each member; nothing is ever unpacked to disk."""
    with reading(path):
        for tar, info, key, name in members(path):
            # Not through tar.extractfile, whose buffers cost as much as a small picture's reading.
            assert tar.fileobj is not None
            tar.fileobj.seek(info.offset_data)
            data = tar.fileobj.read(info.size)
            if len(data) != info.size:
                raise EOFError("unexpected end of data")
            yield key, name, data


def members(path: StoragePath) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo, str, str]]:
    """(tar, member, key, name) of each member KEY.NAME of a shard.

    Raises:
        UserError: The shard is missing or damaged, or a member is no plain file of such a name.
    """
    with reading(path), tarfile.open(local_copy(path), "r:") as tar:
        for info in tar:
            parts = re.fullmatch(r"([\w-]+)\.([a-z0-9]+\.[a-z]+)", info.name)
            # A sparse member may claim a size that no disk holds.
            if not parts or not info.isreg() or info.issparse():
                raise UserError(f"{path}: unexpected member {info.name!r}")
            yield tar, info, parts[1], parts[2]


@contextmanager
def reading(path: StoragePath) -> Iterator[None]:
    """Say in a line what is wrong with a shard."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"shard not found: {path}") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(
            f"shard {path} is damaged ({error}): delete it, and run again what made it, "
            "`delvm prepare` (pictures) or `delvm encode` (tokens)"
        ) from None
