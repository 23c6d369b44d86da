"""Loading sentences: tokens/s and CPU time compared with InternLM's JSON lines, and memory.

A loading step is what a worker does per batch: look up its sentences in the shuffled order, read
their pairs, pack and cast them. The peer reads the same pairs in shuffled order from a .bin by the
offsets in its .bin.meta, as InternLM's data set does, and packs them the same way.

Streams read complete shards in sequence, from disk or from an HTTP server on loopback. Streamed
images are compared with decoding the same files from memory, one after the other.
"""

import itertools
import json
import multiprocessing
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from delvm.data.datasets.sampler import ResumableBatchSampler
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.datasets.streaming_images import StreamingImages, StreamingImagesConfig
from delvm.data.datasets.streaming_sentences import StreamingSentences, StreamingSentencesConfig
from delvm.data.prepare.chunks import finish_chunks, start_chunks, write_chunk
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, reader, writer
from delvm.data.sources.shapes.photographs import packaged_pool
from delvm.data.types import Example, split_into_chunks
from delvm.interop.token_files import write_internlm
from delvm.models.token_space import TokenSpace
from experiments.bench.harness import Row, medians

N, V, PAIRS, BATCH = 256, 8192, 4, 16  # tokens per image, codes, pairs per sentence, sentences
SMALL, LARGE = 16_384, 163_840  # pairs per corpus: 8 and 84 million tokens
STEPS = 150
SIDE, IMAGE_PAIRS, IMAGE_BATCH = 256, 1024, 16  # of image shards: pixels, pairs, images


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
        write_images(Path(tmp) / "images", IMAGE_PAIRS)
        return [
            *rates(small, lines),
            memory(small, large),
            *streaming_rates(large),
            streamed_images(Path(tmp) / "images"),
        ]


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


def streaming_rates(root: Path) -> list[Row]:
    """Tokens/s of one worker that streams an epoch from disk, and from a server on loopback."""
    note = f"an epoch of {LARGE * 2 * N:,} tokens, sentences of {PAIRS} pairs, batches of {BATCH}"
    in_process = rate(StreamingSentences(streaming_config(str(root), 0), seed=0))
    with serve(root) as url:
        rates = {where: worker_rate(path) for where, path in (("disk", str(root)), ("http", url))}
    found = [("streaming_rate", in_process, "from disk, in one process, page cache warm")]
    found += [
        (f"streaming_rate_{where}", each, f"from {where}, through a DataLoader with one worker")
        for where, each in rates.items()
    ]
    return [
        Row(name, each / 1e6, None, None, "ours >= 5", "million tokens/s", f"{note}, {how}")
        for name, each, how in found
    ]


def streaming_config(path: str, num_workers: int) -> StreamingSentencesConfig:
    """Streamed sentences with the default window."""
    return StreamingSentencesConfig(
        path=path, pairs_per_sentence=PAIRS, batch_size=BATCH, num_workers=num_workers
    )


def worker_rate(path: str) -> float:
    """Tokens/s of a DataLoader with one worker over streamed sentences."""
    data = StreamingSentences(streaming_config(path, 1), seed=0)
    return rate(DataLoader(data, batch_size=None, num_workers=1))


def rate(batches: Iterable[dict[str, Any]]) -> float:
    """Tokens/s over an epoch of the large corpus, after the first batch."""
    stream, steps = iter(batches), LARGE // PAIRS // BATCH
    wall, _ = time_per_step(lambda step: next(stream), steps)
    return BATCH * PAIRS * 2 * N / wall


@contextmanager
def serve(root: Path) -> Iterator[str]:
    """The URL of an HTTP server on loopback, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ports = context.SimpleQueue()
    server = context.Process(target=_serve, args=(str(root), ports), daemon=True)
    server.start()
    try:
        yield f"http://127.0.0.1:{ports.get()}"
    finally:
        server.terminate()
        server.join()


class _QuietHandler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        """Log nothing."""


class _QuietServer(ThreadingHTTPServer):
    def handle_error(self, *args: object) -> None:
        """Ignore that a reader has ended in the middle of a shard."""


def _serve(root: str, ports: Any) -> None:
    handler = partial(_QuietHandler, directory=root)
    with _QuietServer(("127.0.0.1", 0), handler) as server:
        ports.put(server.server_port)
        server.serve_forever()


def write_images(root: Path, pairs: int) -> None:
    """Write image shards of crops of photographs, as `delvm prepare` does."""
    rng = np.random.default_rng(0)
    crops = [packaged_pool("train").crop(rng, SIDE).round().astype(np.uint8) for _ in range(64)]
    plan = manifest.plan_images(
        "train", "pose", source="s", seed=0, image_size=SIDE, shard_size=128
    )
    chunks = split_into_chunks(pairs, pairs)
    start_chunks(root, plan, chunks)
    examples = (Example(f"{i:06d}", "pose", (crops[i % 64], crops[-i % 64])) for i in range(pairs))
    write_chunk(root, plan, chunks[0], examples)
    finish_chunks(root, plan, chunks)


def streamed_images(root: Path, repeats: int = 3) -> Row:
    """Images/s of a stream in its first epoch, compared with decoding the files alone."""
    config = StreamingImagesConfig(path=str(root), batch_size=IMAGE_BATCH)
    data = StreamingImages(config, seed=0)
    plan, stream = data.layout.manifests["pose"], iter(data)
    # All calls together take an epoch, since images are augmented from the second one on.
    batches = 2 * plan.count // IMAGE_BATCH // (repeats + 1)
    path, count = root / "train" / "pose" / plan.shards[0]["file"], plan.shards[0]["count"]
    records = reader.read_image_shard(path, plan, count)
    files = itertools.cycle([file for _, both in records for file in both])

    def streamed() -> None:
        for _ in range(batches):
            next(stream)

    def decoded() -> None:
        for file in itertools.islice(files, batches * IMAGE_BATCH):
            reader.decode_image(file, "image", SIDE)

    seconds = medians({"streamed": streamed, "decoded": decoded}, repeats)
    rates = (batches * IMAGE_BATCH / seconds[name] for name in ("streamed", "decoded"))
    return Row.compare(
        "streaming_images", *rates, goal="ratio >= 0.8", unit="images/s",
        note=f"batches of {IMAGE_BATCH} photographs of {SIDE} px from disk, page cache warm, in "
        "one process, vs. decoding such files from memory",
    )  # fmt: skip


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
