"""The work behind the verbs: `prepare` writes pairs, `encode` turns them into tokens."""

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from delvm import tasks
from delvm.data.augment import Balance, BalanceConfig, augment, plan
from delvm.data.images import contact_sheet, to_pixels
from delvm.data.manifest import Manifest, load_manifests, pending, plan_pairs, plan_tokens
from delvm.data.pairs import SPLITS, Pair, Source
from delvm.data.shards import read_pairs, write_codebook, write_pairs, write_tokens
from delvm.errors import UserError, did_you_mean
from delvm.files import atomic_path
from delvm.progress import Progress

SHEET_PAIRS = 3  # pairs of each task on the contact sheet


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
    overwrite: bool = False,
) -> list[Manifest]:
    """Write the pairs of a source as shards, and a contact sheet of them.

    Run again after a kill, it continues at the first unfinished shard.

    Args:
        source: Where the pairs come from.
        output: Root of the shards, ROOT/SPLIT/TASK.
        splits: Any of "train", "val", "test".
        shard_size: Pairs a shard.
        overwrite: Replace folders made with other settings.

    Raises:
        UserError: Unknown split, or a finished folder made with other settings.
    """
    output = Path(output)
    _check_splits(splits)
    plans = [
        plan_pairs(
            split,
            task,
            count,
            source=source.name,
            seed=source.seed,
            image_size=source.size,
            shard_size=shard_size,
        )
        for split in splits
        for task, count in source.counts(split).items()
        if count
    ]
    with _progress("prepare", "pairs", output, plans, overwrite) as bar:
        for manifest in plans:
            name = f"{manifest.split}/{manifest.task}"
            write_pairs(
                output,
                manifest.split,
                manifest.task,
                _SourcePairs(source, manifest, partial(bar.update, 1, name)),
                source=manifest.source,
                seed=manifest.seed,
                image_size=manifest.image_size,
                shard_size=shard_size,
                overwrite=overwrite,
            )
    write_contact_sheet(output, "test" if "test" in splits else splits[-1])
    return plans


class _SourcePairs(Sequence[Pair]):
    """One task of a source as a sequence whose pairs are made when they are asked for."""

    def __init__(self, source: Source, manifest: Manifest, made: Callable[[], None]) -> None:
        self.source, self.manifest, self.made = source, manifest, made

    def __len__(self) -> int:
        return self.manifest.count

    @overload
    def __getitem__(self, index: int) -> Pair: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pair]: ...
    def __getitem__(self, index: int | slice) -> Pair | Sequence[Pair]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        pair = self.source.pair(self.manifest.split, self.manifest.task, index)
        self.made()
        return pair


def write_contact_sheet(root: Path, split: str) -> Path:
    """Write ROOT/contact_sheet.png: the first pairs of each task of a split."""
    names = list(load_manifests(root, split, "pairs"))
    rows = []
    for task in names:
        pairs = itertools.islice(read_pairs(root, split, task), SHEET_PAIRS)
        rows.append([Image.fromarray(side) for p in pairs for side in (p.input, p.target)])
    sheet = contact_sheet(rows, ["input", "target"] * SHEET_PAIRS, row_titles=names)
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


def balanced(root: Path, manifest: Manifest, start: int, stop: int) -> Iterator[Pair]:
    """Items start to stop of a balanced task: item i is pair i % count, copy i // count.

    Args:
        root: Root of the pairs.
        manifest: Of the tokens to be made, which says how the task is balanced.
    """
    count = load_manifests(root, manifest.split, "pairs")[manifest.task].count
    settings = manifest.balance or {}
    augmented = settings.get("mode") == Balance.augment.value
    flip = augmented and tasks.get(manifest.task).flips
    while start < stop:
        copy, first = divmod(start, count)
        last = min(count, first + stop - start)
        pairs = read_pairs(root, manifest.split, manifest.task, first)
        for pair in itertools.islice(pairs, last - first):
            yield (augment(pair, settings["seed"], copy, flip=flip) if augmented else pair)
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
    """Ids (n, 2, N) of the items from start to stop, a batch at a time."""
    pairs = balanced(input, manifest, start, stop)
    while batch := list(itertools.islice(pairs, batch_size)):
        pixels = to_pixels([side for pair in batch for side in (pair.input, pair.target)])
        ids = tokenizer.encode(pixels.to(tokenizer.codebook.device))  # (2n, N)
        yield ids.reshape(len(batch), 2, -1).cpu().numpy()
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
    if kept:
        _say(f"{what}: kept in {output}, finished with the same settings: {', '.join(kept)}")
    return Progress(left, what, unit)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
