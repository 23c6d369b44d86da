"""The work behind `delvm prepare`: the examples of a source become shards of pictures."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image

from delvm.data.prepare.chunks import REJECTS, finish_parts, pending_parts, start_parts, write_part
from delvm.data.shards.manifest import (
    Manifest,
    load_manifests,
    plan_images,
)
from delvm.data.shards.reader import read_examples
from delvm.data.sources.base import Source, check_source, source_name
from delvm.data.types import SPLITS, Example, RejectedItem, SourceChunk, check_splits
from delvm.errors import CheckFailed, UserError
from delvm.progress import Progress, log, log_kept
from delvm.storage import StoragePath, as_path, atomic_path
from delvm.viz.image_grid import image_grid

SHEET_PICTURES = 6  # of each task on the contact sheet


def prepare(
    source: Source,
    output: StoragePath,
    splits: Sequence[str] = SPLITS,
    *,
    shard_size: int = 1000,
    max_reject_fraction: float = 0.05,
    overwrite: bool = False,
) -> list[Manifest]:
    """Write the examples of a source as shards of pictures, and a contact sheet of them.

    Run again after a kill, it continues at the first unfinished part; run again after the source
    has grown, it reads the new parts.

    Args:
        source: Where the examples come from.
        output: Root of the shards, ROOT/SPLIT/TASK.
        splits: Any of "train", "val", "test".
        shard_size: Examples a shard, at most.
        max_reject_fraction: Of a task's raw items.
        overwrite: Replace folders made with other settings.

    Raises:
        UserError: Unknown split, or a finished folder made with other settings.
        CheckFailed: More was rejected than allowed; what has been written stays.
    """
    source, output = check_source(source), as_path(output)
    check_splits(splits)
    jobs = [
        (_plan_examples(source, split, task, shard_size), parts)
        for split in splits
        for task, parts in source.chunks(split).items()
        if parts
    ]
    if not jobs:
        raise UserError(f"source {source_name(source)} has nothing for splits=[{','.join(splits)}]")
    todo = [pending_parts(output, made, parts, overwrite) for made, parts in jobs]
    manifests = []
    with _parts_progress(output, jobs, todo) as bar:
        for (made, parts), left in zip(jobs, todo, strict=True):
            if left:
                start_parts(output, made, parts, overwrite)
            for part in left:
                examples = source.read(made.split, made.task, part)
                write_part(output, made, part, _counted(examples, bar, made))
            manifests.append(finish_parts(output, made, parts))
            _check_rejects(output, manifests[-1], max_reject_fraction)
    # A data set may have no test split, or nothing in it.
    shown = [manifest.split for manifest in manifests if manifest.count] or [manifests[-1].split]
    write_contact_sheet(output, "test" if "test" in shown else shown[-1])
    return manifests


def _plan_examples(source: Source, split: str, task: str, shard_size: int) -> Manifest:
    return plan_images(
        split,
        task,
        source=source_name(source),
        seed=source.seed,
        image_size=source.size,
        settings=source.settings(split, task),
        shard_size=shard_size,
    )


def _counted(
    examples: Iterable[Example | RejectedItem], bar: Progress, made: Manifest
) -> Iterator[Example | RejectedItem]:
    """The same, counted on the bar: by examples where it is known how many there are."""
    name = f"{made.split}/{made.task}"
    for example in examples:
        yield example
        bar.update(int(bar.unit == "examples"), name)
    bar.update(int(bar.unit == "parts"), name)


def _check_rejects(output: StoragePath, manifest: Manifest, most: float) -> None:
    """Say how much was left out, and stop where it is too much."""
    if not manifest.rejected:
        return
    folder = output / manifest.split / manifest.task
    share = manifest.rejected / (manifest.rejected + manifest.count)
    said = (
        f"{manifest.rejected:,} of {manifest.rejected + manifest.count:,} raw items rejected "
        f"({share:.1%}), listed in {folder / REJECTS}"
    )
    if share > most or not manifest.count:
        raise CheckFailed(
            f"{manifest.split}/{manifest.task}: {said}: more than max_reject_fraction={most}; "
            "what has been written is valid"
        )
    log(f"prepare: {manifest.split}/{manifest.task}: {said}")


def _parts_progress(
    output: StoragePath,
    jobs: list[tuple[Manifest, list[SourceChunk]]],
    todo: list[list[SourceChunk]],
) -> Progress:
    """A bar over what is pending; says what is kept or continued from an earlier run."""
    kept = []
    for (made, parts), left in zip(jobs, todo, strict=True):
        name = f"{made.split}/{made.task}"
        if not left:
            kept.append(name)
        elif len(left) < len(parts):
            done = f"{len(parts) - len(left):,} of {len(parts):,} parts are there"
            log(f"prepare: continuing {output}/{name}, {done}")
    log_kept("prepare", output, kept)
    pending = [part for left in todo for part in left]
    if all(part.count for part in pending):
        return Progress(sum(part.count for part in pending), "prepare", "examples")
    return Progress(len(pending), "prepare", "parts")


def write_contact_sheet(root: StoragePath, split: str) -> StoragePath:
    """Write ROOT/contact_sheet.png: the first examples of each task of a split."""
    manifests = load_manifests(root, split, "images")
    rows = []
    for task in manifests:
        pictures = (p for example in read_examples(root, split, task) for p in example.images)
        rows.append([Image.fromarray(p) for p in itertools.islice(pictures, SHEET_PICTURES)])
    paired = all(manifest.images_per_example == 2 for manifest in manifests.values())
    titles = ["input", "target"] * (SHEET_PICTURES // 2) if paired else None
    sheet = image_grid(rows, titles, row_titles=list(manifests))
    path = as_path(root) / "contact_sheet.png"
    with atomic_path(path) as part:
        sheet.save(part)
    return path
