"""Write shards: WebDataset tars, with a manifest for each split and task.

    ROOT/SPLIT/TASK/NAME.tar ...       images: KEY.input.png, KEY.target.png of a pair,
                                               KEY.000.png ... of other examples
                                       tokens: KEY.ids.npy, uint16 (n, k, N), many per record
    ROOT/SPLIT/TASK/manifest.json      what the directory holds; written last
    ROOT/codebook.safetensors          token roots only: the codebook that ids refer to

The same plan gives the same bytes.
"""

import io
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from webdataset import TarWriter

from delvm.data.shards.manifest import (
    INCOMPLETE,
    MANIFEST,
    Manifest,
    TokenIds,
    examples_per_record,
    ids_error,
    pending_shards,
)
from delvm.errors import UserError
from delvm.storage import StoragePath, as_path, atomic_path

Record: TypeAlias = dict[str, Any]  # {"__key__": KEY, NAME: bytes, ...}: members KEY.NAME of a tar
# Gives the ids of the examples from start to stop, in order, as arrays (n, k, N) of any n.
IdsFn: TypeAlias = Callable[[int, int], Iterable[npt.NDArray[Any]]]


def write_records(path: Path, records: Iterable[Record]) -> int:
    """Write a tar whose bytes depend on its records alone; returns the number of records."""
    count = 0
    # Owner, mode and time would differ between machines and runs.
    fixed = {"user": "", "group": "", "mode": 0o644, "mtime": 0}
    with path.open("wb") as file, TarWriter(file, encoder=False, compress=False, **fixed) as tar:
        for record in records:
            tar.write(record)
            count += 1
    return count


def write_tokens(
    root: StoragePath, plan: Manifest, ids: IdsFn, overwrite: bool = False
) -> Manifest:
    """Write the pending token shards of a plan, then its manifest.

    Args:
        root: Root of the shards.
        plan: From `plan_tokens`.
        ids: ids(start, stop) yields the ids of the examples from start to stop, in order, as
            integer arrays (n, k, N) of any n; called once per shard.
        overwrite: Replace a directory that was made with other settings.

    Raises:
        UserError: The directory is finished but was made with other settings.
        ValueError: Ids have another shape, are outside the vocabulary, or are too few or too many.
    """
    for number in start_tokens(root, plan, overwrite):
        write_token_shard(root, plan, number, ids)
    return finalize_tokens(root, plan)


def start_tokens(root: StoragePath, plan: Manifest, overwrite: bool = False) -> list[int]:
    """Prepare a directory for `write_token_shard`; one process does so before any of them writes.

    Returns:
        The numbers of the shards to write.

    Raises:
        UserError: The directory is finished but was made with other settings.
    """
    folder = as_path(root) / plan.split / plan.task
    todo = {shard["file"] for shard in pending_shards(root, plan, overwrite)}
    if not is_in_progress(root, plan) or ((folder / MANIFEST).exists() and overwrite):
        folder.mkdir(parents=True, exist_ok=True)
        # In this order a job killed here never takes old shards for those of the new plan.
        (folder / MANIFEST).unlink(missing_ok=True)
        (folder / INCOMPLETE).unlink(missing_ok=True)
        keep = {shard["file"] for shard in plan.shards} - todo
        for file in {*folder.glob("*.tar"), *folder.glob(".*.part*")}:
            if file.name not in keep:
                file.unlink()
        plan.save(folder / INCOMPLETE)
    return missing_shards(root, plan)


def is_in_progress(root: StoragePath, plan: Manifest) -> bool:
    """Whether a directory holds shards of this plan only: some of them, or all and finished."""
    folder = as_path(root) / plan.split / plan.task
    try:
        if (folder / MANIFEST).exists():
            return Manifest.load(folder / MANIFEST) == plan and not missing_shards(root, plan)
        return (folder / INCOMPLETE).exists() and Manifest.load(folder / INCOMPLETE) == plan
    except UserError:  # another process is starting or finishing it at this moment
        return False


def missing_shards(root: StoragePath, plan: Manifest) -> list[int]:
    """The numbers of the shards that are not there."""
    folder = as_path(root) / plan.split / plan.task
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [number for number, shard in enumerate(plan.shards) if shard["file"] not in there]


def write_token_shard(root: StoragePath, plan: Manifest, number: int, ids: IdsFn) -> None:
    """Write one shard of a plan; safe to repeat, in any process.

    Args:
        root, plan, ids: As for `write_tokens`.
        number: Of the shard.
    """
    assert plan.tokens_per_image is not None
    shard = plan.shards[number]
    start = sum(each["count"] for each in plan.shards[:number])
    stop = start + shard["count"]
    per_record = examples_per_record(plan.images_per_example * plan.tokens_per_image)

    def records() -> Iterator[Record]:
        arrays = (_validated(array, plan) for array in ids(start, stop))
        for first, batch in _rebatch(arrays, start, stop, per_record):
            buffer = io.BytesIO()
            np.save(buffer, batch, allow_pickle=False)
            yield {"__key__": f"{first:09d}", "ids.npy": buffer.getvalue()}

    with atomic_path(as_path(root) / plan.split / plan.task / shard["file"]) as tmp:
        write_records(tmp, records())


def finalize_tokens(root: StoragePath, plan: Manifest) -> Manifest:
    """Declare a directory with all its shards finished; safe to repeat, in any process."""
    folder = as_path(root) / plan.split / plan.task
    if not (folder / MANIFEST).exists():
        plan.save(folder / MANIFEST)
    (folder / INCOMPLETE).unlink(missing_ok=True)
    for file in folder.glob(".*.part.tar"):  # left by processes that were killed
        file.unlink(missing_ok=True)
    return plan


def _validated(array: npt.NDArray[Any], plan: Manifest) -> TokenIds:
    if error := ids_error(array, plan):
        raise ValueError(f"ids of task '{plan.task}': {error}")
    return array.astype(np.uint16)


def _rebatch(
    arrays: Iterable[TokenIds], start: int, stop: int, size: int
) -> Iterator[tuple[int, TokenIds]]:
    """Arrays of any length as (number of the first example, array of `size` examples)."""
    held: list[TokenIds] = []
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
        raise ValueError(f"got {first + count - start} examples where {stop - start} were planned")
    if count:
        yield first, np.concatenate(held)
