"""Shards of pairs and of tokens: WebDataset tars with a manifest for each split and task.

    ROOT/SPLIT/TASK/000000.tar ...       pairs:   KEY.input.png, KEY.target.png
                                         tokens:  KEY.ids.npy, uint16 (n, 2, N), many pairs a record
    ROOT/SPLIT/TASK/manifest.json        what the folder holds; written last
    ROOT/codebook.safetensors            token roots only: what the ids stand for

The same plan gives the same bytes. Tars may come from elsewhere: what is read is checked.
"""

import io
import itertools
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from delvm.data.images import open_image
from delvm.data.manifest import (
    MANIFEST,
    UNFINISHED,
    Manifest,
    load_manifests,
    pairs_per_record,
    pending,
    plan_pairs,
    plan_tokens,
    read_codebook,
    write_codebook,
)
from delvm.data.pairs import Pair
from delvm.errors import UserError
from delvm.files import atomic_path

__all__ = [
    "Manifest",
    "load_manifests",
    "pending",
    "plan_pairs",
    "plan_tokens",
    "read_codebook",
    "read_pairs",
    "read_tokens",
    "write_codebook",
    "write_pairs",
    "write_shards",
    "write_tokens",
]

Files = tuple[str, bytes]  # a member of a tar: its name and what it holds


# ---------------------------------------------------------------- writing


def write_shards(
    root: Path,
    plan: Manifest,
    members: Callable[[int, int], Iterable[Files]],
    overwrite: bool = False,
) -> Manifest:
    """Write what is pending of a plan, then its manifest.

    Args:
        root: Folder of the whole corpus.
        plan: From `plan_pairs` or `plan_tokens`.
        members: members(start, stop) gives the files of one shard, which holds the pairs from
            start to stop; called once a shard, so a continued job asks what an uninterrupted
            one would have.
        overwrite: Replace a folder made with other settings.

    Returns:
        The plan.
    """
    folder = Path(root) / plan.split / plan.task
    todo = pending(root, plan, overwrite)
    if (folder / MANIFEST).exists() and not todo:
        return plan
    folder.mkdir(parents=True, exist_ok=True)
    # In this order a job killed here never takes old shards for those of the new plan.
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / UNFINISHED).unlink(missing_ok=True)
    keep = {shard["file"] for shard in plan.shards if shard not in todo}
    for file in {*folder.glob("*.tar"), *folder.glob(".*.part*")}:
        if file.name not in keep:
            file.unlink()
    plan.save(folder / UNFINISHED)
    start = 0
    for shard in plan.shards:
        stop = start + shard["count"]
        if shard in todo:
            with atomic_path(folder / shard["file"]) as part:
                _write_tar(part, members(start, stop))
        start = stop
    (folder / UNFINISHED).rename(folder / MANIFEST)
    return plan


def _write_tar(path: Path, members: Iterable[Files]) -> None:
    # TarInfo's own defaults (time 0, user 0, mode 644) make the bytes depend on nothing else.
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def write_pairs(
    root: Path,
    split: str,
    task: str,
    pairs: Sequence[Pair],
    *,
    source: str,
    seed: int,
    image_size: int,
    shard_size: int = 1000,
    overwrite: bool = False,
) -> Manifest:
    """Write pairs (any sequence, so also one that makes them as they are asked for).

    Raises:
        UserError: The folder is finished but was made with other settings.
        ValueError: A pair of another task or size, or a key that cannot be a file's name.
    """
    plan = plan_pairs(
        split,
        task,
        len(pairs),
        source=source,
        seed=seed,
        image_size=image_size,
        shard_size=shard_size,
    )

    def members(start: int, stop: int) -> Iterator[Files]:
        keys: set[str] = set()
        for index in range(start, stop):
            pair = pairs[index]
            _check_pair(pair, plan, keys)
            yield f"{pair.key}.input.png", _png(pair.input)
            yield f"{pair.key}.target.png", _png(pair.target)

    return write_shards(root, plan, members, overwrite)


def _check_pair(pair: Pair, plan: Manifest, keys: set[str]) -> None:
    if not re.fullmatch(r"[\w-]+", pair.key) or pair.key in keys:
        raise ValueError(f"key {pair.key!r} of task '{plan.task}' is not a new plain name")
    if pair.task != plan.task:
        raise ValueError(f"pair '{pair.key}' is of task '{pair.task}', not '{plan.task}'")
    shape = (plan.image_size, plan.image_size, 3)
    for side in (pair.input, pair.target):
        if side.dtype != np.uint8 or side.shape != shape:
            raise ValueError(
                f"pair '{pair.key}' of task '{plan.task}' holds {side.dtype} {side.shape}, "
                f"not uint8 {shape}"
            )
    keys.add(pair.key)


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def write_tokens(
    root: Path,
    plan: Manifest,
    ids: Callable[[int, int], Iterable[np.ndarray]],
    overwrite: bool = False,
) -> Manifest:
    """Write token ids, packed into records of about TOKENS_PER_RECORD.

    Args:
        root: Folder of the whole corpus.
        plan: From `plan_tokens`.
        ids: ids(start, stop) gives the ids of the pairs from start to stop, in order, as
            integer arrays (n, 2, N) of any n.
        overwrite: Replace a folder made with other settings.

    Raises:
        UserError: The folder is finished but was made with other settings.
        ValueError: Ids of another shape, outside the vocabulary, or too few or many of them.
    """
    assert plan.tokens_per_image is not None
    per_record = pairs_per_record(plan.tokens_per_image)

    def members(start: int, stop: int) -> Iterator[Files]:
        arrays = (_checked(array, plan) for array in ids(start, stop))
        for first, record in _regroup(arrays, start, stop, per_record):
            buffer = io.BytesIO()
            np.save(buffer, record, allow_pickle=False)
            yield f"{first:09d}.ids.npy", buffer.getvalue()

    return write_shards(root, plan, members, overwrite)


def _checked(array: np.ndarray, plan: Manifest) -> np.ndarray:
    fault = _ids_fault(array, plan)
    if fault:
        raise ValueError(f"ids of task '{plan.task}': {fault}")
    return array.astype(np.uint16)


def _ids_fault(array: np.ndarray, plan: Manifest) -> str | None:
    assert plan.vocab_size is not None
    if not np.issubdtype(array.dtype, np.integer):
        return f"{array.dtype} is no integer type"
    if array.ndim != 3 or array.shape[1:] != (2, plan.tokens_per_image) or not len(array):
        return f"shape {array.shape} is not (n, 2, {plan.tokens_per_image})"
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
        raise ValueError(f"{first + count - start} pairs came where {stop - start} were planned")
    if count:
        yield first, np.concatenate(held)


# ---------------------------------------------------------------- reading


def read_pairs(
    root: Path, split: str, task: str, start: int = 0, manifest: Manifest | None = None
) -> Iterator[Pair]:
    """The pairs of a task in order, from the `start`-th on.

    A `manifest` that is given is believed; otherwise the whole split is checked first.

    Raises:
        UserError: A shard is missing or damaged, or holds something else than its manifest says.
    """
    manifest = manifest or _manifest(root, split, task, "pairs")
    shape = (manifest.image_size, manifest.image_size, 3)
    for shard in manifest.shards:
        if start >= shard["count"]:
            start -= shard["count"]
            continue
        path = Path(root) / split / task / shard["file"]
        count = 0
        for key, files in _read_records(path, {"input.png", "target.png"}):
            count += 1
            if count <= start:
                continue
            sides = {
                name: np.asarray(open_image(data, f"{path}: {key}.{name}"))
                for name, data in files.items()
            }
            for name, side in sides.items():
                if side.shape != shape:
                    raise UserError(f"{path}: {key}.{name} is {side.shape}, not {shape}")
            yield Pair(key, task, sides["input.png"], sides["target.png"])
        start = 0
        _check_count(path, count, shard["count"])


def read_tokens(
    root: Path, split: str, task: str, manifest: Manifest | None = None
) -> Iterator[np.ndarray]:
    """The records of a task in order: uint16 (n, 2, N), input then target.

    A `manifest` that is given is believed; otherwise the whole split is checked first.

    Raises:
        UserError: A shard is missing or damaged, or holds something else than its manifest says.
    """
    manifest = manifest or _manifest(root, split, task, "tokens")
    for shard in manifest.shards:
        path = Path(root) / split / task / shard["file"]
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


def _manifest(root: Path, split: str, task: str, kind: str) -> Manifest:
    """The manifest of one task, through all the checks of its split."""
    manifests = load_manifests(root, split, kind)
    if task not in manifests:
        raise UserError(f"no task '{task}' in {Path(root) / split}, only {sorted(manifests)}")
    return manifests[task]


def _check_count(path: Path, count: int, wanted: int) -> None:
    if count != wanted:
        raise UserError(f"{path} holds {count} pairs, its manifest says {wanted}: make it again")


def _read_records(path: Path, names: set[str]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {name: bytes}) of a tar whose records hold exactly the `names`."""
    members = _read_members(path)
    for key, group in itertools.groupby(members, key=lambda member: member[0]):
        files = {name: data for _, name, data in group}
        if files.keys() != names:
            raise UserError(f"{path}: {key} holds {sorted(files)}, not {sorted(names)}")
        yield key, files


def _read_members(path: Path) -> Iterator[tuple[str, str, bytes]]:
    """(key, name, bytes) of each member; nothing is ever unpacked to disk."""
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                parts = re.fullmatch(r"([\w-]+)\.([a-z]+\.[a-z]+)", info.name)
                # A sparse member may claim a size that no disk holds.
                if not parts or not info.isreg() or info.issparse():
                    raise UserError(f"{path}: unexpected member {info.name!r}")
                file = tar.extractfile(info)
                assert file is not None
                yield parts[1], parts[2], file.read()
    except FileNotFoundError:
        raise UserError(f"shard not found: {path}") from None
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"shard {path} is damaged: {error}") from None
