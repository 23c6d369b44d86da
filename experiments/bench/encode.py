"""`delvm encode` beside the bare tokenizer, and executors beside each other: images a second.

Reading the tars, decoding PNG, stacking, packing and writing are what encode adds. It is measured
with one thread of torch twice: where a second core takes the reading, and pinned to one core, where
nothing is hidden, as when there are as many workers as cores.
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
from delvm.data.sources.shapes import photographs
from delvm.data.types import Example, split_into_chunks
from delvm.interop.tokenizer_factory import LoadTokenizer
from delvm.models.vqgan import VQGAN, VQGANConfig
from experiments.bench.harness import Row, medians

TASKS = ("deblur", "derain", "pose", "segmentation")
PAIRS = 1024  # a task
DISTINCT = 64  # pairs; the rest are these again
REPEATS = 5
SHARE = "ratio >= 0.9"  # of the bare tokenizer's rate


def rows() -> list[Row]:
    """Overhead with both tokenizers, then one worker, two workers, and one of two threads."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shipped = delvm.load_tokenizer("shapes")
        large = VQGAN(VQGANConfig()).eval()  # of random weights: as fast as a trained one
        small_job = corpus(root / "64", shipped, PAIRS, batch_size=64)
        large_job = corpus(root / "256", large, 4, batch_size=2)
        return [
            overhead("encode_overhead", "shapes", small_job, shipped, REPEATS),
            overhead("encode_overhead_one_core", "shapes", small_job, shipped, REPEATS, pin=True),
            overhead("encode_overhead_f16", "f16_8192 of random weights", large_job, large, 2),
            *executors(small_job, LoadTokenizer("shapes", "cpu", False)),
        ]


def corpus(root: Path, tokenizer: VQGAN, pairs: int, batch_size: int) -> EncodeJob:
    """A job over crops of photographs, a shard a task, of the tokenizer's size."""
    side, rng = tokenizer.config.resolution, np.random.default_rng(0)
    crops = [photographs.crop(rng, "train", side).round().astype(np.uint8) for _ in range(DISTINCT)]
    for task in TASKS:
        plan = plan_images(
            "train", task, source="bench", seed=0, image_size=side, shard_size=max(1, pairs)
        )
        parts = split_into_chunks(pairs, pairs)
        start_chunks(root / "pairs", plan, parts)
        drawn = zip(itertools.cycle(crops), itertools.cycle(crops[::-1]))
        made = (
            Example(f"{i:06d}", task, pictures)
            for i, pictures in enumerate(itertools.islice(drawn, pairs))
        )
        write_chunk(root / "pairs", plan, parts[0], made)
        finish_chunks(root / "pairs", plan, parts)
    return plan_job(
        root / "pairs", root / "t", tokenizer, "bench", BalanceConfig(), ["train"], batch_size, 0
    )


@contextmanager
def one_thread(pin: bool) -> Iterator[None]:
    """One thread of torch for a while, and no core but one for it and its helpers."""
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
    name: str, called: str, job: EncodeJob, tokenizer: VQGAN, repeats: int, pin: bool = False
) -> Row:
    """A shard by `encode_shard` beside the same batches that are in memory as pixels."""
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

    def whole() -> None:
        file.unlink(missing_ok=True)
        encode_shard(job, shard, tokenizer)

    with one_thread(pin), torch.inference_mode():
        seconds = medians({"whole": whole, "bare": bare}, repeats)
    return Row.compare(
        name,
        images / seconds["whole"],
        images / seconds["bare"],
        goal="" if pin else SHARE,
        unit="images/s",
        note=f"encode of {images:,} pictures of {side} px beside the bare tokenizer, {called}, in "
        f"batches of {batch}, {'pinned to one core' if pin else 'one thread, one that reads'}; "
        f"medians of {repeats}, turn about",
    )


def executors(job: EncodeJob, factory: TokenizerFactory) -> list[Row]:
    """Workers of one thread beside one process of two threads."""
    rates = {ways: rate(job, factory, *ways) for ways in ((1, 1), (2, 1), (1, 2))}
    note = "executor=processes, the tokenizer that ships, first to last batch; the peer is"
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
    """Images a second of all workers together, without their start."""
    shards = [ShardTask(number, 0) for number in range(len(job.token_manifests))]
    for plan in job.token_manifests:
        file = Path(str(job.output_dir)) / plan.split / plan.task / plan.shards[0]["file"]
        file.unlink(missing_ok=True)
    told: list[tuple[float, int]] = []

    def report(count: int) -> None:
        told.append((time.perf_counter(), count))

    for _ in Processes(workers=workers, threads=threads).run(job, shards, factory, report):
        pass
    images = sum(count for _, count in told[1:]) * job.token_manifests[0].images_per_example
    return images / (told[-1][0] - told[0][0])
