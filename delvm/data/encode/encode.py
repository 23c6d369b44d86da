"""The work behind `delvm encode`: image shards become token shards, the training tasks balanced.

Everything is planned first (`plan_job`). Then an executor writes the missing shards, each a
function of the plan and its index; a directory whose shards are all written gets its manifest.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from delvm import tasks
from delvm.data.augment import BalanceConfig, BalanceMode, target_counts
from delvm.data.encode.annotation_limits import allowed_for_annotations
from delvm.data.encode.executors.base import Executor, Rank, TokenizerFactory, check_executor
from delvm.data.encode.executors.local import Local
from delvm.data.encode.rejected_shards import RejectedShards
from delvm.data.encode.shard_task import EncodeJob, ShardResult, ShardTask, Tokenizer
from delvm.data.shards.codebook import write_codebook
from delvm.data.shards.former_tasks import rename_former_task
from delvm.data.shards.manifest import (
    Manifest,
    load_manifests,
    load_manifests_if_any,
    plan_tokens,
)
from delvm.data.shards.replacement import MANIFEST, finish_replacing, put_in_place
from delvm.data.shards.writer import (
    finalize_tokens,
    is_in_progress,
    missing_shards,
    pending_shards,
    start_tokens,
)
from delvm.data.types import SPLITS, check_splits
from delvm.errors import UserError
from delvm.progress import Progress, log, log_kept
from delvm.storage import StoragePath, as_path

TIMEOUT_S = 600.0  # how long the other ranks wait for rank 0
POLL_S = 0.5


class PreloadedTokenizer:
    """A tokenizer that is loaded already, as a factory for executors of this process."""

    device = "auto"

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, worker: int) -> Tokenizer:
        """That tokenizer."""
        return self.tokenizer


def encode(
    input_dir: str | StoragePath,
    output_dir: str | StoragePath,
    tokenizer: Tokenizer,
    fingerprint: str,
    *,
    balance: BalanceConfig | None = None,
    splits: Sequence[str] = SPLITS,
    batch_size: int = 32,
    seed: int = 0,
    overwrite: bool = False,
    executor: Executor | None = None,
    factory: TokenizerFactory | None = None,
) -> list[Manifest]:
    """Turn image shards into token shards, the training tasks balanced.

    Run again after it was killed, with any executor, it continues with the missing shards.
    Examples are streamed, once for each copy of a task, so memory does not grow with the corpus.

    Args:
        input_dir: Root of the image shards.
        output_dir: Root of the token shards.
        tokenizer: What the plan is made for, and what encodes in this process.
        fingerprint: Of the tokenizer: its config and weights.
        balance: How "train" is balanced; other splits are taken as they are.
        splits: Any of "train", "val", "test".
        batch_size: Examples per batch.
        seed: Of the augmentation.
        overwrite: Replace what was made with other settings.
        executor: How the shards are written; in this process by default.
        factory: Builds the tokenizers of other processes.

    Returns:
        The manifests of the directories that are finished: all, unless this process is one of
        several ranks (RANK, WORLD_SIZE) and others are still at work.

    Raises:
        UserError: Image shards missing, damaged or of another size than the tokenizer's, an unknown
            split, a finished directory made with other settings, or a full disk.
    """
    executor = check_executor(executor or Local())
    rank = executor.rank()
    if rank.world_size > 1 and overwrite:
        raise UserError(
            f"overwrite=true with WORLD_SIZE={rank.world_size}: set overwrite=false and another "
            "output_dir, or remove what is there"
        )
    job = plan_job(
        as_path(input_dir), as_path(output_dir), tokenizer, fingerprint,
        balance or BalanceConfig(), splits, batch_size, seed,
    )  # fmt: skip
    _start(job, rank, tokenizer, fingerprint, overwrite)
    factory = factory or PreloadedTokenizer(tokenizer)
    _run(job, _shards_of_rank(job, rank), rank, executor, factory)
    return _finished(job, rank)


def _start(
    job: EncodeJob, rank: Rank, tokenizer: Tokenizer, fingerprint: str, overwrite: bool
) -> None:
    """Prepare every directory, or wait until rank 0 has done so."""
    if rank.rank != 0:
        _wait_for_start(job, rank)
        return
    finish_replacing(job.output_dir)
    for manifest in job.token_manifests:
        rename_former_task(job.output_dir, manifest.split, manifest.task)
    _log_found(job, overwrite)
    write_codebook(job.output_dir, tokenizer.codebook, fingerprint, overwrite, in_place=False)
    for manifest in job.token_manifests:
        start_tokens(job.output_dir, manifest, overwrite)


def _finished(job: EncodeJob, rank: Rank) -> list[Manifest]:
    """The manifests whose shards are all written; logs how many are not."""
    manifests = job.token_manifests
    finished = [each for each in manifests if not missing_shards(job.output_dir, each)]
    if len(finished) < len(manifests):
        log(
            f"encode {rank.rank}/{rank.world_size}: the shards of this rank are done, others are "
            f"still at work on {len(manifests) - len(finished)} of {len(manifests)} directories; "
            "if none of them finishes, run the same again"
        )
    else:
        put_in_place(job.output_dir, [(each.split, each.task) for each in manifests])
    return finished


def _run(
    job: EncodeJob,
    shards: list[ShardTask],
    rank: Rank,
    executor: Executor,
    factory: TokenizerFactory,
) -> None:
    """Have shards written; whoever writes the last shard of a directory finishes it.

    Raises:
        UserError: Image shards of a store cannot be read; all other shards are written.
    """
    rejected = RejectedShards(job, rank)
    left = Counter(shard.manifest for shard in shards)
    for number in set(range(len(job.token_manifests))) - set(left):
        _finish(job, number)
    title = f"encode {rank.rank}/{rank.world_size}" if rank.world_size > 1 else "encode"
    with Progress(sum(map(job.count, shards)), title, "examples") as progress:
        for result in executor.run(job, shards, factory, progress.update):
            if not rejected.update(result):
                continue
            log(f"{title}: {summary(job, result)}")
            left[result.shard.manifest] -= 1
            if not left[result.shard.manifest]:
                _finish(job, result.shard.manifest)
    rejected.raise_if_any()


def _finish(job: EncodeJob, number: int) -> None:
    manifest = job.token_manifests[number]
    if not missing_shards(job.output_dir, manifest):
        finalize_tokens(job.output_dir, manifest, in_place=False)


def summary(job: EncodeJob, result: ShardResult) -> str:
    """A line about a shard that was written."""
    count, manifest = job.count(result.shard), job.token_manifests[result.shard.manifest]
    rate = count * manifest.images_per_example / max(result.seconds, 1e-9)
    return (
        f"{job.title(result.shard)}: {count:,} examples in {result.seconds:.1f} s, "
        f"{rate:,.0f} images/s"
    )


def _shards_of_rank(job: EncodeJob, rank: Rank) -> list[ShardTask]:
    """The shards that this rank has to write.

    Ranks take turns over all shards and not over the missing ones, which change all the time.
    """
    shards = [
        ShardTask(number, index)
        for number, manifest in enumerate(job.token_manifests)
        for index in range(len(manifest.shards))
    ]
    missing = {
        ShardTask(number, index)
        for number, manifest in enumerate(job.token_manifests)
        for index in missing_shards(job.output_dir, manifest)
    }
    return [shard for shard in shards[rank.rank :: rank.world_size] if shard in missing]


def _wait_for_start(job: EncodeJob, rank: Rank) -> None:
    """Wait until rank 0 has prepared every directory.

    Raises:
        UserError: it does not, or a finished directory was made with other settings.
    """
    for manifest in job.token_manifests:
        if (job.output_dir / manifest.split / manifest.task / MANIFEST).exists():
            pending_shards(job.output_dir, manifest)  # raises what it raises in rank 0
    end = time.monotonic() + TIMEOUT_S
    while not all(is_in_progress(job.output_dir, manifest) for manifest in job.token_manifests):
        if time.monotonic() > end:
            raise UserError(
                f"RANK={rank.rank} of WORLD_SIZE={rank.world_size} waited {TIMEOUT_S:.0f} s for "
                f"RANK=0 to start in {job.output_dir}: start all ranks, on a disk that they share"
            )
        time.sleep(POLL_S)


def plan_job(
    input_dir: StoragePath,
    output_dir: StoragePath,
    tokenizer: Tokenizer,
    fingerprint: str,
    balance: BalanceConfig,
    splits: Sequence[str],
    batch_size: int,
    seed: int,
) -> EncodeJob:
    """What to encode; every mismatch is found before any work is done.

    Raises:
        UserError: As for `encode`.
    """
    check_splits(splits)
    if input_dir.resolve() == output_dir.resolve():
        raise UserError(
            f"input_dir and output_dir are both {input_dir}: set output_dir to another directory"
        )
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is below 1: set batch_size=32")
    there = [split for split in splits if load_manifests_if_any(input_dir, split, "images")]
    if there and (missing := [split for split in splits if split not in there]):
        log(f"encode: {input_dir} has no images of {', '.join(missing)}, so no tokens of it either")
    planned = [
        both
        for split in there or splits  # with none, the first is reported
        for both in _plan_split(input_dir, split, tokenizer, fingerprint, balance, seed)
    ]
    images, tokens = zip(*planned, strict=True)
    geometries = tuple(
        allowed_for_annotations(balance, each).geometry(tasks.get_or_default(each.task))
        for each in tokens
    )
    return EncodeJob(input_dir, output_dir, images, tokens, geometries, batch_size)


def _plan_split(
    input_dir: StoragePath,
    split: str,
    tokenizer: Tokenizer,
    fingerprint: str,
    balance: BalanceConfig,
    seed: int,
) -> Iterator[tuple[Manifest, Manifest]]:
    """For each task of a split, the manifest of its images and that of its tokens to be."""
    images = load_manifests(input_dir, split, "images")
    counts = {task: manifest.count for task, manifest in images.items()}
    balancing = split == "train" and balance.mode is not BalanceMode.none
    targets = target_counts(counts, balance) if balancing else counts
    size = tokenizer.config.resolution
    for task, manifest in images.items():
        if manifest.image_size != size:
            raise UserError(
                f"image size {manifest.image_size} (images in {input_dir}) != resolution {size} "
                f"(tokenizer): run `delvm prepare source.size={size}`"
            )
        settings = allowed_for_annotations(balance, manifest).settings() | {"seed": seed}
        tokens = plan_tokens(
            manifest,
            targets[task],
            tokens_per_image=tokenizer.config.tokens_per_image,
            vocab_size=len(tokenizer.codebook),
            fingerprint=fingerprint,
            balance=settings if balancing else None,
            bf16=tokenizer.bf16,
        )
        yield manifest, tokens
        if balancing and (target := balance.examples_per_task) and counts[task] > target:
            log(f"encode: {split}/{task} keeps its {counts[task]:,} examples, above {target:,}")


def _log_found(job: EncodeJob, overwrite: bool) -> None:
    """Log what is kept from an earlier run, and what is continued.

    Raises:
        UserError: A finished directory was made with other settings.
    """
    kept = []
    for manifest in job.token_manifests:
        todo = sum(shard["count"] for shard in pending_shards(job.output_dir, manifest, overwrite))
        name = f"{manifest.split}/{manifest.task}"
        if not todo:
            kept.append(name)
        elif todo < manifest.count:
            log(
                f"encode: continuing {job.output_dir}/{name}, {manifest.count - todo:,} of "
                f"{manifest.count:,} examples exist already"
            )
    log_kept("encode", job.output_dir, kept)
