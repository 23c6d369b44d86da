"""The unit of work of `delvm encode`: one shard of tokens, which any process may write.

A `Job` says all that there is to know beside the tokenizer, and pickles. `encode_piece` writes one
shard of it: a function of the job and the shard's number alone, so the bytes are the same whoever
calls it, in which order and how often.
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
import torch
from torch import Tensor

from delvm import tasks
from delvm.data.augment import BalanceMode, Jitter, augment
from delvm.data.image_io import to_tensor
from delvm.data.shards.manifest import Manifest
from delvm.data.shards.reader import iter_lazy
from delvm.data.shards.writer import write_token_shard
from delvm.data.types import Example
from delvm.storage import StoragePath

AHEAD = 2  # batches that are read before they are asked for
MOST_READERS = 8

S = TypeVar("S")
T = TypeVar("T")
Lazy = Callable[[], Example]
Report = Callable[[int], None]  # told how many more examples are encoded


class Tokenizer(Protocol):
    """What `encode` needs of a tokenizer; `delvm.models.vqgan.VQGAN` is one."""

    bf16: bool  # whether it computes in bfloat16

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


@dataclass(frozen=True)
class Job:
    """What is to be encoded.

    Attributes:
        input, output: Roots of the pairs and of the tokens.
        pairs: What there is, a manifest a split and task.
        plans: What it becomes, one for each of `pairs`.
        batch_size: Examples a batch.
    """

    input: StoragePath
    output: StoragePath
    pairs: tuple[Manifest, ...]
    plans: tuple[Manifest, ...]
    batch_size: int

    def count(self, piece: "Piece") -> int:
        """Examples in a piece."""
        count: int = self.plans[piece.plan].shards[piece.number]["count"]
        return count

    def title(self, piece: "Piece") -> str:
        """SPLIT/TASK/FILE of a piece."""
        plan = self.plans[piece.plan]
        return f"{plan.split}/{plan.task}/{plan.shards[piece.number]['file']}"


@dataclass(frozen=True)
class Piece:
    """One shard: the place of its plan in the job, and its number in the plan."""

    plan: int
    number: int


@dataclass(frozen=True)
class Done:
    """A piece that is written, and how long that took."""

    piece: Piece
    seconds: float


def encode_piece(
    job: Job, piece: Piece, tokenizer: Tokenizer, report: Report = lambda count: None
) -> Done:
    """Write one shard, unless it is there; pictures are read and decoded by other threads.

    Args:
        tokenizer: On the device to encode on.
        report: Called after each batch.

    Raises:
        UserError: The pairs are damaged.
        OSError: The shard cannot be written.
    """
    start = time.perf_counter()
    plan, pairs = job.plans[piece.plan], job.pairs[piece.plan]
    if (job.output / plan.split / plan.task / plan.shards[piece.number]["file"]).exists():
        report(job.count(piece))
        return Done(piece, time.perf_counter() - start)

    def ids(first: int, last: int) -> Iterator[np.ndarray]:
        batches = _batches(balanced(job.input, plan, pairs, first, last), job.batch_size)
        for batch in decoded(batches, _readers(tokenizer)):
            yield _encode(batch, tokenizer)
            report(len(batch))

    with torch.inference_mode():
        write_token_shard(job.output, plan, piece.number, ids)
    return Done(piece, time.perf_counter() - start)


def _batches(examples: Iterator[Lazy], size: int) -> Iterator[list[Lazy]]:
    while batch := list(itertools.islice(examples, size)):
        yield batch


def _readers(tokenizer: Tokenizer) -> int:
    """Threads that decode pictures: a GPU is faster than one, a processor slower."""
    on_gpu = tokenizer.codebook.device.type == "cuda"
    return min(MOST_READERS, torch.get_num_threads()) if on_gpu else 1


def _encode(batch: list[Example], tokenizer: Tokenizer) -> np.ndarray:
    """Ids (n, k, N) of n examples of k pictures."""
    pixels = to_tensor([picture for example in batch for picture in example.images])
    ids = tokenizer.encode(pixels.to(tokenizer.codebook.device))  # (n k, N)
    return ids.reshape(len(batch), len(batch[0].images), -1).cpu().numpy()


def decoded(batches: Iterator[list[Lazy]], readers: int) -> Iterator[list[Example]]:
    """The examples of each batch in order, read ahead by one thread or decoded by many."""
    if readers == 1:
        return ahead(map(_decode, batches))
    return spread(_decode, ahead(batches), readers)


def _decode(batch: list[Lazy]) -> list[Example]:
    return [example() for example in batch]


def ahead(items: Iterator[T], count: int = AHEAD) -> Iterator[T]:
    """The same items, up to `count` of them made by a thread before they are asked for."""
    end: Any = object()
    with ThreadPoolExecutor(1) as pool:
        made = deque(pool.submit(next, items, end) for _ in range(count))
        try:
            while (item := made.popleft().result()) is not end:
                made.append(pool.submit(next, items, end))
                yield item
        finally:
            for future in made:
                future.cancel()


def spread(make: Callable[[S], T], items: Iterator[S], threads: int) -> Iterator[T]:
    """make(item) of each item in order, by threads that are up to `threads` + 1 items ahead."""
    with ThreadPoolExecutor(threads) as pool:
        made = deque(pool.submit(make, item) for item in itertools.islice(items, threads + 1))
        try:
            while made:
                result = made.popleft().result()
                made.extend(pool.submit(make, item) for item in itertools.islice(items, 1))
                yield result
        finally:
            for future in made:
                future.cancel()


def balanced(
    root: StoragePath, plan: Manifest, pairs: Manifest, start: int, stop: int
) -> Iterator[Lazy]:
    """Items start to stop of a balanced task: item i is pair i % count, copy i // count.

    Each comes as a call that decodes it, and makes the copy.

    Args:
        root: Root of the pairs.
        plan: Of the tokens to be made, which says how the task is balanced.
        pairs: What the root holds of that split and task.
    """
    count = pairs.count
    settings = plan.balance or {}
    augmented = settings.get("mode") == BalanceMode.augment.value
    flip = augmented and tasks.of(plan.task).flips
    jitter = Jitter(settings.get("jitter", "none"))
    while start < stop:
        copy, first = divmod(start, count)
        last = min(count, first + stop - start)
        examples = iter_lazy(root, plan.split, plan.task, first, pairs)
        for example in itertools.islice(examples, last - first):
            if augmented:
                yield partial(_copied, example, settings["seed"], copy, flip=flip, jitter=jitter)
            else:
                yield example
        start += last - first


def _copied(example: Lazy, seed: int, copy: int, *, flip: bool, jitter: Jitter) -> Example:
    return augment(example(), seed, copy, flip=flip, jitter=jitter)
