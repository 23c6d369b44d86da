"""`delvm encode` compared with the bare tokenizer, and executors with each other, in images/s.

What encode adds is reading tars, decoding PNG, stacking, packing and writing. It is measured twice
with one torch thread: with a second core that does the reading, and pinned to one core, where
nothing overlaps, as with one worker per core.
"""

import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

import delvm
from delvm.data.augment import BalanceConfig
from delvm.data.encode.encode import plan_job
from delvm.data.encode.executors.base import TokenizerFactory
from delvm.data.encode.executors.processes import Processes
from delvm.data.encode.shard_task import EncodeJob, ShardTask, encode_shard
from delvm.data.image_io import to_tensor
from delvm.data.prepare.chunks import finish_chunks, start_chunks, write_chunk
from delvm.data.shards.manifest import plan_images
from delvm.data.sources.shapes.photographs import packaged_pool
from delvm.data.types import Example, split_into_chunks
from delvm.interop.tokenizer_factory import LoadTokenizer
from delvm.models.vqgan import VQGAN, VQGANConfig
from experiments.bench.harness import Row, medians

TASKS = ("deblur", "derain", "pose", "segmentation")
PAIRS = 1024  # per task
DISTINCT = 64  # pairs, which are repeated
REPEATS = 5
GOAL = "ratio >= 0.9"  # of the bare tokenizer's rate


def rows() -> list[Row]:
    """Overhead with both tokenizers; one and two workers compared with one of two threads."""
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        shipped = delvm.load_tokenizer("shapes")
        large = VQGAN(VQGANConfig()).eval()  # random weights are as fast as trained ones
        small_job = make_job(root / "64", shipped, PAIRS, batch_size=64)
        large_job = make_job(root / "256", large, 4, batch_size=2)
        return [
            overhead("encode_overhead", "shapes", small_job, shipped, REPEATS),
            overhead("encode_overhead_one_core", "shapes", small_job, shipped, REPEATS, pin=True),
            overhead("encode_overhead_f16", "f16_8192 with random weights", large_job, large, 2),
            *executors(small_job, LoadTokenizer("shapes", "cpu", False)),
        ]


def make_job(root: Path, tokenizer: VQGAN, pairs: int, batch_size: int) -> EncodeJob:
    """An encode job over crops of photographs in the tokenizer's size, one shard per task."""
    side, rng = tokenizer.config.resolution, np.random.default_rng(0)
    crops = [
        packaged_pool("train").crop(rng, side).round().astype(np.uint8) for _ in range(DISTINCT)
    ]
    for task in TASKS:
        plan = plan_images(
            "train", task, source="bench", seed=0, image_size=side, shard_size=max(1, pairs)
        )
        chunks = split_into_chunks(pairs, pairs)
        start_chunks(root / "pairs", plan, chunks)
        repeated = zip(itertools.cycle(crops), itertools.cycle(crops[::-1]))
        examples = (
            Example(f"{i:06d}", task, images)
            for i, images in enumerate(itertools.islice(repeated, pairs))
        )
        write_chunk(root / "pairs", plan, chunks[0], examples)
        finish_chunks(root / "pairs", plan, chunks)
    return plan_job(
        root / "pairs", root / "t", tokenizer, "bench", BalanceConfig(), ["train"], batch_size, 0
    )


@contextmanager
def one_thread(pin: bool) -> Iterator[None]:
    """Run with one torch thread, and pin the process with its helper threads to one core."""
    threads = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if pin else None
    torch.set_num_threads(1)
    if cores:
        os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores:
            os.sched_setaffinity(0, cores)


def overhead(
    name: str, label: str, job: EncodeJob, tokenizer: VQGAN, repeats: int, pin: bool = False
) -> Row:
    """`encode_shard` compared with encoding batches of the same size from memory."""
    shard = ShardTask(0, 0)
    plan, images = (
        job.token_manifests[0],
        job.count(shard) * job.token_manifests[0].images_per_example,
    )
    file = Path(str(job.output_dir)) / plan.split / plan.task / plan.shards[0]["file"]
    side, batch = plan.image_size, job.batch_size * plan.images_per_example
    rng = np.random.default_rng(0)
    pixels = to_tensor(list(rng.integers(0, 256, (batch, side, side, 3), dtype=np.uint8)))

    def bare() -> None:
        for start in range(0, images, batch):
            tokenizer.encode(pixels[: images - start])

    def shard_to_shard() -> None:
        file.unlink(missing_ok=True)
        encode_shard(job, shard, tokenizer)

    with one_thread(pin), torch.inference_mode():
        seconds = medians({"encode": shard_to_shard, "bare": bare}, repeats)
    return Row.compare(
        name,
        images / seconds["encode"],
        images / seconds["bare"],
        goal="" if pin else GOAL,
        unit="images/s",
        note=f"encode of {images:,} images of {side} px vs. the bare tokenizer, {label}, in "
        f"batches of {batch}, {'pinned to one core' if pin else 'one thread, one that reads'}; "
        f"medians of {repeats}, interleaved",
    )


def executors(job: EncodeJob, factory: TokenizerFactory) -> list[Row]:
    """Workers of one thread compared with one process of two threads."""
    layouts = ((1, 1), (2, 1), (1, 2))  # (workers, threads)
    rates = {layout: rate(job, factory, *layout) for layout in layouts}
    note = "executor=processes, the shipped tokenizer, first to last batch; the peer is"
    return [
        Row.compare(
            f"encode_{workers}_workers",
            rates[workers, 1],
            rates[1, 2],
            unit="images/s",
            note=f"{note} one process of two threads, here {workers} of one thread each",
        )
        for workers in (1, 2)
    ]


def rate(job: EncodeJob, factory: TokenizerFactory, workers: int, threads: int) -> float:
    """Images/s of all workers together, without their start-up."""
    shards = [ShardTask(number, 0) for number in range(len(job.token_manifests))]
    for plan in job.token_manifests:
        file = Path(str(job.output_dir)) / plan.split / plan.task / plan.shards[0]["file"]
        file.unlink(missing_ok=True)
    reports: list[tuple[float, int]] = []

    def report(count: int) -> None:
        reports.append((time.perf_counter(), count))

    for _ in Processes(workers=workers, threads=threads).run(job, shards, factory, report):
        pass
    images = sum(count for _, count in reports[1:]) * job.token_manifests[0].images_per_example
    return images / (reports[-1][0] - reports[0][0])
