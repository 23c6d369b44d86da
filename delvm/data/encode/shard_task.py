"""The unit of work of `delvm encode`: one token shard, which any process may write.

An `EncodeJob` holds everything needed besides the tokenizer, and can be pickled. `encode_shard`
writes one shard of it. The shard's bytes depend on the job and the shard's index alone, so they are
the same whichever process writes it, in any order and however often.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from delvm.data.augment import BalanceMode, Geometry, Jitter, augment
from delvm.data.image_io import to_tensor, upload
from delvm.data.shards.fetch import FetchError
from delvm.data.shards.manifest import Manifest
from delvm.data.shards.reader import iter_lazy
from delvm.data.shards.replacement import build_dir
from delvm.data.shards.writer import write_token_shard
from delvm.data.types import Example
from delvm.storage import StoragePath

PREFETCH_BATCHES = 2
MAX_DECODE_THREADS = 8

S = TypeVar("S")
T = TypeVar("T")
LazyExample = Callable[[], Example]
Report = Callable[[int], None]  # called with the number of further examples that are encoded


class Tokenizer(Protocol):
    """What `encode` needs of a tokenizer; `delvm.models.vqgan.VQGAN` has it."""

    bf16: bool  # whether it computes in bfloat16

    @property
    def config(self) -> Any:
        """With `resolution` and `tokens_per_image`."""
        ...

    @property
    def codebook(self) -> Tensor:
        """Code vectors (V, d)."""
        ...

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [0, 1] to token ids (B, N) int64."""
        ...


@dataclass(frozen=True)
class EncodeJob:
    """What is to be encoded.

    Attributes:
        input_dir, output_dir: roots of the image shards and of the token shards.
        image_manifests: of the existing image shards, one per split and task.
        token_manifests: of the token shards to be written, one for each of `image_manifests`.
        geometries: ranges of augmentation, for each of them. Workers do not look them up: a
            task may be registered only in the process that planned the job.
        batch_size: examples per batch.
    """

    input_dir: StoragePath
    output_dir: StoragePath
    image_manifests: tuple[Manifest, ...]
    token_manifests: tuple[Manifest, ...]
    geometries: tuple[Geometry, ...]
    batch_size: int

    def count(self, shard: "ShardTask") -> int:
        """Number of examples in a shard."""
        count: int = self.token_manifests[shard.manifest].shards[shard.index]["count"]
        return count

    def title(self, shard: "ShardTask") -> str:
        """SPLIT/TASK/FILE of a shard."""
        manifest = self.token_manifests[shard.manifest]
        return f"{manifest.split}/{manifest.task}/{manifest.shards[shard.index]['file']}"


@dataclass(frozen=True)
class ShardTask:
    """One token shard of a job.

    Attributes:
        manifest: index of its manifest in the job.
        index: index of the shard in that manifest.
    """

    manifest: int
    index: int


@dataclass(frozen=True)
class ShardResult:
    """A shard that has been written, or cannot be.

    Attributes:
        shard: which one.
        seconds: time it took.
        unread: why it could not be written: an image shard that could not be fetched.
    """

    shard: ShardTask
    seconds: float
    unread: FetchError | None = None


def encode_shard(
    job: EncodeJob, shard: ShardTask, tokenizer: Tokenizer, report: Report = lambda count: None
) -> ShardResult:
    """Write one token shard unless it exists; other threads read and decode the images.

    Args:
        job: The job.
        shard: Which of its shards to write.
        tokenizer: On the device to encode on.
        report: Called after each batch.

    Raises:
        UserError: The image shards are damaged; of a store, the result has the reason instead.
        OSError: The shard cannot be written.
    """
    start = time.perf_counter()
    manifest, images = job.token_manifests[shard.manifest], job.image_manifests[shard.manifest]
    file = manifest.shards[shard.index]["file"]
    folder = build_dir(job.output_dir / manifest.split / manifest.task)
    if (folder / file).exists():
        report(job.count(shard))
        return ShardResult(shard, time.perf_counter() - start)

    def ids(first: int, last: int) -> Iterator[npt.NDArray[np.int64]]:
        geometry = job.geometries[shard.manifest]
        examples = balanced_examples(job.input_dir, manifest, images, first, last, geometry)
        batches = _batches(examples, job.batch_size)
        for batch in decode_batches(batches, _decode_threads(tokenizer)):
            yield _encode_batch(batch, tokenizer)
            report(len(batch))

    unread = None
    try:
        with torch.inference_mode():
            write_token_shard(job.output_dir, manifest, shard.index, ids)
    except FetchError as error:
        unread = error
    return ShardResult(shard, time.perf_counter() - start, unread)


def _batches(examples: Iterator[LazyExample], size: int) -> Iterator[list[LazyExample]]:
    while batch := list(itertools.islice(examples, size)):
        yield batch


def _decode_threads(tokenizer: Tokenizer) -> int:
    """Threads that decode images: a GPU encodes faster than one decodes, a CPU slower."""
    on_gpu = tokenizer.codebook.device.type == "cuda"
    return min(MAX_DECODE_THREADS, torch.get_num_threads()) if on_gpu else 1


def _encode_batch(batch: list[Example], tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """Token ids (n, k, N) of n examples of k images each."""
    pixels = to_tensor([image for example in batch for image in example.images])
    ids = tokenizer.encode(upload(pixels, tokenizer.codebook.device))  # (n k, N)
    array: npt.NDArray[np.int64] = ids.reshape(len(batch), len(batch[0].images), -1).cpu().numpy()
    return array


def decode_batches(
    batches: Iterator[list[LazyExample]], num_threads: int
) -> Iterator[list[Example]]:
    """The decoded examples of each batch in order, prefetched by one or several threads."""
    if num_threads == 1:
        return prefetch(map(_decode, batches))
    return parallel_map(_decode, prefetch(batches), num_threads)


def _decode(batch: list[LazyExample]) -> list[Example]:
    return [example() for example in batch]


def prefetch(items: Iterator[T], count: int = PREFETCH_BATCHES) -> Iterator[T]:
    """The same items, up to `count` of them computed ahead by one thread."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        pending = deque(pool.submit(next, items, end) for _ in range(count))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(pool.submit(next, items, end))
                yield item
        finally:
            for future in pending:
                future.cancel()


def parallel_map(function: Callable[[S], T], items: Iterator[S], num_threads: int) -> Iterator[T]:
    """function(item) of each item in order; threads are up to `num_threads` + 1 items ahead."""
    with ThreadPoolExecutor(num_threads) as pool:
        pending = deque(
            pool.submit(function, item) for item in itertools.islice(items, num_threads + 1)
        )
        try:
            while pending:
                result = pending.popleft().result()
                pending.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
                yield result
        finally:
            for future in pending:
                future.cancel()


def balanced_examples(
    input_dir: StoragePath,
    manifest: Manifest,
    images: Manifest,
    start: int,
    stop: int,
    geometry: Geometry,
) -> Iterator[LazyExample]:
    """Items `start` to `stop` of a balanced task: item i is copy i // count of example i % count.

    Each is yielded as a function that decodes the example and augments the copy.

    Args:
        input_dir: Root of the image shards.
        manifest: Of the token shards to be written, which records how the task is balanced.
        images: Of the image shards of that split and task.
        start, stop: Range of items.
        geometry: Ranges of augmentation.
    """
    count = images.count
    settings = manifest.balance or {}
    augmented = settings.get("mode") == BalanceMode.augment.value
    jitter = Jitter(settings.get("jitter", "none"))
    while start < stop:
        aug_index, first = divmod(start, count)
        last = min(count, first + stop - start)
        for example in iter_lazy(input_dir, manifest.split, manifest.task, first, images, last):
            if augmented:
                yield partial(
                    _augmented,
                    example,
                    settings["seed"],
                    aug_index,
                    geometry=geometry,
                    jitter=jitter,
                )
            else:
                yield example
        start += last - first


def _augmented(
    example: LazyExample, seed: int, aug_index: int, *, geometry: Geometry, jitter: Jitter
) -> Example:
    return augment(example(), seed, aug_index, geometry=geometry, jitter=jitter)
