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
    Manifest,
    TokenIds,
    describe_difference,
    examples_per_record,
    ids_error,
    is_building,
)
from delvm.data.shards.replacement import (
    INCOMPLETE,
    MANIFEST,
    build_dir,
    discard_replacement,
    put_in_place,
    replacement_dir,
    sweep,
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
    root: StoragePath,
    plan: Manifest,
    ids: IdsFn,
    overwrite: bool = False,
    in_place: bool = True,
) -> Manifest:
    """Write the pending token shards of a plan, then its manifest.

    Args:
        root: Root of the shards.
        plan: From `plan_tokens`.
        ids: ids(start, stop) yields the ids of the examples from start to stop, in order, as
            integer arrays (n, k, N) of any n; called once per shard.
        overwrite: Replace a directory that was made with other settings.
        in_place: Whether a replacement is put in place; else the caller does, for several at once.

    Raises:
        UserError: The directory is finished but was made with other settings.
        ValueError: Ids have another shape, are outside the vocabulary, or are too few or too many.
    """
    for number in start_tokens(root, plan, overwrite):
        write_token_shard(root, plan, number, ids)
    return finalize_tokens(root, plan, in_place)


def _folder(root: StoragePath, plan: Manifest) -> StoragePath:
    return as_path(root) / plan.split / plan.task


def pending_shards(
    root: StoragePath, plan: Manifest, overwrite: bool = False
) -> list[dict[str, Any]]:
    """The shards of a plan still to be written: all, those a killed job left, or none.

    Raises:
        UserError: The directory is finished but was made with other settings.
    """
    folder = _folder(root, plan)
    new, finished = replacement_dir(folder), (folder / MANIFEST).exists()
    if finished and not overwrite:
        found = Manifest.load(folder / MANIFEST)
        if found != plan:
            raise UserError(
                f"{folder} {describe_difference(found, plan)}: set overwrite=true to replace it"
            )
        return _missing(folder, plan)
    if new is not None and is_building(new, plan):
        return _missing(new, plan)
    return _missing(folder, plan) if not finished and is_building(folder, plan) else plan.shards


def start_tokens(root: StoragePath, plan: Manifest, overwrite: bool = False) -> list[int]:
    """Prepare a directory for `write_token_shard`; one process does so before any of them writes.

    Returns:
        The numbers of the shards to write.

    Raises:
        UserError: The directory is finished but was made with other settings.
    """
    pending_shards(root, plan, overwrite)  # raises
    folder = _folder(root, plan)
    new, finished = replacement_dir(folder), (folder / MANIFEST).exists()
    if finished and not overwrite:
        discard_replacement(folder)
    elif new is None or not is_building(new, plan):
        discard_replacement(folder)
        if finished or not is_building(folder, plan):
            place = new if new is not None and overwrite else folder
            place.mkdir(parents=True, exist_ok=True)
            # In this order a job killed here never takes old shards for those of the new plan.
            (place / MANIFEST).unlink(missing_ok=True)
            (place / INCOMPLETE).unlink(missing_ok=True)
            for file in {*place.glob("*.tar"), *place.glob(".*.part*")}:
                file.unlink()
            plan.save(place / INCOMPLETE)
    return missing_shards(root, plan)


def is_in_progress(root: StoragePath, plan: Manifest) -> bool:
    """Whether a directory holds shards of this plan only: some of them, or all and finished."""
    folder = _folder(root, plan)
    if is_building(build_dir(folder), plan):
        return True
    try:
        return (folder / MANIFEST).exists() and Manifest.load(folder / MANIFEST) == plan
    except UserError:  # another process is starting or finishing it at this moment
        return False


def missing_shards(root: StoragePath, plan: Manifest) -> list[int]:
    """The numbers of the shards that are not there."""
    missing = {shard["file"] for shard in _missing(build_dir(_folder(root, plan)), plan)}
    return [number for number, shard in enumerate(plan.shards) if shard["file"] in missing]


def _missing(folder: StoragePath, plan: Manifest) -> list[dict[str, Any]]:
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return [shard for shard in plan.shards if shard["file"] not in there]


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

    with atomic_path(build_dir(_folder(root, plan)) / shard["file"]) as tmp:
        write_records(tmp, records())


def finalize_tokens(root: StoragePath, plan: Manifest, in_place: bool = True) -> Manifest:
    """Declare a directory with all its shards finished; safe to repeat, in any process.

    Args:
        root, plan: As for `write_tokens`.
        in_place: Whether a replacement is put in place; else `put_in_place` has to follow.
    """
    folder = _folder(root, plan)
    place = build_dir(folder)
    if not (place / MANIFEST).exists():
        plan.save(place / MANIFEST)
    sweep(place)
    if place == folder:
        (folder / INCOMPLETE).unlink(missing_ok=True)
    elif in_place:
        put_in_place(root, [(plan.split, plan.task)])
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
