"""Single pictures from image shards: what a tokenizer is trained on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from delvm import tasks
from delvm.data.augment import augment
from delvm.data.datasets.sampler import WINDOW, Shuffle, Turns, shape
from delvm.data.shards.io import read_examples
from delvm.data.shards.manifest import load_manifests
from delvm.data.shards.random_access import OPEN_SHARDS, PictureAccess
from delvm.data.types import Example
from delvm.storage import as_path


@dataclass
class PicturesConfig:
    """Batches of pictures from a root of image shards.

    Attributes:
        path: root, as `delvm prepare` writes it; a folder, or a URL that fsspec knows.
        val_pairs: examples a task that validation uses, always the same ones.
        window: shards of a task among whose pictures is shuffled.
    """

    kind: str = "pixels"
    path: str = "outputs/shapes/pairs"
    batch_size: int = 32
    workers: int = 0
    val_pairs: int = 16
    window: int = WINDOW


class Pictures(Dataset[dict[str, Any]]):
    """Training pictures, endless, every task alike; indexed by whole batches of their numbers.

    A batch is {"pixels": (B, 3, H, H) uint8, "until": number of the last picture + 1}. From the
    second time a picture is met it comes in new geometry.
    """

    def __init__(self, config: PicturesConfig, seed: int) -> None:
        """Read the manifests.

        Raises:
            UserError: no image shards there.
        """
        self.root, self.seed, self.config = as_path(config.path), seed, config
        self.manifests = load_manifests(self.root, "train", "pairs")
        self.tasks = sorted(self.manifests)
        self.turns = Turns(dict.fromkeys(self.tasks, 1 / len(self.tasks)))
        chosen = [self.manifests[task] for task in self.tasks]
        self.access = [PictureAccess(self.root, m, OPEN_SHARDS // len(chosen)) for m in chosen]
        self.shuffles = [
            Shuffle(
                m.task, [m.pictures * shard["count"] for shard in m.shards], seed, config.window
            )
            for m in chosen
        ]

    @property
    def image_size(self) -> int:
        """Side of the pictures, H."""
        return next(iter(self.manifests.values())).image_size

    @property
    def order(self) -> dict[str, Any]:
        """All that the order depends on: a run resumes only where it is the same."""
        return {
            "seed": self.seed,
            "window": self.config.window,
            "shards": {task: shape(self.manifests[task]) for task in self.tasks},
        }

    def mixture(self, until: int) -> dict[str, float]:
        """Share of each task among the pictures before this one."""
        counts = self.turns.counts(until) / max(1, until)
        return dict(zip(self.tasks, counts.tolist(), strict=True))

    def places(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """Where these pictures (B,) lie: {"task", "shard", "place"}."""
        found: list[dict[str, Any]] = []
        owners, places = self.turns(numbers)
        for task, at in zip(owners.tolist(), places, strict=True):
            shards, inside = self.shuffles[task](at[None])
            k = self.manifests[self.tasks[task]].pictures
            found += self.access[task].named(shards, inside // k)
        return found

    def __getitem__(self, numbers: np.ndarray) -> dict[str, Any]:
        """The batch of the pictures with these numbers (B,)."""
        pixels = np.empty((len(numbers), self.image_size, self.image_size, 3), np.uint8)
        owners, places = self.turns(numbers)
        for task in np.unique(owners):
            mine = np.flatnonzero(owners == task)
            shuffle = self.shuffles[task]
            found = zip(*shuffle(places[mine]), places[mine] // shuffle.count, strict=True)
            for row, (shard, at, copy) in zip(mine, found, strict=True):
                pixels[row] = self._picture(int(task), int(shard), int(at), int(copy))
        return {
            "pixels": torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            "until": int(numbers[-1]) + 1,
        }

    def _picture(self, task: int, shard: int, at: int, copy: int) -> np.ndarray:
        """Picture (H, H, 3) uint8 of one example, in the geometry of its copy."""
        name = self.tasks[task]
        example, picture = divmod(at, self.manifests[name].pictures)
        key, pixels = self.access[task].read(shard, example, picture)
        alone = Example(key, name, (pixels,))
        return augment(alone, self.seed, copy, flip=tasks.of(name).flips).input


def validation_pictures(config: PicturesConfig) -> Tensor:
    """The fixed validation pictures, (M, 3, H, H) uint8, of every task."""
    pictures: list[np.ndarray] = []
    root = as_path(config.path)
    for task in sorted(load_manifests(root, "val", "pairs")):
        for number, example in enumerate(read_examples(root, "val", task)):
            if number == config.val_pairs:
                break
            pictures += example.pictures
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
