"""The work behind the verbs: `prepare` writes pairs, `encode` turns them into tokens."""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from delvm import tasks
from delvm.data.augment import Balance, BalanceConfig, Jitter, augment, plan
from delvm.data.examples import SPLITS, Example, Part, Reject, Source
from delvm.data.images import contact_sheet, to_pixels
from delvm.data.manifest import (
    Manifest,
    load_manifests,
    pending,
    plan_pairs,
    plan_tokens,
    write_codebook,
)
from delvm.data.parts import REJECTS, finish_parts, pending_parts, start_parts, write_part
from delvm.data.shards import read_examples, write_tokens
from delvm.errors import Suspicious, UserError, did_you_mean
from delvm.files import atomic_path
from delvm.progress import Progress

SHEET_PICTURES = 6  # of each task on the contact sheet


class Tokenizer(Protocol):
    """What `encode` needs of a tokenizer; `delvm.models.vqgan.VQGAN` is one."""

    fast: bool  # whether it computes in bfloat16

    @property
    def config(self) -> Any:
        """With `resolution` and `tokens_per_image`."""
        ...

    @property
    def codebook(self) -> Tensor:
        """Codes (V, d)."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to ids (B, N) int64."""
        ...


def prepare(
    source: Source,
    output: Path,
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
        Suspicious: More was rejected than allowed; what has been written stays.
    """
    output = Path(output)
    _check_splits(splits)
    jobs = [
        (_plan_examples(source, split, task, shard_size), parts)
        for split in splits
        for task, parts in source.parts(split).items()
        if parts
    ]
    if not jobs:
        raise UserError(f"source {source.name} has nothing for splits=[{','.join(splits)}]")
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
    return plan_pairs(
        split,
        task,
        source=source.name,
        seed=source.seed,
        image_size=source.size,
        settings=source.settings(split, task),
        shard_size=shard_size,
    )


def _counted(
    examples: Iterable[Example | Reject], bar: Progress, made: Manifest
) -> Iterator[Example | Reject]:
    """The same, counted on the bar: by examples where it is known how many there are."""
    name = f"{made.split}/{made.task}"
    for example in examples:
        yield example
        bar.update(int(bar.unit == "examples"), name)
    bar.update(int(bar.unit == "parts"), name)


def _check_rejects(output: Path, manifest: Manifest, most: float) -> None:
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
        raise Suspicious(
            f"{manifest.split}/{manifest.task}: {said}: more than max_reject_fraction={most}; "
            "what has been written is valid"
        )
    _say(f"prepare: {manifest.split}/{manifest.task}: {said}")


def _parts_progress(
    output: Path, jobs: list[tuple[Manifest, list[Part]]], todo: list[list[Part]]
) -> Progress:
    """A bar over what is pending; says what is kept or continued from an earlier run."""
    kept = []
    for (made, parts), left in zip(jobs, todo, strict=True):
        name = f"{made.split}/{made.task}"
        if not left:
            kept.append(name)
        elif len(left) < len(parts):
            done = f"{len(parts) - len(left):,} of {len(parts):,} parts are there"
            _say(f"prepare: continuing {output}/{name}, {done}")
    _say_kept("prepare", output, kept)
    pending = [part for left in todo for part in left]
    if all(part.count for part in pending):
        return Progress(sum(part.count for part in pending), "prepare", "examples")
    return Progress(len(pending), "prepare", "parts")


def write_contact_sheet(root: Path, split: str) -> Path:
    """Write ROOT/contact_sheet.png: the first examples of each task of a split."""
    manifests = load_manifests(root, split, "pairs")
    rows = []
    for task in manifests:
        pictures = (p for example in read_examples(root, split, task) for p in example.pictures)
        rows.append([Image.fromarray(p) for p in itertools.islice(pictures, SHEET_PICTURES)])
    paired = all(manifest.pictures == 2 for manifest in manifests.values())
    titles = ["input", "target"] * (SHEET_PICTURES // 2) if paired else None
    sheet = contact_sheet(rows, titles, row_titles=list(manifests))
    path = Path(root) / "contact_sheet.png"
    with atomic_path(path) as part:
        sheet.save(part)
    return path


def encode(
    input: Path,
    output: Path,
    tokenizer: Tokenizer,
    fingerprint: str,
    *,
    balance: BalanceConfig | None = None,
    splits: Sequence[str] = SPLITS,
    batch_size: int = 32,
    seed: int = 0,
    overwrite: bool = False,
) -> list[Manifest]:
    """Turn the pairs of a root into token shards, the training tasks balanced.

    Run again after a kill, it continues at the first unfinished shard. Memory does not grow
    with the corpus: pairs are streamed, once for each copy of a task.

    Args:
        input: Root of the pairs.
        output: Root of the token shards.
        tokenizer: On the device to encode on.
        fingerprint: Of the tokenizer: its config and weights.
        balance: How "train" is balanced; other splits are taken as they are.
        splits: Any of "train", "val", "test".
        batch_size: Pairs a batch (two pictures each).
        seed: Of the augmentation.
        overwrite: Replace what was made with other settings.

    Raises:
        UserError: Pairs missing or of another size than the tokenizer's, an unknown split, or
            a finished folder made with other settings.
    """
    input, output, balance = Path(input), Path(output), balance or BalanceConfig()
    _check_splits(splits)
    if input.resolve() == output.resolve():
        raise UserError(f"input and output are both {input}: set output to another folder")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is below 1: set batch_size=32")
    plans = [
        manifest
        for split in splits
        for manifest in _plan_split(input, split, tokenizer, fingerprint, balance, seed)
    ]
    with _progress("encode", "pairs", output, plans, overwrite) as bar, torch.inference_mode():
        write_codebook(output, tokenizer.codebook, fingerprint, overwrite)
        for manifest in plans:
            ids = partial(_encode_pairs, input, manifest, tokenizer, batch_size, bar)
            write_tokens(output, manifest, ids, overwrite)
    return plans


def _plan_split(
    input: Path,
    split: str,
    tokenizer: Tokenizer,
    fingerprint: str,
    balance: BalanceConfig,
    seed: int,
) -> Iterator[Manifest]:
    """What to encode of a split, every mismatch found before any work is done."""
    pairs = load_manifests(input, split, "pairs")
    counts = {task: manifest.count for task, manifest in pairs.items()}
    balancing = split == "train" and balance.mode is not Balance.unbalanced
    wanted = plan(counts, balance) if balancing else counts
    size = tokenizer.config.resolution
    for task, manifest in pairs.items():
        if manifest.image_size != size:
            raise UserError(
                f"image size {manifest.image_size} (pairs in {input}) != resolution {size} "
                f"(tokenizer): run `delvm prepare source.size={size}`"
            )
        settings = {"mode": balance.mode.value, "target": balance.target, "seed": seed}
        if balance.mode is Balance.augment:
            settings["jitter"] = balance.jitter.value
        yield plan_tokens(
            manifest,
            wanted[task],
            tokens_per_image=tokenizer.config.tokens_per_image,
            vocab_size=len(tokenizer.codebook),
            fingerprint=fingerprint,
            balance=settings if balancing else None,
            fast=tokenizer.fast,
        )
        if balancing and balance.target and counts[task] > balance.target:
            _say(
                f"encode: {split}/{task} keeps its {counts[task]:,} pairs, above {balance.target:,}"
            )


def balanced(root: Path, manifest: Manifest, start: int, stop: int) -> Iterator[Example]:
    """Items start to stop of a balanced task: item i is pair i % count, copy i // count.

    Args:
        root: Root of the pairs.
        manifest: Of the tokens to be made, which says how the task is balanced.
    """
    count = load_manifests(root, manifest.split, "pairs")[manifest.task].count
    settings = manifest.balance or {}
    augmented = settings.get("mode") == Balance.augment.value
    flip = augmented and tasks.of(manifest.task).flips
    jitter = Jitter(settings.get("jitter", "none"))
    while start < stop:
        copy, first = divmod(start, count)
        last = min(count, first + stop - start)
        examples = read_examples(root, manifest.split, manifest.task, first)
        for example in itertools.islice(examples, last - first):
            if augmented:
                example = augment(example, settings["seed"], copy, flip=flip, jitter=jitter)
            yield example
        start += last - first


def _encode_pairs(
    input: Path,
    manifest: Manifest,
    tokenizer: Tokenizer,
    batch_size: int,
    bar: Progress,
    start: int,
    stop: int,
) -> Iterator[np.ndarray]:
    """Ids (n, k, N) of the items from start to stop, a batch at a time."""
    pairs = balanced(input, manifest, start, stop)
    while batch := list(itertools.islice(pairs, batch_size)):
        pixels = to_pixels([picture for example in batch for picture in example.pictures])
        ids = tokenizer.encode(pixels.to(tokenizer.codebook.device))  # (n k, N)
        yield ids.reshape(len(batch), manifest.pictures, -1).cpu().numpy()
        bar.update(len(batch), note=f"{manifest.split}/{manifest.task}")


def _check_splits(splits: Sequence[str]) -> None:
    if not splits:
        raise UserError(f"no splits given: set splits=[{','.join(SPLITS)}]")
    for split in splits:
        if split not in SPLITS:
            raise UserError(f"unknown split '{split}': {did_you_mean(split, SPLITS)}")


def _progress(
    what: str, unit: str, output: Path, plans: list[Manifest], overwrite: bool
) -> Progress:
    """A bar over what is pending; says what is kept or continued from an earlier run."""
    left, kept = 0, []
    for manifest in plans:
        todo = sum(shard["count"] for shard in pending(output, manifest, overwrite))
        name = f"{manifest.split}/{manifest.task}"
        if not todo:
            kept.append(name)
        elif todo < manifest.count:
            done = f"{manifest.count - todo:,} of {manifest.count:,}"
            _say(f"{what}: continuing {output}/{name}, {done} {unit} are there")
        left += todo
    _say_kept(what, output, kept)
    return Progress(left, what, unit)


def _say_kept(what: str, output: Path, names: list[str]) -> None:
    if names:
        _say(f"{what}: kept in {output}, finished with the same settings: {', '.join(names)}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
