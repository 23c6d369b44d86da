"""Single images streamed from image shards, see `delvm.data.datasets.streaming`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from delvm.data.datasets.images import ImageDataset, ImagesConfig, channels_first
from delvm.data.datasets.sampler import Int64
from delvm.data.datasets.stream_stages import Examples, ExampleStream
from delvm.data.datasets.streaming import StreamingDataset, StreamSettings, stream_errors
from delvm.data.shards.fetch import MAX_IMAGES_IN_A_ROW, Rejects, ShardPath
from delvm.data.shards.manifest import Manifest, member_names
from delvm.data.shards.reader import FileBytes, decode_image, read_image_shard
from delvm.data.shards.shard_list import list_shards
from delvm.data.types import ImageArray
from delvm.errors import UserError
from delvm.storage import as_path

STREAM_WINDOW_SHARDS = 2  # of image shards, which are larger than token shards


@dataclass
class StreamingImagesConfig(StreamSettings, ImagesConfig):
    """As `ImagesConfig`, for streams."""

    shuffle_window_shards: int = STREAM_WINDOW_SHARDS
    timeout_s: float = 300.0

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        return [*ImagesConfig.validate(self), *stream_errors(self)]


@dataclass(frozen=True)
class ImageFile:
    """An image that is not decoded before it is its turn, since files are smaller than pixels.

    Attributes:
        shard: That it is from.
        key, name: Of its example, and of the image in it.
        contents: Of the file.
    """

    shard: ShardPath
    key: str
    name: str
    contents: FileBytes

    def __str__(self) -> str:
        return f"{self.shard}: {self.key}.{self.name}"


class FileDecoder:
    """Makes the images (n,) of an image shard, each an `ImageFile`."""

    def __init__(self, manifest: Manifest) -> None:
        """Decode the shards of a manifest."""
        self.manifest = manifest
        self.names = member_names(manifest.images_per_example)

    def empty(self, count: int) -> Examples:
        return np.empty(count, object)

    def __call__(self, path: ShardPath, contents: bytes, count: int) -> Examples:
        records = read_image_shard(path, self.manifest, count // len(self.names), contents)
        images = self.empty(count)
        images[:] = [
            ImageFile(path, key, name, file)
            for key, files in records
            for name, file in zip(self.names, files, strict=True)
        ]
        return images


class StreamingImages(StreamingDataset):
    """Endless training images, equally many per task; a batch has the keys of `ImageDataset`."""

    layout: ImageDataset

    def __init__(self, config: StreamingImagesConfig, seed: int) -> None:
        """Read the manifests of the training split.

        Args:
            config: Which shards, and how they are read.
            seed: Of the order and of the augmentation.

        Raises:
            UserError: There are no image shards, or as of `list_shards`.
        """
        shards = list_shards(as_path(config.path), "images", config.shards)
        manifests = {task: each.manifest for task, each in shards.items()}
        sources = {
            task: config.source(each, FileDecoder(each.manifest), each.manifest.images_per_example)
            for task, each in shards.items()
        }
        super().__init__(ImageDataset(config, seed, manifests), sources)
        self.image_size = self.layout.image_size
        self.rejects = [
            Rejects(task, "image", config.rejects, MAX_IMAGES_IN_A_ROW) for task in self.mixed_tasks
        ]

    def make_batch(self, indices: Int64, streams: Sequence[ExampleStream]) -> dict[str, Any]:
        pixels = np.empty((len(indices), self.image_size, self.image_size, 3), np.uint8)
        tasks, _ = self.layout.schedule(indices)
        for row, task in enumerate(tasks.tolist()):
            pixels[row] = self._next_image(task, streams[task])
        return {"pixels": channels_first(pixels)}

    def _next_image(self, task: int, stream: ExampleStream) -> ImageArray:
        """The next image (H, H, 3) of a task that can be decoded, under the geometry of its epoch.

        Raises:
            UserError: Too many in a row cannot.
        """
        while True:
            [file] = stream.take(1)
            try:
                pixels = decode_image(file.contents, str(file), self.image_size)
            except UserError as error:
                self.rejects[task].add(file, error, stream.epoch)
                continue
            self.rejects[task].in_a_row = 0
            return self.layout.augment(task, file.key, pixels, stream.epoch)
