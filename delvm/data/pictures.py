"""Single pictures from pair shards: what a tokenizer is trained on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from delvm import tasks
from delvm.data.augment import augment
from delvm.data.manifest import load_manifests
from delvm.data.sentences import generator, turns
from delvm.data.shards import read_examples


@dataclass
class PicturesConfig:
    """Batches of pictures from a root of pair shards.

    Attributes:
        path: root, as `delvm prepare` writes it.
        val_pairs: pairs a task that validation uses, always the same ones.
        buffer: pictures that are shuffled among themselves; bounds the memory.
    """

    kind: str = "pixels"
    path: str = "outputs/shapes/pairs"
    batch_size: int = 32
    workers: int = 0
    val_pairs: int = 16
    buffer: int = 2000


class Pictures(IterableDataset[Tensor]):
    """Training pictures, endless, every task alike: pixels (3, H, H) uint8.

    From the second time an example is met it comes in new geometry.
    """

    def __init__(self, config: PicturesConfig, seed: int, rank: int = 0, ranks: int = 1) -> None:
        """Read the manifests.

        Raises:
            UserError: no pair shards there.
        """
        self.root, self.seed, self.config = Path(config.path), seed, config
        self.rank, self.ranks = rank, ranks
        self.manifests = load_manifests(self.root, "train", "pairs")

    @property
    def image_size(self) -> int:
        """Side of the pictures, H."""
        return next(iter(self.manifests.values())).image_size

    def __len__(self) -> int:
        """Pictures in which each would come once."""
        return sum(m.pictures * m.count for m in self.manifests.values())

    def __iter__(self) -> Iterator[Tensor]:
        worker = get_worker_info()
        workers = worker.num_workers if worker else 1
        mine = self.rank * workers + (worker.id if worker else 0)
        for number, picture in enumerate(self._shuffled()):
            if number % (self.ranks * workers) == mine:
                yield torch.from_numpy(picture.transpose(2, 0, 1).copy())

    def _shuffled(self) -> Iterator[np.ndarray]:
        rng = generator(self.seed)
        held: list[np.ndarray] = []
        for picture in self._mixed():
            if len(held) < self.config.buffer:
                held.append(picture)
                continue
            place = int(rng.integers(len(held)))
            yield held[place]
            held[place] = picture

    def _mixed(self) -> Iterator[np.ndarray]:
        streams = {task: self._task(task) for task in sorted(self.manifests)}
        for task in turns(dict.fromkeys(streams, 1 / len(streams))):
            for _ in range(self.manifests[task].pictures):
                yield next(streams[task])

    def _task(self, task: str) -> Iterator[np.ndarray]:
        flip, copy = tasks.of(task).flips, 0
        while True:
            for example in read_examples(self.root, "train", task):
                yield from augment(example, self.seed, copy, flip=flip).pictures
            copy += 1


def validation_pictures(config: PicturesConfig) -> Tensor:
    """The fixed validation pictures, (M, 3, H, H) uint8, of every task."""
    pictures: list[np.ndarray] = []
    for task in sorted(load_manifests(Path(config.path), "val", "pairs")):
        for number, example in enumerate(read_examples(Path(config.path), "val", task)):
            if number == config.val_pairs:
                break
            pictures += example.pictures
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
