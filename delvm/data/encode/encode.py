"""The work behind `delvm encode`: pairs become token shards, the training tasks balanced.

All is planned first (`plan_job`); then an engine writes the shards that are not there, each a
function of the plan and its number, and a folder whose shards are all there is declared finished.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from delvm.data.augment import BalanceConfig, BalanceMode, target_counts
from delvm.data.encode.executors.base import Engine, Factory, Share
from delvm.data.encode.executors.local import Local
from delvm.data.encode.shard_task import Done, Job, Piece, Tokenizer
from delvm.data.shards.manifest import (
    MANIFEST,
    Manifest,
    load_manifests,
    pending_shards,
    plan_tokens,
    write_codebook,
)
from delvm.data.shards.writer import finalize_tokens, is_in_progress, missing_shards, start_tokens
from delvm.data.types import SPLITS, check_splits
from delvm.errors import UserError
from delvm.progress import Progress, log, log_kept
from delvm.storage import StoragePath, as_path

PATIENCE = 600.0  # seconds that the processes of torchrun wait for the first of them
LOOK = 0.5  # seconds between two looks


class Given:
    """A tokenizer that is loaded already, as a factory for engines of this process."""

    device = "auto"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, worker: int) -> Tokenizer:
        """That tokenizer."""
        return self.tokenizer


def encode(
    input: str | StoragePath,
    output: str | StoragePath,
    tokenizer: Tokenizer,
    fingerprint: str,
    *,
    balance: BalanceConfig | None = None,
    splits: Sequence[str] = SPLITS,
    batch_size: int = 32,
    seed: int = 0,
    overwrite: bool = False,
    engine: Engine | None = None,
    factory: Factory | None = None,
) -> list[Manifest]:
    """Turn the pairs of a root into token shards, the training tasks balanced.

    Run again after a kill, with any engine, it continues with the shards that are not there.
    Memory does not grow with the corpus: pairs are streamed, once for each copy of a task.

    Args:
        input: Root of the pairs.
        output: Root of the token shards.
        tokenizer: What the plan is made for, and what encodes in this process.
        fingerprint: Of the tokenizer: its config and weights.
        balance: How "train" is balanced; other splits are taken as they are.
        splits: Any of "train", "val", "test".
        batch_size: Pairs a batch (two pictures each).
        seed: Of the augmentation.
        overwrite: Replace what was made with other settings.
        engine: Who writes the shards; this process by default.
        factory: Makes the tokenizers of other processes.

    Returns:
        The manifests of the folders that are finished: all, unless this process is one of several
        (RANK, WORLD_SIZE) and others are still at work.

    Raises:
        UserError: Pairs missing or damaged or of another size than the tokenizer's, an unknown
            split, a finished folder made with other settings, or a disk that is full.
    """
    engine = engine or Local()
    share = engine.share()
    if share.ranks > 1 and overwrite:
        raise UserError(
            f"overwrite=true with WORLD_SIZE={share.ranks}: set overwrite=false and another "
            "output, or remove what is there"
        )
    job = plan_job(
        as_path(input),
        as_path(output),
        tokenizer,
        fingerprint,
        balance or BalanceConfig(),
        splits,
        batch_size,
        seed,
    )
    _start(job, share, tokenizer, fingerprint, overwrite)
    _run(job, _mine(job, share), share, engine, factory or Given(tokenizer))
    return _whole(job, share)


def _start(job: Job, share: Share, tokenizer: Tokenizer, fingerprint: str, overwrite: bool) -> None:
    """Make every folder ready, or wait until the first of several processes has done so."""
    if share.rank != 0:
        _wait_for_start(job, share)
        return
    _say_found(job, overwrite)
    write_codebook(job.output, tokenizer.codebook, fingerprint, overwrite)
    for manifest in job.plans:
        start_tokens(job.output, manifest, overwrite)


def _whole(job: Job, share: Share) -> list[Manifest]:
    """The manifests whose shards are all there; says so where some are not."""
    whole = [manifest for manifest in job.plans if not missing_shards(job.output, manifest)]
    if len(whole) < len(job.plans):
        log(
            f"encode {share.rank}/{share.ranks}: this share is done, others are still at work on "
            f"{len(job.plans) - len(whole)} of {len(job.plans)} folders; should none of them "
            "finish, run the same again"
        )
    return whole


def _run(job: Job, pieces: list[Piece], share: Share, engine: Engine, factory: Factory) -> None:
    """Have pieces written; each folder is finished by whoever writes its last shard."""
    left = Counter(piece.plan for piece in pieces)
    for number in set(range(len(job.plans))) - set(left):
        _finish(job, number)
    what = f"encode {share.rank}/{share.ranks}" if share.ranks > 1 else "encode"
    with Progress(sum(map(job.count, pieces)), what, "pairs") as bar:
        for done in engine.run(job, pieces, factory, bar.update):
            log(f"{what}: {summary(job, done)}")
            left[done.piece.plan] -= 1
            if not left[done.piece.plan]:
                _finish(job, done.piece.plan)


def _finish(job: Job, number: int) -> None:
    if not missing_shards(job.output, job.plans[number]):
        finalize_tokens(job.output, job.plans[number])


def summary(job: Job, done: Done) -> str:
    """A line for a shard that is written."""
    count, plan = job.count(done.piece), job.plans[done.piece.plan]
    rate = count * plan.images_per_example / max(done.seconds, 1e-9)
    return f"{job.title(done.piece)}: {count:,} pairs in {done.seconds:.1f} s, {rate:,.0f} images/s"


def _mine(job: Job, share: Share) -> list[Piece]:
    """The pieces to be written that are this process's share.

    They are dealt out by their numbers among all pieces and not among those that are missing,
    which differ from one moment to the next.
    """
    everything = [
        Piece(number, shard)
        for number, manifest in enumerate(job.plans)
        for shard in range(len(manifest.shards))
    ]
    missing = {
        Piece(number, shard)
        for number, manifest in enumerate(job.plans)
        for shard in missing_shards(job.output, manifest)
    }
    return [piece for piece in everything[share.rank :: share.ranks] if piece in missing]


def _wait_for_start(job: Job, share: Share) -> None:
    """Until the first process has made every folder ready.

    Raises:
        UserError: it does not, or a finished folder was made with other settings.
    """
    for manifest in job.plans:
        if (job.output / manifest.split / manifest.task / MANIFEST).exists():
            pending_shards(job.output, manifest)  # refuses what the first process refuses too
    end = time.monotonic() + PATIENCE
    while not all(is_in_progress(job.output, manifest) for manifest in job.plans):
        if time.monotonic() > end:
            raise UserError(
                f"RANK={share.rank} of WORLD_SIZE={share.ranks} waited {PATIENCE:.0f} s for RANK=0 "
                f"to start in {job.output}: start all of them, on a disk that all see"
            )
        time.sleep(LOOK)


def plan_job(
    input: StoragePath,
    output: StoragePath,
    tokenizer: Tokenizer,
    fingerprint: str,
    balance: BalanceConfig,
    splits: Sequence[str],
    batch_size: int,
    seed: int,
) -> Job:
    """What to encode; every mismatch is found before any work is done.

    Raises:
        UserError: As for `encode`.
    """
    check_splits(splits)
    if input.resolve() == output.resolve():
        raise UserError(f"input and output are both {input}: set output to another folder")
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is below 1: set batch_size=32")
    planned = [
        both
        for split in splits
        for both in _plan_split(input, split, tokenizer, fingerprint, balance, seed)
    ]
    pairs, plans = zip(*planned, strict=True)
    return Job(input, output, pairs, plans, batch_size)


def _plan_split(
    input: StoragePath,
    split: str,
    tokenizer: Tokenizer,
    fingerprint: str,
    balance: BalanceConfig,
    seed: int,
) -> Iterator[tuple[Manifest, Manifest]]:
    """What there is of each task of a split, and what it becomes."""
    pairs = load_manifests(input, split, "images")
    counts = {task: manifest.count for task, manifest in pairs.items()}
    balancing = split == "train" and balance.mode is not BalanceMode.none
    wanted = target_counts(counts, balance) if balancing else counts
    size = tokenizer.config.resolution
    for task, manifest in pairs.items():
        if manifest.image_size != size:
            raise UserError(
                f"image size {manifest.image_size} (pairs in {input}) != resolution {size} "
                f"(tokenizer): run `delvm prepare source.size={size}`"
            )
        settings = {
            "mode": balance.mode.value,
            "examples_per_task": balance.examples_per_task,
            "seed": seed,
        }
        if balance.mode is BalanceMode.augment:
            settings["jitter"] = balance.jitter.value
        tokens = plan_tokens(
            manifest,
            wanted[task],
            tokens_per_image=tokenizer.config.tokens_per_image,
            vocab_size=len(tokenizer.codebook),
            fingerprint=fingerprint,
            balance=settings if balancing else None,
            bf16=tokenizer.bf16,
        )
        yield manifest, tokens
        if balancing and (target := balance.examples_per_task) and counts[task] > target:
            log(f"encode: {split}/{task} keeps its {counts[task]:,} pairs, above {target:,}")


def _say_found(job: Job, overwrite: bool) -> None:
    """Say what is kept or continued from an earlier run.

    Raises:
        UserError: A finished folder was made with other settings.
    """
    kept = []
    for manifest in job.plans:
        todo = sum(shard["count"] for shard in pending_shards(job.output, manifest, overwrite))
        name = f"{manifest.split}/{manifest.task}"
        if not todo:
            kept.append(name)
        elif todo < manifest.count:
            done = f"{manifest.count - todo:,} of {manifest.count:,}"
            log(f"encode: continuing {job.output}/{name}, {done} pairs are there")
    log_kept("encode", job.output, kept)
