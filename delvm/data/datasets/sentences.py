"""Visual sentences, packed from token shards as they are read.

A sentence is pictures in a row, all of one task: (input, target) pairs, clips, tuples, or single
pictures that have nothing to do with each other. What comes, and in which order, is a function of
the seed alone (`delvm.data.datasets.sampler`); workers and ranks only share it out between them.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from delvm.data.datasets.sampler import WINDOW, Shuffle, Turns, shape, shares
from delvm.data.shards.io import read_tokens
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.data.shards.random_access import OPEN_SHARDS, TokenAccess
from delvm.errors import UserError
from delvm.storage import StoragePath, as_path


@dataclass
class SentencesConfig:
    """Batches of sentences from a root of token shards.

    Attributes:
        path: root, as `delvm encode` writes it; a folder, or a URL that fsspec knows.
        pairs_per_sentence: pairs in a sentence; the last one is what prompting asks for.
        images_per_sentence: the same in pictures, for tasks whose examples are no pairs; None =
            twice the pairs.
        weights: task -> share of the sentences; empty = all alike.
        val_pairs: examples a task that validation uses, always the same ones.
        window: shards of a task among whose examples is shuffled.
    """

    kind: str = "sentences"
    path: str = "outputs/shapes/tokens"
    pairs_per_sentence: int = 4
    images_per_sentence: int | None = None
    weights: dict[str, float] = field(default_factory=dict)
    batch_size: int = 32
    workers: int = 0
    val_pairs: int = 64
    window: int = WINDOW

    @property
    def images(self) -> int:
        """Pictures in a sentence."""
        return self.images_per_sentence or 2 * self.pairs_per_sentence


class Sentences(Dataset[dict[str, Any]]):
    """Training sentences, endless; indexed by whole batches of sentence numbers.

    A batch is {"ids": (B, T) int64, "task": (B,) number of each sentence's task, "pictures": (B,)
    pictures an example of that task, "until": number of the last sentence + 1}.
    """

    def __init__(self, config: SentencesConfig, seed: int) -> None:
        """Read the manifests.

        Raises:
            UserError: no token shards there, an unknown task in the weights, no weight at all, or
                a sentence that does not hold whole examples, or more than there are.
        """
        self.root, self.seed, self.config = as_path(config.path), seed, config
        self.manifests = load_manifests(self.root, "train", "tokens")
        self.tasks = sorted(self.manifests)
        self.shares = shares(config.weights, self.tasks)
        chosen = [self.manifests[task] for task in self.shares]
        self.examples = [examples_per_sentence(config, manifest) for manifest in chosen]
        self.turns = Turns(self.shares)
        self.shuffles = [
            Shuffle(m.task, [shard["count"] for shard in m.shards], seed, config.window)
            for m in chosen
        ]
        self.access = [TokenAccess(self.root, m, OPEN_SHARDS // len(chosen)) for m in chosen]
        # By the number of a task among the chosen ones: its number among all, its pictures.
        self._numbers = np.array([self.tasks.index(task) for task in self.shares])
        self._pictures = np.array([manifest.pictures for manifest in chosen])

    @property
    def geometry(self) -> Manifest:
        """Any of the manifests: all agree on vocabulary and tokens a picture."""
        return next(iter(self.manifests.values()))

    @property
    def epoch(self) -> int:
        """Sentences in which each example of the tasks together would come once."""
        counts = zip(self.shuffles, self.examples, strict=True)
        return max(1, sum(shuffle.count // each for shuffle, each in counts))

    @property
    def order(self) -> dict[str, Any]:
        """All that the order depends on: a run resumes only where it is the same."""
        return {
            "seed": self.seed,
            "images_per_sentence": self.config.images,
            "window": self.config.window,
            "shares": dict(self.shares),
            "shards": {task: shape(self.manifests[task]) for task in self.shares},
        }

    def mixture(self, until: int) -> dict[str, float]:
        """Share of each task among the sentences before this one."""
        counts = self.turns.counts(until) / max(1, until)
        return dict(zip(self.shares, counts.tolist(), strict=True))

    def places(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """Where each example of these sentences (B,) lies: {"task", "shard", "place"}."""
        owners, ranks = self.turns(numbers)
        found: list[dict[str, Any]] = []
        for task, rank in zip(owners.tolist(), ranks.tolist(), strict=True):
            size = self.examples[task]
            found += self.access[task].named(*self.shuffles[task](rank * size + np.arange(size)))
        return found

    def __getitem__(self, numbers: np.ndarray) -> dict[str, Any]:
        """The batch of the sentences with these numbers (B,)."""
        assert self.geometry.tokens_per_image is not None
        length = self.config.images * self.geometry.tokens_per_image
        ids = np.empty((len(numbers), length), np.uint16)
        owners, ranks = self.turns(numbers)
        for task in np.unique(owners):
            mine, size = owners == task, self.examples[task]
            places = (ranks[mine, None] * size + np.arange(size)).reshape(-1)
            examples = np.empty((len(places), length // size), np.uint16)
            self.access[task].read(*self.shuffles[task](places), examples)
            ids[mine] = examples.reshape(-1, length)
        return {
            # torch's uint16 can be stacked but not looked up with: cast here, in the worker.
            "ids": torch.from_numpy(ids.astype(np.int64)),
            "task": torch.from_numpy(self._numbers[owners]),
            "pictures": torch.from_numpy(self._pictures[owners]),
            "until": int(numbers[-1]) + 1,
        }


def examples_per_sentence(config: SentencesConfig, manifest: Manifest) -> int:
    """Whole examples of a task in a sentence.

    Raises:
        UserError: The sentence is no multiple of an example, or longer than all examples.
    """
    k, task = manifest.pictures, manifest.task
    if config.images % k:
        wanted = k * max(1, round(config.images / k))
        raise UserError(
            f"an example of task '{task}' is {k} pictures, a sentence {config.images}: set "
            f"data.images_per_sentence={wanted}, or data.weights without '{task}'"
        )
    if manifest.count < config.images // k:
        what = "pairs" if k == 2 else "examples"
        key = "data.pairs_per_sentence" if k == 2 else "data.images_per_sentence"
        most = manifest.count if k == 2 else manifest.count * k
        raise UserError(
            f"task '{task}' has {manifest.count} {what}, a sentence {config.images // k}: "
            f"set {key}={most}"
        )
    return config.images // k


@dataclass(frozen=True)
class Validation:
    """The fixed validation sentences.

    Attributes:
        ids: (S, T) int64.
        task: (S,) number of each sentence's task in `tasks`.
        pictures: (S,) pictures an example of it.
        tasks: trained and held-out ones.
    """

    ids: Tensor
    task: Tensor
    pictures: Tensor
    tasks: list[str]


def validation_sentences(config: SentencesConfig) -> Validation:
    """The first examples of each task of the split "val", packed in order.

    What does not fill a task's last sentence is left out.

    Raises:
        UserError: no token shards there, or a sentence that does not hold whole examples.
    """
    root = as_path(config.path)
    manifests = load_manifests(root, "val", "tokens")
    tasks = sorted(manifests)
    ids, numbers, pictures = [], [], []
    for number, task in enumerate(tasks):
        size = examples_per_sentence(config, manifests[task])
        examples = _first(root, manifests[task], max(size, config.val_pairs))
        ids.append(examples[: len(examples) // size * size].reshape(-1, size * examples.shape[1]))
        numbers += [number] * len(ids[-1])
        pictures += [manifests[task].pictures] * len(ids[-1])
    return Validation(
        torch.from_numpy(np.concatenate(ids).astype(np.int64)),
        torch.tensor(numbers),
        torch.tensor(pictures),
        tasks,
    )


def _first(root: StoragePath, manifest: Manifest, count: int) -> np.ndarray:
    """The first examples (n <= count, k * N) of a task."""
    found: list[np.ndarray] = []
    for record in read_tokens(root, manifest.split, manifest.task, manifest):
        found.append(record.reshape(len(record), -1))
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count]
