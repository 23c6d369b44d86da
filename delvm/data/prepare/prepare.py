"""The work behind `delvm prepare`: the examples of a source become shards of images."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

from PIL import Image

from delvm.data.prepare.chunks import (
    REJECTS,
    finish_chunks,
    pending_chunks,
    start_chunks,
    write_chunk,
)
from delvm.data.shards.former_tasks import rename_former_task
from delvm.data.shards.manifest import Manifest, load_manifests, plan_images
from delvm.data.shards.reader import read_examples
from delvm.data.shards.replacement import MANIFEST, finish_replacing, put_in_place
from delvm.data.sources._io.walk import CONTACT_SHEET
from delvm.data.sources.base import Source, check_source, source_name
from delvm.data.types import SPLITS, Example, RejectedItem, SourceChunk, check_splits
from delvm.errors import CheckFailed, UserError
from delvm.progress import Progress, log, log_kept
from delvm.storage import StoragePath, as_path, atomic_path
from delvm.viz.image_grid import image_grid

CONTACT_SHEET_IMAGES = 6  # per task, or more for complete examples


def prepare(
    source: Source,
    output_dir: StoragePath,
    splits: Sequence[str] = SPLITS,
    *,
    shard_size: int = 1000,
    max_reject_fraction: float = 0.05,
    overwrite: bool = False,
) -> list[Manifest]:
    """Write the examples of a source as shards of images, and a contact sheet of them.

    Run again after it was killed, it continues at the first unfinished chunk; run again after the
    source has grown, it reads the new chunks.

    Args:
        source: Where the examples come from.
        output_dir: Root of the shards, ROOT/SPLIT/TASK.
        splits: Any of "train", "val", "test".
        shard_size: Maximum number of examples per shard.
        max_reject_fraction: Of a task's raw items.
        overwrite: Replace directories made with other settings.

    Raises:
        UserError: An unknown split, a finished directory made with other settings, or other tasks
            in the root whose images have another size.
        CheckFailed: Too many items were rejected; what has been written is kept.
    """
    source, output_dir = check_source(source), as_path(output_dir)
    check_splits(splits)
    jobs = [
        (_plan(source, split, task, shard_size), chunks)
        for split in splits
        for task, chunks in source.chunks(split).items()
        if chunks
    ]
    if not jobs:
        raise UserError(f"source {source_name(source)} is empty for splits=[{','.join(splits)}]")
    finish_replacing(output_dir)
    _check_image_size(output_dir, [plan for plan, _ in jobs])
    for plan, _ in jobs:
        rename_former_task(output_dir, plan.split, plan.task)
    todo = [pending_chunks(output_dir, plan, chunks, overwrite) for plan, chunks in jobs]
    manifests = _write(source, output_dir, jobs, todo, max_reject_fraction, overwrite)
    _put_in_place(output_dir, manifests)
    # A data set may have no test split, or an empty one.
    filled = [manifest.split for manifest in manifests if manifest.count] or [manifests[-1].split]
    write_contact_sheet(output_dir, "test" if "test" in filled else filled[-1])
    return manifests


def _check_image_size(output_dir: StoragePath, plans: list[Manifest]) -> None:
    """Refuse a root whose other tasks have images of another size, with which none can be encoded.

    Raises:
        UserError: There is such a task.
    """
    for split in {plan.split for plan in plans}:
        folder = output_dir / split
        made = {plan.task for plan in plans if plan.split == split}
        found: list[StoragePath] = [*folder.iterdir()] if folder.is_dir() else []
        for path in sorted(found, key=lambda each: each.name):
            if path.name in made or not (path / MANIFEST).exists():
                continue
            there, size = Manifest.load(path / MANIFEST).image_size, plans[0].image_size
            if there != size:
                raise UserError(
                    f"{path} has images of {there} pixels, this source makes {size}: set "
                    f"source.size={there}, or output_dir to another directory"
                )


def _write(
    source: Source,
    output_dir: StoragePath,
    jobs: list[tuple[Manifest, list[SourceChunk]]],
    todo: list[list[SourceChunk]],
    max_reject_fraction: float,
    overwrite: bool,
) -> list[Manifest]:
    """Write the chunks that are to be read, and the manifests of all."""
    manifests = []
    record = getattr(source, "write_record", lambda root: None)
    record(output_dir)
    with _progress(output_dir, jobs, todo) as progress:
        for (plan, chunks), pending in zip(jobs, todo, strict=True):
            start_chunks(output_dir, plan, chunks, overwrite)
            for chunk in pending:
                examples = source.read(plan.split, plan.task, chunk)
                write_chunk(output_dir, plan, chunk, _with_progress(examples, progress, plan))
                record(output_dir)
            manifests.append(finish_chunks(output_dir, plan, chunks, in_place=False))
            try:
                _enforce_reject_limit(output_dir, manifests[-1], max_reject_fraction)
            except CheckFailed:  # what has been written is kept
                _put_in_place(output_dir, manifests)
                raise
    return manifests


def _put_in_place(output_dir: StoragePath, manifests: list[Manifest]) -> None:
    put_in_place(output_dir, [(manifest.split, manifest.task) for manifest in manifests])


def _plan(source: Source, split: str, task: str, shard_size: int) -> Manifest:
    return plan_images(
        split,
        task,
        source=source_name(source),
        seed=source.seed,
        image_size=source.size,
        settings=source.settings(split, task),
        shard_size=shard_size,
    )


def _with_progress(
    examples: Iterable[Example | RejectedItem], progress: Progress, plan: Manifest
) -> Iterator[Example | RejectedItem]:
    """The same items; counts examples if their number is known beforehand, else chunks."""
    name = f"{plan.split}/{plan.task}"
    for example in examples:
        yield example
        progress.update(int(progress.unit == "examples"), name)
    progress.update(int(progress.unit == "chunks"), name)


def _enforce_reject_limit(output_dir: StoragePath, manifest: Manifest, limit: float) -> None:
    """Log how much was rejected.

    Raises:
        CheckFailed: it is more than the limit.
    """
    if not manifest.rejected:
        return
    folder = output_dir / manifest.split / manifest.task
    total = manifest.rejected + manifest.count
    message = (
        f"{manifest.split}/{manifest.task}: {manifest.rejected:,} of {total:,} raw items rejected "
        f"({manifest.rejected / total:.1%}), listed in {folder / REJECTS}"
    )
    if manifest.rejected / total > limit or not manifest.count:
        raise CheckFailed(
            f"{message}: more than max_reject_fraction={limit}; what has been written is valid"
        )
    log(f"prepare: {message}")


def _progress(
    output_dir: StoragePath,
    jobs: list[tuple[Manifest, list[SourceChunk]]],
    todo: list[list[SourceChunk]],
) -> Progress:
    """Progress of what is pending; logs what is kept from an earlier run, and what is continued."""
    kept = []
    for (plan, chunks), pending in zip(jobs, todo, strict=True):
        name = f"{plan.split}/{plan.task}"
        if not pending:
            kept.append(name)
        elif len(pending) < len(chunks):
            done = f"{len(chunks) - len(pending):,} of {len(chunks):,} chunks exist already"
            log(f"prepare: continuing {output_dir}/{name}, {done}")
    log_kept("prepare", output_dir, kept)
    remaining = [chunk for pending in todo for chunk in pending]
    if all(chunk.count for chunk in remaining):
        return Progress(sum(chunk.count for chunk in remaining), "prepare", "examples")
    return Progress(len(remaining), "prepare", "chunks")


def write_contact_sheet(root: StoragePath, split: str) -> StoragePath:
    """Write ROOT/contact_sheet.png: the first examples of each task of a split."""
    manifests = load_manifests(root, split, "images")
    rows = []
    for task, manifest in manifests.items():
        count = -(-CONTACT_SHEET_IMAGES // manifest.images_per_example)
        examples = itertools.islice(read_examples(root, split, task), count)
        rows.append([Image.fromarray(image) for each in examples for image in each.images])
    paired = all(manifest.images_per_example == 2 for manifest in manifests.values())
    titles = ["input", "target"] * (CONTACT_SHEET_IMAGES // 2) if paired else None
    grid = image_grid(rows, titles, row_titles=list(manifests))
    path = as_path(root) / CONTACT_SHEET
    with atomic_path(path) as tmp:
        grid.save(tmp)
    return path
