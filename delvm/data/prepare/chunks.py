"""Writing the examples of a source, part by part, as shards of pictures.

A part is read in one go and is done or not: a killed job begins its unfinished part again and
ends with the same bytes. While a folder is not finished it holds

    parts/NAME.json     what a finished part has given: its shards and its rejects; written last

and when all parts are done their results become the manifest and

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

RESULTS, REJECTS = "parts", "rejects.jsonl"


def pending_parts(
    root: StoragePath, plan: Manifest, parts: list[SourceChunk], overwrite: bool = False
) -> list[SourceChunk]:
    """The parts still to be read: all, those that a killed job left, new ones, or none.

    Args:
        root: Folder of the whole corpus.
        plan: A manifest without shards: where the folder is, and what it is made with.
        parts: Of the source.
        overwrite: Whether a folder made with other settings is replaced.

    Raises:
        UserError: The folder is finished and was made with other settings.
    """
    folder = as_path(root) / plan.split / plan.task
    if (folder / MANIFEST).exists():
        if overwrite:
            return parts
        found = Manifest.load(folder / MANIFEST)
        _check_same(folder, found, plan, parts)
        done = set(_whole_parts(folder, found))
    elif (folder / INCOMPLETE).exists() and Manifest.load(folder / INCOMPLETE) == plan:
        done = {
            part.name
            for part in parts
            if (folder / RESULTS / f"{part.name}.json").exists()
            and _result(folder, part.name)["expected"] == part.count  # else the source has changed
        }
    else:
        return parts
    return [part for part in parts if part.name not in done]


def _check_same(
    folder: StoragePath, found: Manifest, plan: Manifest, parts: list[SourceChunk]
) -> None:
    """Refuse a finished folder made with other settings; new parts are no other settings."""
    asked = {part.name: part.count for part in parts}
    made = {part["name"]: part["expected"] for part in found.chunks}
    other = {name: asked.get(name) for name in made if asked.get(name) != made[name]}
    bare = replace(found, count=0, shards=[], chunks=[], images_per_example=plan.images_per_example)
    if bare != plan or other:
        said = describe_difference(bare, plan)
        if bare == plan:
            name = next(iter(other))
            now = "which is gone" if other[name] is None else f"now {other[name]:,}"
            said = f"holds part {name} of {made[name]:,} examples, {now}"
        raise UserError(f"{folder} {said}: set overwrite=true to replace it")


def _whole_parts(folder: StoragePath, found: Manifest) -> Iterator[str]:
    """Names of the parts of a finished folder whose shards are all there."""
    shards = iter(found.shards)
    for part in found.chunks:
        files = [folder / next(shards)["file"] for _ in range(part["shards"])]
        if all(file.exists() for file in files):
            yield part["name"]


def start_parts(
    root: StoragePath, plan: Manifest, parts: list[SourceChunk], overwrite: bool = False
) -> None:
    """Make a folder ready for `write_part`: what does not belong to the plan is removed."""
    folder = as_path(root) / plan.split / plan.task
    todo = {part.name for part in pending_parts(root, plan, parts, overwrite)}
    done = [part.name for part in parts if part.name not in todo]
    results = folder / RESULTS
    if (folder / MANIFEST).exists() and done:
        _reopen(folder, done)
    # In this order a job killed here never takes old shards for those of the new plan.
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / INCOMPLETE).unlink(missing_ok=True)
    keep = set()
    for name in done:
        keep |= {shard["file"] for shard in _result(folder, name)["shards"]}
    results.mkdir(parents=True, exist_ok=True)
    for path in results.iterdir():
        if path.stem not in done:
            path.unlink()
    for path in {*folder.glob("*.tar"), *folder.glob(".*.part*"), folder / REJECTS}:
        if path.name not in keep:
            path.unlink(missing_ok=True)
    plan.save(folder / INCOMPLETE)


def _reopen(folder: StoragePath, done: list[str]) -> None:
    """Write the results of the parts of a finished folder anew, to add others to them."""
    manifest = Manifest.load(folder / MANIFEST)
    shards, rejects = iter(manifest.shards), iter(read_rejects(folder))
    for part in manifest.chunks:
        mine = [next(shards) for _ in range(part["shards"])]
        left = [asdict(next(rejects)) for _ in range(part["rejected"])]
        if part["name"] in done:
            result = {
                "expected": part["expected"],
                "shards": mine,
                "rejects": left,
                "pictures": manifest.images_per_example,
            }
            write_json(folder / RESULTS / f"{part['name']}.json", result)


def write_part(
    root: StoragePath, plan: Manifest, part: SourceChunk, examples: Iterable[Example | RejectedItem]
) -> dict[str, Any]:
    """Write the shards of one part, then its result; safe to call again, in any process.

    Returns:
        {"expected": as the part says, "shards": [{"file", "count"}],
        "rejects": [{"key", "reason"}], "pictures": k or None}

    Raises:
        ValueError: An example of another task, size or number of pictures, or a key that cannot
            be a file's name or comes twice.
    """
    folder = as_path(root) / plan.split / plan.task
    folder.mkdir(parents=True, exist_ok=True)
    accepted = _Accepted(plan, examples)
    stream = iter(accepted)
    shards: list[dict[str, Any]] = []
    while (first := next(stream, None)) is not None:
        group = itertools.islice(stream, plan.settings["shard_size"] - 1)
        # The first is called as its part is, so that most parts are one shard of that name.
        file = f"{part.name}.{len(shards)}.tar" if shards else f"{part.name}.tar"
        with atomic_path(folder / file) as path:
            count = write_records(path, map(_record, itertools.chain([first], group)))
        shards.append({"file": file, "count": count})
    rejects = [asdict(reject) for reject in accepted.rejects]
    result = {
        "expected": part.count,
        "shards": shards,
        "rejects": rejects,
        "pictures": accepted.pictures,
    }
    write_json(folder / RESULTS / f"{part.name}.json", result)
    return result


class _Accepted:
    """The examples of a part, checked; what is rejected is kept aside."""

    def __init__(self, plan: Manifest, examples: Iterable[Example | RejectedItem]) -> None:
        self.plan, self.examples = plan, examples
        self.rejects: list[RejectedItem] = []
        self.pictures: int | None = None
        self._keys: set[str] = set()

    def __iter__(self) -> Iterator[Example]:
        for each in self.examples:
            if isinstance(each, RejectedItem):
                self.rejects.append(each)
            else:
                self._check(each)
                yield each

    def _check(self, example: Example) -> None:
        plan, key = self.plan, example.key
        if not re.fullmatch(r"[\w-]+", key) or key in self._keys:
            raise ValueError(f"key {key!r} of task '{plan.task}' is not a new plain name")
        if example.task != plan.task:
            raise ValueError(f"example '{key}' is of task '{example.task}', not '{plan.task}'")
        self.pictures = self.pictures or len(example.images)
        if len(example.images) != self.pictures:
            raise ValueError(
                f"example '{key}' of task '{plan.task}' has {len(example.images)} pictures, "
                f"others have {self.pictures}"
            )
        shape = (plan.image_size, plan.image_size, 3)
        for picture in example.images:
            if picture.dtype != np.uint8 or picture.shape != shape:
                raise ValueError(
                    f"example '{key}' of task '{plan.task}' holds {picture.dtype} "
                    f"{picture.shape}, not uint8 {shape}"
                )
        self._keys.add(key)


def _record(example: Example) -> Record:
    record: Record = {"__key__": example.key}
    for name, image in zip(member_names(len(example.images)), example.images, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG", compress_level=1)
        record[name] = buffer.getvalue()
    return record


def finish_parts(root: StoragePath, plan: Manifest, parts: list[SourceChunk]) -> Manifest:
    """Turn the results of all the parts into the folder's manifest.

    Raises:
        ValueError: Parts whose examples have different numbers of pictures.
    """
    folder = as_path(root) / plan.split / plan.task
    if (folder / MANIFEST).exists():
        return Manifest.load(folder / MANIFEST)
    results = [_result(folder, part.name) for part in parts]
    counts = {result["pictures"] for result in results if result["pictures"]}
    if len(counts) > 1:
        raise ValueError(f"{folder}: examples of {sorted(counts)} pictures in one task")
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
                "name": part.name,
                "expected": part.count,
                "shards": len(result["shards"]),
                "rejected": len(result["rejects"]),
            }
            for part, result in zip(parts, results, strict=True)
        ],
    )
    manifest.save(folder / MANIFEST)
    (folder / INCOMPLETE).unlink(missing_ok=True)
    remove_tree(folder / RESULTS)
    return manifest


def _result(folder: StoragePath, name: str) -> dict[str, Any]:
    return read_json(folder / RESULTS / f"{name}.json", "result of a part")


def read_rejects(folder: StoragePath) -> list[RejectedItem]:
    """What a folder's source could make no example of."""
    path = folder / REJECTS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [RejectedItem(**json.loads(line)) for line in lines]
