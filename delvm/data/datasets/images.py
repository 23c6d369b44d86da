"""Single images from image shards: what a tokenizer is trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from delvm import tasks
from delvm.data.augment import Geometry, augment
from delvm.data.datasets.sampler import (
    SHUFFLE_WINDOW_SHARDS,
    Int64,
    TaskSchedule,
    WindowedShuffle,
    loader_errors,
    shard_signature,
)
from delvm.data.shards.manifest import Manifest, load_manifests, load_manifests_if_any
from delvm.data.shards.random_access import MAX_OPEN_SHARDS, ImageShardReader
from delvm.data.shards.reader import read_examples
from delvm.data.types import Example, ImageArray
from delvm.errors import UserError
from delvm.storage import as_path


@dataclass
class ImagesConfig:
    """Batches of single images from a root of image shards.

    Attributes:
        path: Root of the shards, as `delvm prepare` writes it: a directory, or a URL that fsspec
            knows.
        batch_size: Images per batch and device.
        num_workers: Worker processes that load batches; 0 = the training process.
        num_val_examples: Examples per task for validation, always the same ones.
        shuffle_window_shards: Shards of a task whose images are shuffled together.
    """

    path: str = "outputs/shapes/pairs"
    batch_size: int = 32
    num_workers: int = 0
    num_val_examples: int = 16
    shuffle_window_shards: int = SHUFFLE_WINDOW_SHARDS

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        return loader_errors(self)


class ImageDataset(Dataset[dict[str, Any]]):
    """Endless training images, equally many per task; an index is a complete batch of indices.

    A batch is {"pixels": (B, 3, H, H) uint8, "next_index": index of the last image + 1}. In the
    first epoch images come as they are, in later ones under a new random geometry.
    """

    def __init__(
        self,
        config: ImagesConfig,
        seed: int,
        manifests: Mapping[str, Manifest] | None = None,
    ) -> None:
        """Read the manifests of the training split.

        Args:
            config: Which shards, and how they are read.
            seed: Of the order and of the augmentation.
            manifests: Of the training split, if they have been read already.

        Raises:
            UserError: There are no image shards, or a task has no examples.
        """
        self.root, self.seed, self.config = as_path(config.path), seed, config
        self.manifests = dict(manifests or load_manifests(self.root, "train", "images"))
        self.tasks = sorted(self.manifests)
        self.schedule = TaskSchedule(dict.fromkeys(self.tasks, 1 / len(self.tasks)))
        by_task = [self.manifests[task] for task in self.tasks]
        if empty := [m.task for m in by_task if not m.count]:
            folder = self.root / "train" / empty[0]
            raise UserError(f"task '{empty[0]}' has no images: remove {folder}")
        self.readers = [
            ImageShardReader(self.root, m, MAX_OPEN_SHARDS // len(by_task)) for m in by_task
        ]
        self.shuffles = [
            WindowedShuffle(
                m.task,
                [m.images_per_example * shard["count"] for shard in m.shards],
                seed,
                config.shuffle_window_shards,
            )
            for m in by_task
        ]

    @property
    def image_size(self) -> int:
        """Side of the images in pixels, H."""
        return next(iter(self.manifests.values())).image_size

    @property
    def order(self) -> dict[str, Any]:
        """All that the order depends on: a run resumes only where it is the same."""
        return {
            "seed": self.seed,
            "shuffle_window_shards": self.config.shuffle_window_shards,
            "shards": {task: shard_signature(self.manifests[task]) for task in self.tasks},
        }

    def mixture(self, next_index: int) -> dict[str, float]:
        """Fraction of each task among the images before this one."""
        counts = self.schedule.counts(next_index) / max(1, next_index)
        return dict(zip(self.tasks, counts.tolist(), strict=True))

    def locate(self, indices: Int64) -> list[dict[str, Any]]:
        """The examples of these images (B,) on disk: {"task", "shard": file name, "index"}."""
        found: list[dict[str, Any]] = []
        task_ids, occurrence = self.schedule(indices)
        for task, position in zip(task_ids.tolist(), occurrence, strict=True):
            shards, index = self.shuffles[task](position[None])
            k = self.manifests[self.tasks[task]].images_per_example
            found += self.readers[task].describe(shards, index // k)
        return found

    def __getitem__(self, indices: Int64) -> dict[str, Any]:
        """The batch of the images with these indices (B,)."""
        pixels = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
        task_ids, occurrence = self.schedule(indices)
        for task in np.unique(task_ids):
            rows = np.flatnonzero(task_ids == task)
            shuffle = self.shuffles[task]
            epochs = occurrence[rows] // shuffle.num_examples
            for row, shard, index, epoch in zip(
                rows, *shuffle(occurrence[rows]), epochs, strict=True
            ):
                pixels[row] = self._image(int(task), int(shard), int(index), int(epoch))
        return {"pixels": channels_first(pixels), "next_index": int(indices[-1]) + 1}

    def _image(self, task: int, shard: int, index: int, epoch: int) -> ImageArray:
        example, image = divmod(index, self.manifests[self.tasks[task]].images_per_example)
        key, pixels = self.readers[task].read(shard, example, image)
        return self.augment(task, key, pixels, epoch)

    def augment(self, task: int, key: str, pixels: ImageArray, epoch: int) -> ImageArray:
        """An image (H, H, 3) of an example, under the geometry of an epoch."""
        name = self.tasks[task]
        geometry = Geometry().allowed_for(tasks.get_or_default(name))
        return augment(Example(key, name, (pixels,)), self.seed, epoch, geometry=geometry).input


def channels_first(pixels: npt.NDArray[np.uint8]) -> Tensor:
    """Images (B, H, H, 3) as a tensor (B, 3, H, H) of the same values."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def validation_images(config: ImagesConfig) -> Tensor | None:
    """The fixed validation images of all tasks, (M, 3, H, H) uint8; None if there are none."""
    images: list[npt.NDArray[np.uint8]] = []
    root = as_path(config.path)
    for task in sorted(load_manifests_if_any(root, "val", "images")):
        for number, example in enumerate(read_examples(root, "val", task)):
            if number == config.num_val_examples:
                break
            images += example.images
    if not images:
        return None
    return channels_first(np.stack(images))
