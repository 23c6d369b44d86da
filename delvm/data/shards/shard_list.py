"""The shards of each task that are streamed: those of a root, or a pattern of URLs or commands."""

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from braceexpand import braceexpand

from delvm.data.shards.fetch import ShardCommand, ShardPath
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.errors import UserError, did_you_mean
from delvm.storage import StoragePath, as_path

MAX_NAMES = 1_000_000  # of a pattern
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)(\.\.-?\d+)?\}")
_SHARD_NAME = re.compile(r"\w[\w-]*(?:\.\d+)?\.tar")
_PIPE = "pipe:"


class TaskShards(NamedTuple):
    """The training shards of one task.

    Attributes:
        manifest: Of these shards.
        paths: Of each shard, in the order of the manifest.
    """

    manifest: Manifest
    paths: list[ShardPath]


def list_shards(root: StoragePath, kind: str, patterns: Mapping[str, str]) -> dict[str, TaskShards]:
    """The training shards by task.

    Args:
        root: Holds the manifests and, without a pattern, the shards.
        kind: "images" or "tokens".
        patterns: Task -> where its shards are instead, as
            ``s3://bucket/derain/{000000..000099}.tar``, expanded as by bash. Their names are those
            of the manifest, of which they may be a part. ``pipe:COMMAND`` runs a shell command that
            writes the tar to its output, so patterns must come from the user's own config and
            never from a file that was read.

    Raises:
        UserError: There is no manifest, or a pattern is for another task, or names a file that the
            manifest does not list.
    """
    manifests = load_manifests(root, "train", kind)
    for task in patterns:
        if task not in manifests:
            raise UserError(f"data.shards.{task}: no such task; {did_you_mean(task, manifests)}")
    found = {}
    for task, manifest in manifests.items():
        if pattern := patterns.get(task):
            found[task] = expand_shards(manifest, pattern)
        else:
            folder = root / "train" / task
            found[task] = TaskShards(manifest, [folder / each["file"] for each in manifest.shards])
    return found


def expand_shards(manifest: Manifest, pattern: str) -> TaskShards:
    """The shards of a manifest that a pattern names, where it names them.

    Raises:
        UserError: See `list_shards`.
    """
    name = f"data.shards.{manifest.task}={pattern}"
    if max_names(pattern) > MAX_NAMES:  # braceexpand would fill the memory with them
        raise UserError(
            f"{name}: it names up to {max_names(pattern):,} shards, '{manifest.task}' has "
            f"{len(manifest.shards):,}: set the numbers of these"
        )
    try:
        # One more than there are is enough to see that there are too many.
        urls = [*itertools.islice(braceexpand(pattern, escape=False), len(manifest.shards) + 1)]
    except ValueError:
        raise UserError(f"{name}: its braces do not match: set it as NAME/{{00..99}}.tar") from None
    at: dict[str, ShardPath] = {}
    for url in urls:
        # The last name of a tar: a URL may end with a query, a command with options.
        names = _SHARD_NAME.findall(url)
        if not names:
            raise UserError(f"{name}: {url} names no shard: set it as NAME/{{00..99}}.tar")
        command = url.removeprefix(_PIPE) if url.startswith(_PIPE) else None
        at[names[-1]] = as_path(url) if command is None else ShardCommand(command)
    if unknown := sorted(at.keys() - {shard["file"] for shard in manifest.shards}):
        raise UserError(
            f"{name}: the manifest of '{manifest.task}' has no shard {unknown[0]}, its last is "
            f"{manifest.shards[-1]['file'] if manifest.shards else 'none'}"
        )
    if len(at) < len(urls):
        raise UserError(f"{name}: it names a shard twice")
    shards = [shard for shard in manifest.shards if shard["file"] in at]
    kept = replace(manifest, shards=shards, count=sum(shard["count"] for shard in shards))
    return TaskShards(kept, [at[shard["file"]] for shard in shards])


def max_names(pattern: str) -> int:
    """At least as many names as the expansion of a pattern has, by its numbers and commas alone."""
    ranges = [abs(int(last) - int(first)) + 1 for first, last, _ in _RANGE.findall(pattern)]
    choices: list[int] = []  # of each group that is closed
    groups: list[int] = []  # commas in each group that is open
    for character in pattern:
        if character == "{":
            groups.append(0)
        elif character == "," and groups:
            groups[-1] += 1
        elif character == "}" and groups:
            choices.append(groups.pop() + 1)
    return math.prod(ranges) * math.prod(choices)
