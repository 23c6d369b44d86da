"""Loading sentences: tokens/s and CPU time compared with InternLM's JSON lines, and memory.

A loading step is what a worker does per batch: look up its sentences in the shuffled order, read
their pairs, pack and cast them. The peer reads the same pairs in shuffled order from a .bin by the
offsets in its .bin.meta, as InternLM's data set does, and packs them the same way.
"""

import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from delvm.data.datasets.sampler import ResumableBatchSampler
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, reader, writer
from delvm.interop.token_files import write_internlm
from delvm.models.token_space import TokenSpace
from experiments.bench.harness import Row

N, V, PAIRS, BATCH = 256, 8192, 4, 16  # tokens per image, codes, pairs per sentence, sentences
SMALL, LARGE = 16_384, 163_840  # pairs per corpus: 8 and 84 million tokens
STEPS = 150


def rows() -> list[Row]:
    """Rate of one worker, CPU time compared with JSON lines, and memory at 1x and 10x the data."""
    with tempfile.TemporaryDirectory() as tmp:
        small, large, lines = (Path(tmp) / name for name in ("small", "large", "train.bin"))
        write_shards(small, SMALL)
        write_shards(large, LARGE)
        samples = (
            pair.reshape(-1)
            for record in reader.read_tokens(small, "train", "pose")
            for pair in record
        )
        write_internlm(lines, samples, TokenSpace(V))
        return [*rates(small, lines), memory(small, large)]


def write_shards(root: Path, pairs: int) -> None:
    """Write token shards of random ids."""
    codebooks.write_codebook(root, torch.zeros(V, 2), "f" * 16)
    plan = manifest.plan_tokens(
        manifest.plan_images("train", "pose", source="s", seed=0, image_size=256),
        pairs, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16,
    )  # fmt: skip

    def ids(start: int, stop: int) -> list[np.ndarray]:
        return [np.random.default_rng(start).integers(0, V, (stop - start, 2, N))]

    writer.write_tokens(root, plan, ids)


def open_dataset(root: Path) -> SentenceDataset:
    """The training data set over these shards."""
    return SentenceDataset(SentencesConfig(path=str(root), pairs_per_sentence=PAIRS), seed=0)


def rates(root: Path, lines: Path) -> list[Row]:
    """Tokens/s of one worker, and CPU nanoseconds per token compared with the peer's."""
    data, order = open_dataset(root), np.random.default_rng(0).permutation(SMALL)
    tokens = BATCH * PAIRS * 2 * N
    meta = np.load(lines.with_name("train.bin.meta"))

    def ours(step: int) -> None:
        data[np.arange(step * BATCH, (step + 1) * BATCH)]

    def theirs(step: int) -> None:
        indices = order[np.arange(step * BATCH * PAIRS, (step + 1) * BATCH * PAIRS) % SMALL]
        with lines.open("rb") as file:
            samples = []
            for offset, _ in meta[indices].tolist():
                file.seek(offset)
                samples.append(json.loads(file.readline())["tokens"])
        torch.from_numpy(np.array(samples, np.int64).reshape(BATCH, -1))

    wall, cpu = time_per_step(ours, STEPS)
    _, cpu_theirs = time_per_step(theirs, STEPS // 10)
    loader = iter(DataLoader(data, None, sampler=ResumableBatchSampler(0, BATCH), num_workers=1))
    next(loader)
    piped, _ = time_per_step(lambda step: next(loader), STEPS)
    note = f"sentences of {PAIRS} pairs of {N}-token images, batches of {BATCH}"
    return [
        Row("loading_rate", tokens / wall / 1e6, None, None, "ours >= 5", "million tokens/s",
            f"{note}, in one process, page cache warm"),
        Row("loading_rate_of_a_worker", tokens / piped / 1e6, None, None, "ours >= 5",
            "million tokens/s", f"{note}, through a DataLoader with one worker"),
        Row.compare("loading_cpu", cpu / tokens * 1e9, cpu_theirs / tokens * 1e9,
                    goal="ratio <= 0.1", unit="CPU ns/token",
                    note=f"{note}, vs. JSON lines read by their .meta and packed the same way"),
    ]  # fmt: skip


def time_per_step(step: Callable[[int], object], steps: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds of this process) per step, after a warm-up."""
    step(0)
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(1, steps + 1):
        step(number)
    return (time.perf_counter() - wall) / steps, (time.process_time() - cpu) / steps


def memory(small: Path, large: Path) -> Row:
    """Memory that loading adds to a process, for both corpora."""
    added = {}
    for name, root in (("small", small), ("large", large)):
        # In a new process, because a peak never goes down.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            added[name] = pool.apply(_added_memory, (root,))
    return Row.compare(
        "loading_memory",
        added["large"],
        added["small"],
        goal="ratio <= 1.5",
        unit="MiB",
        note=f"memory that an epoch of loading adds to the peak of a process, with {LARGE:,} pairs "
        f"vs. {SMALL:,}",
    )


def _added_memory(root: Path) -> float:
    """Memory that reading every sentence once adds to the peak of this process, in MiB."""
    torch.from_numpy(np.zeros(BATCH * PAIRS * 2 * N, np.int64))
    before = _peak_memory()
    data = open_dataset(root)
    for start in range(0, data.sentences_per_epoch, BATCH):
        data[np.arange(start, start + BATCH)]
    return _peak_memory() - before


def _peak_memory() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
