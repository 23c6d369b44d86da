"""Writing the examples of a source, chunk by chunk, as shards of images.

A chunk is written completely or not at all: a killed job starts its unfinished chunk again, and
ends with the same bytes. While a directory is not finished it contains

    chunks/NAME.json    the result of a finished chunk: its shards and rejects; written last

and when all chunks are done, their results become the manifest and

    rejects.jsonl       {"key", "reason"} of each raw item that no example could be made of
"""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from delvm import legacy
from delvm.data.prepare.examples import ExampleValidator, to_record
from delvm.data.shards.manifest import (
    Manifest,
    describe_difference,
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
from delvm.data.shards.writer import write_records
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
_DIGESTS = {"inputs": "", "digest": ""}  # results of earlier versions have none
_RESULT = {
    "inputs": str,
    "digest": str,
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
    folder = _folder(root, plan)
    new, finished = replacement_dir(folder), (folder / MANIFEST).exists()
    done: set[str] = set()
    if finished and not overwrite:
        done = _finished_chunks(folder, plan, chunks)
        if len(done) == len(chunks):
            return []
    if new is not None and is_building(new, plan):
        done = _written_chunks(new, chunks)
    elif not finished and is_building(folder, plan):
        done = _written_chunks(folder, chunks)
    return [chunk for chunk in chunks if chunk.name not in done]


def _folder(root: StoragePath, plan: Manifest) -> StoragePath:
    return as_path(root) / plan.split / plan.task


def _finished_chunks(folder: StoragePath, plan: Manifest, chunks: list[SourceChunk]) -> set[str]:
    """Names of the chunks of a finished directory whose shards all exist.

    Raises:
        UserError: the settings differ, or a chunk has changed or is missing in the source.
    """
    found = Manifest.load(folder / MANIFEST)
    current = {chunk.name: chunk for chunk in chunks}
    written = {chunk["name"]: chunk for chunk in found.chunks}
    changed = [
        name for name in written if name not in current or _changed(written[name], current[name])
    ]
    settings = replace(
        found, count=0, shards=[], chunks=[], images_per_example=plan.images_per_example
    )
    if settings != plan or changed:
        reason = describe_difference(settings, plan)
        if settings == plan:
            name = changed[0]
            expected, now = written[name]["expected"], "which is missing now"
            if name in current and current[name].count == expected:
                now = "whose files have changed since"
            elif name in current:
                now = f"now {current[name].count:,}"
            reason = f"has chunk {name} of {expected:,} examples, {now}"
        raise UserError(f"{folder} {reason}: set overwrite=true to replace it")
    shards, there = iter(found.shards), set()
    for chunk in found.chunks:
        files = [folder / next(shards)["file"] for _ in range(chunk["shards"])]
        if all(file.exists() for file in files):
            there.add(chunk["name"])
    return there


def _changed(written: dict[str, Any], chunk: SourceChunk) -> bool:
    """Whether a chunk is not what it was when it was written: its count, or its files."""
    known = written["inputs"] and chunk.inputs
    return bool(written["expected"] != chunk.count or (known and written["inputs"] != chunk.inputs))


def _written_chunks(folder: StoragePath, chunks: list[SourceChunk]) -> set[str]:
    """Names of the chunks of a directory being built that are written."""
    if (folder / MANIFEST).exists():  # killed just before it was put in place
        written = {chunk["name"]: chunk for chunk in Manifest.load(folder / MANIFEST).chunks}
        same = all(
            chunk.name in written and not _changed(written[chunk.name], chunk) for chunk in chunks
        )
        return set(written) if same else set()
    return {
        chunk.name
        for chunk in chunks
        if _result_path(folder, chunk.name).exists()
        and not _changed(_result(folder, chunk.name), chunk)
    }


def start_chunks(
    root: StoragePath, plan: Manifest, chunks: list[SourceChunk], overwrite: bool = False
) -> None:
    """Prepare a directory for `write_chunk`: files that do not belong to the plan are removed."""
    folder = _folder(root, plan)
    todo = {chunk.name for chunk in pending_chunks(root, plan, chunks, overwrite)}
    done = [chunk.name for chunk in chunks if chunk.name not in todo]
    new, finished = replacement_dir(folder), (folder / MANIFEST).exists()
    if finished and not overwrite and len(_finished_chunks(folder, plan, chunks)) == len(chunks):
        discard_replacement(folder)
        return
    place, continues = folder, not finished and is_building(folder, plan)
    if new is not None and is_building(new, plan):
        place, continues = new, True
    else:
        discard_replacement(folder)
        if new is not None and not continues and (finished or overwrite):
            place = new
    if finished and done and not continues:
        _keep_chunks(folder, place, done)
    if todo or not continues:
        _clean(place, plan, done)


def _clean(place: StoragePath, plan: Manifest, done: list[str]) -> None:
    """Remove what does not belong to the chunks that are done, and declare the plan."""
    # In this order a job killed here never mistakes old shards for those of the new plan.
    (place / MANIFEST).unlink(missing_ok=True)
    (place / INCOMPLETE).unlink(missing_ok=True)
    keep = set()
    for name in done:
        keep |= {shard["file"] for shard in _result(place, name)["shards"]}
    results = _results_dir(place)
    results.mkdir(parents=True, exist_ok=True)
    for path in results.iterdir():
        if path.stem not in done:
            path.unlink()
    for path in {*place.glob("*.tar"), *place.glob(".*.part*"), place / REJECTS}:
        if path.name not in keep:
            path.unlink(missing_ok=True)
    plan.save(place / INCOMPLETE)


def _keep_chunks(folder: StoragePath, place: StoragePath, done: list[str]) -> None:
    """Take over chunks of a finished directory, to add others to them.

    Raises:
        UserError: its list of rejected items is missing, or was edited.
    """
    manifest = Manifest.load(folder / MANIFEST)
    listed = read_rejects(folder)
    if len(listed) != manifest.rejected:
        raise UserError(
            f"{folder / REJECTS} lists {len(listed):,} items, and {folder / MANIFEST} "
            f"{manifest.rejected:,}: restore it, or set overwrite=true"
        )
    shards, rejects = iter(manifest.shards), iter(listed)
    for chunk in manifest.chunks:
        # Also of a chunk that is not done, to advance to those of the next.
        chunk_shards = [next(shards) for _ in range(chunk["shards"])]
        chunk_rejects = [asdict(next(rejects)) for _ in range(chunk["rejected"])]
        if chunk["name"] in done:
            for shard in chunk_shards:
                _link(folder / shard["file"], place / shard["file"])
            result = {
                "expected": chunk["expected"],
                "shards": chunk_shards,
                "rejects": chunk_rejects,
                "images_per_example": manifest.images_per_example,
                "inputs": chunk["inputs"],
                "digest": chunk["digest"],
            }
            write_json(_result_path(place, chunk["name"]), result)


def _link(old: StoragePath, new: StoragePath) -> None:
    """The same file at a second place, where the file system can without a copy."""
    if old == new or not isinstance(old, Path) or not isinstance(new, Path):
        return
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)


def write_chunk(
    root: StoragePath,
    plan: Manifest,
    chunk: SourceChunk,
    examples: Iterable[Example | RejectedItem],
) -> dict[str, Any]:
    """Write the shards of one chunk, then its result; safe to call again, in any process.

    Returns:
        {"expected": count of the chunk, "shards": [{"file", "count"}],
        "rejects": [{"key", "reason"}], "images_per_example": k or None, "inputs", "digest"}

    Raises:
        ValueError: An example has another task, size or number of images, or a key that cannot be
            a file name or is a duplicate.
    """
    folder = build_dir(_folder(root, plan))
    folder.mkdir(parents=True, exist_ok=True)
    validator = ExampleValidator(plan, examples)
    stream = iter(validator)
    shards: list[dict[str, Any]] = []
    digest = hashlib.blake2b(digest_size=8)
    while (first := next(stream, None)) is not None:
        group = itertools.islice(stream, plan.settings["shard_size"] - 1)
        # The first has the name of its chunk, so most chunks are one shard of that name.
        file = f"{chunk.name}.{len(shards)}.tar" if shards else f"{chunk.name}.tar"
        with atomic_path(folder / file) as path:
            count = write_records(path, map(to_record, itertools.chain([first], group)))
            with path.open("rb") as written:
                digest.update(hashlib.file_digest(written, "blake2b").digest())
        shards.append({"file": file, "count": count})
    result = {
        "expected": chunk.count,
        "shards": shards,
        "rejects": [asdict(reject) for reject in validator.rejects],
        "images_per_example": validator.images_per_example,
        "inputs": chunk.inputs,
        "digest": digest.hexdigest(),
    }
    write_json(_result_path(folder, chunk.name), result)
    return result


def finish_chunks(
    root: StoragePath, plan: Manifest, chunks: list[SourceChunk], in_place: bool = True
) -> Manifest:
    """Turn the results of all the chunks into the directory's manifest.

    Args:
        root, plan, chunks: As for `start_chunks`.
        in_place: Whether a replacement is put in place; else `put_in_place` has to follow.

    Raises:
        ValueError: The examples of two chunks have different numbers of images.
    """
    folder = _folder(root, plan)
    place = build_dir(folder)
    if not (place / MANIFEST).exists():
        _write_manifest(place, plan, chunks)
    manifest = Manifest.load(place / MANIFEST)
    remove_tree(_results_dir(place))
    sweep(place)
    if place == folder:
        (folder / INCOMPLETE).unlink(missing_ok=True)
    elif in_place:
        put_in_place(root, [(plan.split, plan.task)])
    return manifest


def _write_manifest(folder: StoragePath, plan: Manifest, chunks: list[SourceChunk]) -> None:
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
                "inputs": result["inputs"],
                "digest": result["digest"],
            }
            for chunk, result in zip(chunks, results, strict=True)
        ],
    )
    manifest.save(folder / MANIFEST)


def _results_dir(folder: StoragePath) -> StoragePath:
    """Where the results of chunks are; a job of an earlier version continues in its own."""
    former = (folder / name for name, new in legacy.CHUNK_DIRS.items() if new == RESULTS)
    return next((each for each in former if each.is_dir()), folder / RESULTS)


def _result_path(folder: StoragePath, name: str) -> StoragePath:
    return _results_dir(folder) / f"{name}.json"


def _result(folder: StoragePath, name: str) -> dict[str, Any]:
    path, what = _result_path(folder, name), "result of a chunk"
    result = _DIGESTS | legacy.rename_keys(read_json(path, what), legacy.CHUNK_RESULT)
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
