"""Visual sentences, packed from token shards as they are read.

A sentence is pictures in a row: (input, target) pairs of one task, 2 x pairs x N tokens. What
comes, and in which order, is a function of (seed, epoch) alone; workers and ranks only share it
out between them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from delvm.data.manifest import Manifest, load_manifests
from delvm.data.shards import read_tokens
from delvm.errors import UserError, did_you_mean


@dataclass
class SentencesConfig:
    """Batches of sentences from a root of token shards.

    Attributes:
        path: root, as `delvm encode` writes it.
        pairs_per_sentence: pairs in a sentence; the last one is what prompting asks for.
        weights: task -> share of the sentences; empty = all alike.
        val_pairs: pairs a task that validation uses, always the same ones.
        buffer: pairs a task that are shuffled among themselves; bounds the memory.
    """

    kind: str = "sentences"
    path: str = "outputs/shapes/tokens"
    pairs_per_sentence: int = 4
    weights: dict[str, float] = field(default_factory=dict)
    batch_size: int = 32
    workers: int = 0
    val_pairs: int = 64
    buffer: int = 50_000


def generator(*parts: int | str) -> np.random.Generator:
    """A generator seeded by all of the parts."""
    numbers = [
        part if isinstance(part, int) else int.from_bytes(part.encode(), "little") for part in parts
    ]
    return np.random.default_rng(np.random.SeedSequence(numbers))


class Sentences(IterableDataset[tuple[Tensor, int]]):
    """Training sentences, endless: each is (ids (T,) int64, number of its task).

    Each task's pairs are shuffled anew every time they have all been seen. Tasks take turns by
    their weights, so after n sentences each has had its share of n to within one.
    """

    def __init__(self, config: SentencesConfig, seed: int, rank: int = 0, ranks: int = 1) -> None:
        """Read the manifests.

        Raises:
            UserError: no token shards there, an unknown task in the weights, or no weight at all.
        """
        self.root, self.seed, self.config = Path(config.path), seed, config
        self.rank, self.ranks = rank, ranks
        self.manifests = load_manifests(self.root, "train", "tokens")
        self.tasks = sorted(self.manifests)
        self.shares = shares(config.weights, self.tasks)
        for task in self.shares:
            if (count := self.manifests[task].count) < config.pairs_per_sentence:
                raise UserError(
                    f"task '{task}' has {count} pairs, a sentence {config.pairs_per_sentence}: "
                    f"set data.pairs_per_sentence={count}"
                )

    @property
    def geometry(self) -> Manifest:
        """Any of the manifests: all agree on vocabulary and tokens a picture."""
        return next(iter(self.manifests.values()))

    def __len__(self) -> int:
        """Sentences in which each pair would come once."""
        pairs = sum(self.manifests[task].count for task in self.shares)
        return max(1, pairs // self.config.pairs_per_sentence)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        mine = self.rank * workers + (worker.id if worker else 0)
        for number, item in enumerate(self._all()):
            if number % (self.ranks * workers) == mine:
                yield item

    def _all(self) -> Iterator[tuple[Tensor, int]]:
        streams = {task: self._task(task) for task in self.shares}
        for task in turns(self.shares):
            yield next(streams[task]), self.tasks.index(task)

    def _task(self, task: str) -> Iterator[Tensor]:
        """Sentences (T,) of one task, endless."""
        size, epoch, rest = self.config.pairs_per_sentence, 0, None
        while True:
            for pairs in self._shuffled(task, epoch):
                rest = pairs if rest is None else np.concatenate((rest, pairs))
                whole = len(rest) - len(rest) % size
                for sentence in rest[:whole].reshape(-1, size * rest.shape[1] * rest.shape[2]):
                    yield torch.from_numpy(sentence.astype(np.int64))
                rest = rest[whole:]
            epoch += 1

    def _shuffled(self, task: str, epoch: int) -> Iterator[np.ndarray]:
        """A task's pairs (n, 2, N) uint16, once each, in random order within the buffer."""
        rng = generator(self.seed, epoch, task)
        held: list[np.ndarray] = []
        count = 0
        for record in read_tokens(self.root, "train", task):
            held.append(record)
            count += len(record)
            if count >= self.config.buffer:
                joined = rng.permutation(np.concatenate(held))
                yield joined[: count // 2]
                held, count = [joined[count // 2 :]], count - count // 2
        if held:
            yield rng.permutation(np.concatenate(held))


def shares(weights: dict[str, float], tasks: list[str]) -> dict[str, float]:
    """Share of each task, summing to 1; tasks of weight 0 are left out.

    Raises:
        UserError: a weight for a task that has no shards, a negative one, or none above 0.
    """
    for task, weight in weights.items():
        if task not in tasks:
            raise UserError(f"data.weights.{task}: no such task; {did_you_mean(task, tasks)}")
        if weight < 0:
            raise UserError(f"data.weights.{task}={weight} is negative: set it to 0 or more")
    chosen = {t: w for t, w in weights.items() if w > 0} if weights else dict.fromkeys(tasks, 1.0)
    if not chosen:
        raise UserError("data.weights are all 0: give at least one task a weight above 0")
    total = sum(chosen.values())
    return {task: weight / total for task, weight in chosen.items()}


def turns(shares: dict[str, float]) -> Iterator[str]:
    """Whose turn it is, endlessly: always the task that lags furthest behind its share."""
    credit = dict.fromkeys(shares, 0.0)
    while True:
        for task, share in shares.items():
            credit[task] += share
        task = max(credit, key=lambda t: credit[t])
        credit[task] -= 1.0
        yield task


def validation_sentences(config: SentencesConfig) -> tuple[Tensor, Tensor, list[str]]:
    """The fixed validation sentences.

    Returns:
        ids (S, T) int64, task numbers (S,), and the tasks' names by number: trained and
        held-out ones.

    Raises:
        UserError: no token shards there.
    """
    root, size = Path(config.path), config.pairs_per_sentence
    tasks = sorted(load_manifests(root, "val", "tokens"))
    ids, numbers = [], []
    for number, task in enumerate(tasks):
        pairs = np.concatenate(list(read_tokens(root, "val", task)))[: config.val_pairs]
        whole = pairs[: len(pairs) // size * size]
        ids.append(whole.reshape(-1, size * pairs.shape[1] * pairs.shape[2]).astype(np.int64))
        numbers += [number] * len(ids[-1])
    return torch.from_numpy(np.concatenate(ids)), torch.tensor(numbers), tasks
