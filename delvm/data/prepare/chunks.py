"""Writing the examples of a source, chunk by chunk, as shards of images.

A chunk is written completely or not at all: a killed job starts its unfinished chunk again, and
ends with the same bytes. While a directory is not finished it contains

    chunks/NAME.json    the result of a finished chunk: its shards and rejects; written last

and when all chunks are done, their results become the manifest and

    rejects.jsonl       {"key", "reason"} of each raw item that no example could be made of
"""

import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from PIL import Image

from delvm import legacy
from delvm.data.shards.manifest import (
    INCOMPLETE,
    MANIFEST,
    Manifest,
    describe_difference,
    member_names,
)
from delvm.data.shards.writer import Record, write_records
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError
from delvm.storage import (
    StoragePath,
    as_path,
    atomic_path,
    read_json,
    remove_tree,
    write_json,
    write_text,
)
from delvm.untrusted import parse_json, schema_error

RESULTS, REJECTS = "chunks", "rejects.jsonl"
_REJECT = {"key": str, "reason": str}
_RESULT = {
    "expected": (int, None),
    "shards": [{"file": str, "count": int}],
    "rejects": [_REJECT],
    "images_per_example": (int, None),
}


def pending_chunks(
    root: StoragePath, plan: Manifest, chunks: list[SourceChunk], overwrite: bool = False
) -> list[SourceChunk]:
    """The chunks still to be read: all, those that a killed job left, new ones, or none.

    Args:
        root: Root of the corpus.
        plan: A manifest without shards: where the directory is, and its settings.
        chunks: Of the source.
        overwrite: Whether a directory made with other settings is replaced.

    Raises:
        UserError: The directory is finished and was made with other settings.
    """
    folder = as_path(root) / plan.split / plan.task
    if (folder / MANIFEST).exists():
        if overwrite:
            return chunks
        found = Manifest.load(folder / MANIFEST)
        _check_same(folder, found, plan, chunks)
        done = set(_finished_chunks(folder, found))
    elif (folder / INCOMPLETE).exists() and Manifest.load(folder / INCOMPLETE) == plan:
        done = {
            chunk.name
            for chunk in chunks
            if _result_path(folder, chunk.name).exists()
            and _result(folder, chunk.name)["expected"] == chunk.count  # else the source changed
        }
    else:
        return chunks
    return [chunk for chunk in chunks if chunk.name not in done]


def _check_same(
    folder: StoragePath, found: Manifest, plan: Manifest, chunks: list[SourceChunk]
) -> None:
    """Refuse a finished directory made with other settings; new chunks are accepted.

    Raises:
        UserError: the settings differ, or a chunk has changed or is missing.
    """
    current = {chunk.name: chunk.count for chunk in chunks}
    written = {chunk["name"]: chunk["expected"] for chunk in found.chunks}
    changed = [name for name in written if current.get(name) != written[name]]
    settings = replace(
        found, count=0, shards=[], chunks=[], images_per_example=plan.images_per_example
    )
    if settings != plan or changed:
        reason = describe_difference(settings, plan)
        if settings == plan:
            name = changed[0]
            now = f"now {current[name]:,}" if name in current else "which is missing now"
            reason = f"has chunk {name} of {written[name]:,} examples, {now}"
        raise UserError(f"{folder} {reason}: set overwrite=true to replace it")


def _finished_chunks(folder: StoragePath, found: Manifest) -> Iterator[str]:
    """Names of the chunks of a finished directory whose shards all exist."""
    shards = iter(found.shards)
    for chunk in found.chunks:
        files = [folder / next(shards)["file"] for _ in range(chunk["shards"])]
        if all(file.exists() for file in files):
            yield chunk["name"]


def start_chunks(
    root: StoragePath, plan: Manifest, chunks: list[SourceChunk], overwrite: bool = False
) -> None:
    """Prepare a directory for `write_chunk`: files that do not belong to the plan are removed."""
    folder = as_path(root) / plan.split / plan.task
    todo = {chunk.name for chunk in pending_chunks(root, plan, chunks, overwrite)}
    done = [chunk.name for chunk in chunks if chunk.name not in todo]
    if (folder / MANIFEST).exists() and done:
        _restore_results(folder, done)
    # In this order a job killed here never mistakes old shards for those of the new plan.
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / INCOMPLETE).unlink(missing_ok=True)
    keep = set()
    for name in done:
        keep |= {shard["file"] for shard in _result(folder, name)["shards"]}
    results = _results_dir(folder)
    results.mkdir(parents=True, exist_ok=True)
    for path in results.iterdir():
        if path.stem not in done:
            path.unlink()
    for path in {*folder.glob("*.tar"), *folder.glob(".*.part*"), folder / REJECTS}:
        if path.name not in keep:
            path.unlink(missing_ok=True)
    plan.save(folder / INCOMPLETE)


def _restore_results(folder: StoragePath, done: list[str]) -> None:
    """Write the results of the chunks of a finished directory again, to add others to them."""
    manifest = Manifest.load(folder / MANIFEST)
    shards, rejects = iter(manifest.shards), iter(read_rejects(folder))
    for chunk in manifest.chunks:
        # Also of a chunk that is not done, to advance to those of the next.
        chunk_shards = [next(shards) for _ in range(chunk["shards"])]
        chunk_rejects = [asdict(next(rejects)) for _ in range(chunk["rejected"])]
        if chunk["name"] in done:
            result = {
                "expected": chunk["expected"],
                "shards": chunk_shards,
                "rejects": chunk_rejects,
                "images_per_example": manifest.images_per_example,
            }
            write_json(_result_path(folder, chunk["name"]), result)


def write_chunk(
    root: StoragePath,
    plan: Manifest,
    chunk: SourceChunk,
    examples: Iterable[Example | RejectedItem],
) -> dict[str, Any]:
    """Write the shards of one chunk, then its result; safe to call again, in any process.

    Returns:
        {"expected": count of the chunk, "shards": [{"file", "count"}],
        "rejects": [{"key", "reason"}], "images_per_example": k or None}

    Raises:
        ValueError: An example has another task, size or number of images, or a key that cannot be
            a file name or is a duplicate.
    """
    folder = as_path(root) / plan.split / plan.task
    folder.mkdir(parents=True, exist_ok=True)
    validator = _ExampleValidator(plan, examples)
    stream = iter(validator)
    shards: list[dict[str, Any]] = []
    while (first := next(stream, None)) is not None:
        group = itertools.islice(stream, plan.settings["shard_size"] - 1)
        # The first has the name of its chunk, so most chunks are one shard of that name.
        file = f"{chunk.name}.{len(shards)}.tar" if shards else f"{chunk.name}.tar"
        with atomic_path(folder / file) as path:
            count = write_records(path, map(_record, itertools.chain([first], group)))
        shards.append({"file": file, "count": count})
    result = {
        "expected": chunk.count,
        "shards": shards,
        "rejects": [asdict(reject) for reject in validator.rejects],
        "images_per_example": validator.images_per_example,
    }
    write_json(_result_path(folder, chunk.name), result)
    return result


class _ExampleValidator:
    """Yields the valid examples of a chunk, and collects the rejected items."""

    def __init__(self, plan: Manifest, examples: Iterable[Example | RejectedItem]) -> None:
        self.plan, self.examples = plan, examples
        self.rejects: list[RejectedItem] = []
        self.images_per_example: int | None = None
        self._keys: set[str] = set()

    def __iter__(self) -> Iterator[Example]:
        for each in self.examples:
            if isinstance(each, RejectedItem):
                self.rejects.append(each)
            else:
                self._validate(each)
                yield each

    def _validate(self, example: Example) -> None:
        plan, key = self.plan, example.key
        if not re.fullmatch(r"[\w-]+", key) or key in self._keys:
            raise ValueError(
                f"key {key!r} of task '{plan.task}' is a duplicate, or has other characters than "
                "letters, digits, - and _"
            )
        if example.task != plan.task:
            raise ValueError(f"example '{key}' has task '{example.task}', not '{plan.task}'")
        self.images_per_example = self.images_per_example or len(example.images)
        if len(example.images) != self.images_per_example:
            raise ValueError(
                f"example '{key}' of task '{plan.task}' has {len(example.images)} images, "
                f"others have {self.images_per_example}"
            )
        shape = (plan.image_size, plan.image_size, 3)
        for image in example.images:
            if image.dtype != np.uint8 or image.shape != shape:
                raise ValueError(
                    f"example '{key}' of task '{plan.task}' has an image {image.dtype} "
                    f"{image.shape}, not uint8 {shape}"
                )
        self._keys.add(key)


def _record(example: Example) -> Record:
    record: Record = {"__key__": example.key}
    for name, image in zip(member_names(len(example.images)), example.images, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        record[name] = buffer.getvalue()
    return record


def finish_chunks(root: StoragePath, plan: Manifest, chunks: list[SourceChunk]) -> Manifest:
    """Turn the results of all the chunks into the directory's manifest.

    Raises:
        ValueError: The examples of two chunks have different numbers of images.
    """
    folder = as_path(root) / plan.split / plan.task
    if (folder / MANIFEST).exists():
        return Manifest.load(folder / MANIFEST)
    results = [_result(folder, chunk.name) for chunk in chunks]
    counts = {result["images_per_example"] for result in results if result["images_per_example"]}
    if len(counts) > 1:
        raise ValueError(f"{folder}: examples of {sorted(counts)} images in one task")
    shards = [shard for result in results for shard in result["shards"]]
    rejects = [reject for result in results for reject in result["rejects"]]
    if rejects:
        write_text(folder / REJECTS, "".join(json.dumps(each) + "\n" for each in rejects))
    manifest = replace(
        plan,
        count=sum(shard["count"] for shard in shards),
        shards=shards,
        images_per_example=counts.pop() if counts else plan.images_per_example,
        chunks=[
            {
                "name": chunk.name,
                "expected": chunk.count,
                "shards": len(result["shards"]),
                "rejected": len(result["rejects"]),
            }
            for chunk, result in zip(chunks, results, strict=True)
        ],
    )
    manifest.save(folder / MANIFEST)
    (folder / INCOMPLETE).unlink(missing_ok=True)
    remove_tree(_results_dir(folder))
    return manifest


def _results_dir(folder: StoragePath) -> StoragePath:
    """Where the results of chunks are; a job of an earlier version continues in its own."""
    former = (folder / name for name, new in legacy.CHUNK_DIRS.items() if new == RESULTS)
    return next((each for each in former if each.is_dir()), folder / RESULTS)


def _result_path(folder: StoragePath, name: str) -> StoragePath:
    return _results_dir(folder) / f"{name}.json"


def _result(folder: StoragePath, name: str) -> dict[str, Any]:
    path, what = _result_path(folder, name), "result of a chunk"
    result = legacy.rename_keys(read_json(path, what), legacy.CHUNK_RESULT)
    if error := schema_error(result, _RESULT):
        raise UserError(f"{what} {path}: {error}: delete it to read the chunk again")
    return result


def read_rejects(folder: StoragePath) -> list[RejectedItem]:
    """The rejected items of a directory."""
    path = folder / REJECTS
    if not path.exists():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    numbered = enumerate(lines, start=1)
    return [RejectedItem(**parse_json(line, f"{path} line {n}", _REJECT)) for n, line in numbered]
