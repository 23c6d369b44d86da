"""The procedural corpus `shapes`: pairs of every task, generated from seeds and photographs.

A pair is a pure function of (seed, split, task, index) and the photographs. "train" uses its own
ones; "val" and "test" share those that are held out, and differ by their seeds.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from delvm import legacy, tasks
from delvm.data.sources.base import check_split
from delvm.data.sources.shapes import people, scenes
from delvm.data.sources.shapes.photo_folders import PhotoFolders
from delvm.data.sources.shapes.photo_pool import Photo, PhotoPool
from delvm.data.sources.shapes.photographs import packaged_photos, packaged_pool
from delvm.data.types import SPLITS, Example, ImageArray, SourceChunk, split_into_chunks
from delvm.errors import UserError, did_you_mean
from delvm.storage import StoragePath
from delvm.tasks import derived, pose, restoration, segmentation

# Long-tailed, like the sizes of the data sets that the paper trains on.
TRAIN_COUNTS = {"segmentation": 10_000, "pose": 1_000, "derain": 100, "deblur": 100}
EXAMPLES_PER_CHUNK = 1000
PACKAGES = "packages"  # in place of a directory
RECORD = "photographs.jsonl"
_MIN_SIZE = 16

ImagePair = tuple[ImageArray, ImageArray]  # input and target (size, size, 3)


def _segmentation(rng: np.random.Generator, photos: PhotoPool, size: int) -> ImagePair:
    image, masks = scenes.instances(rng, photos, size)
    return scenes.to_image(image), segmentation.render(masks)


def _pose(rng: np.random.Generator, photos: PhotoPool, size: int) -> ImagePair:
    points = people.random_keypoints(rng)
    return people.render(rng, photos, size, points), pose.render(points, size)


def _derain(rng: np.random.Generator, photos: PhotoPool, size: int) -> ImagePair:
    clean = scenes.natural_scene(rng, photos, size, shapes_probability=0.5)
    return restoration.add_rain(clean, rng), clean


def _deblur(rng: np.random.Generator, photos: PhotoPool, size: int) -> ImagePair:
    clean = scenes.natural_scene(rng, photos, size, shapes_probability=1.0)
    return restoration.motion_blur(clean, rng), clean


def _colorization(rng: np.random.Generator, photos: PhotoPool, size: int) -> ImagePair:
    clean = scenes.natural_scene(rng, photos, size, shapes_probability=0.3)
    return derived.to_grayscale(clean), clean


def _inpainting(rng: np.random.Generator, photos: PhotoPool, size: int) -> ImagePair:
    clean = scenes.natural_scene(rng, photos, size, shapes_probability=0.3)
    return derived.mask_rectangle(clean, rng), clean


def _edges(rng: np.random.Generator, photos: PhotoPool, size: int) -> ImagePair:
    clean = scenes.natural_scene(rng, photos, size, shapes_probability=0.7)
    return clean, derived.edge_map(clean)


_GENERATORS: dict[str, Callable[[np.random.Generator, PhotoPool, int], ImagePair]] = {
    "segmentation": _segmentation,
    "pose": _pose,
    "derain": _derain,
    "deblur": _deblur,
    "colorization": _colorization,
    "inpainting": _inpainting,
    "edges": _edges,
}


@dataclass
class Shapes:
    """The procedural corpus, a `Source`.

    Attributes:
        size: side of every image in pixels; everything in it is scaled with it.
        seed: of all randomness.
        train: task -> number of training pairs; None is `TRAIN_COUNTS`.
        num_val: validation pairs per task, whether trained or held out.
        num_test: test pairs per task.
        held_out: tasks of val and test without training pairs.
        photographs: a directory of photographs for textures and backgrounds, `PACKAGES` for those
            that ship inside packages, or a list of these.
        held_out_photographs: fraction of the photographs in directories that are in no training
            pair. It does not depend on the seed, so it is the same of all corpora.
    """

    name: ClassVar[str] = "shapes"
    size: int = 64
    seed: int = 0
    train: dict[str, int] | None = None
    num_val: int = 64
    num_test: int = 128
    held_out: list[str] = field(default_factory=lambda: list(tasks.HELD_OUT))
    photographs: Any = field(default=PACKAGES, metadata={"type": str | list[str]})
    held_out_photographs: float = 0.2

    def validate(self) -> list[str]:
        """Every error of the settings, each starting with the key."""
        train = self._train_counts()
        errors = []
        if self.size < _MIN_SIZE:
            errors.append(f"size={self.size} is too small: set source.size={_MIN_SIZE} or more")
        if self.seed < 0:
            errors.append(f"seed={self.seed} is negative: set source.seed=0 or more")
        counts = {f"train.{task}": count for task, count in train.items()}
        for key, count in {**counts, "num_val": self.num_val, "num_test": self.num_test}.items():
            if count < 0:
                errors.append(f"{key}={count} is negative: set source.{key}=0 or more")
        for key, names in (("train", list(train)), ("held_out", self.held_out)):
            errors += [
                f"{key}: unknown task '{name}': {did_you_mean(name, _GENERATORS)}"
                for name in names
                if name not in _GENERATORS
            ]
        errors += [
            f"held_out: task '{name}' is in source.train too: set ~source.train.{name} or remove "
            "it from source.held_out"
            for name in self.held_out
            if name in train
        ]
        return errors + self._photograph_errors()

    def _photograph_errors(self) -> list[str]:
        errors = []
        listed = self._photographs_listed()
        if not listed or not all(isinstance(each, str) and each for each in listed):
            errors.append(
                f"photographs={self.photographs} is neither a directory nor a list of them: set "
                f"source.photographs=DIR or 'source.photographs=[{PACKAGES},DIR]'"
            )
        if not 0 < self.held_out_photographs < 1:
            errors.append(
                f"held_out_photographs={self.held_out_photographs} is not between 0 and 1: set "
                "source.held_out_photographs=0.2"
            )
        return errors

    def _photographs_listed(self) -> list[Any]:
        given = self.photographs
        several = isinstance(given, Sequence) and not isinstance(given, str)
        return list(given) if several else [given]

    def counts(self, split: str) -> dict[str, int]:
        """Number of pairs per task in a split.

        Raises:
            UserError: the split is unknown, or a setting is out of range.
        """
        check_split(split)
        for error in self.validate():
            raise UserError(f"source.{error}")
        train = self._train_counts()
        if split == "train":
            return train
        count = self.num_val if split == "val" else self.num_test
        return dict.fromkeys((*train, *self.held_out), count)

    def _train_counts(self) -> dict[str, int]:
        return dict(TRAIN_COUNTS if self.train is None else self.train)

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """Where photographs are from; an example does not depend on how many there are."""
        if self._folders is None:
            return {}
        return {
            "photographs": self._photographs_listed(),
            "held_out_photographs": self.held_out_photographs,
        }

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered chunks of each task.

        Raises:
            UserError: the split is unknown, a setting is out of range, or there are too few
                photographs.
        """
        counts = self.counts(split)
        photographs = self._folders.digest(split != "train") if self._folders else ""
        return {
            task: [
                replace(chunk, inputs=photographs)
                for chunk in split_into_chunks(count, EXAMPLES_PER_CHUNK)
            ]
            for task, count in counts.items()
            if count
        }

    def write_record(self, root: StoragePath) -> None:
        """Write ROOT/photographs.jsonl: which photographs are held out, and which are unreadable.

        Written again where more were found to be unreadable; not at all for those of packages.
        """
        if self._folders is not None:
            self._folders.write_record(root / RECORD)

    @cached_property
    def _folders(self) -> PhotoFolders | None:
        """The photographs in directories, if there are any."""
        folders = [each for each in self._photographs_listed() if each != PACKAGES]
        return PhotoFolders(folders, self.held_out_photographs) if folders else None

    def _pool(self, split: str) -> PhotoPool:
        """The photographs of a split."""
        if self._folders is None:
            return packaged_pool(split)
        return self._train_pool if split == "train" else self._held_out_pool

    @cached_property
    def _train_pool(self) -> PhotoPool:
        return self._pool_of_folders("train")

    @cached_property
    def _held_out_pool(self) -> PhotoPool:
        return self._pool_of_folders("test")

    def _pool_of_folders(self, split: str) -> PhotoPool:
        assert self._folders is not None
        listed = self._photographs_listed()
        photos: list[Photo] = [*self._folders.photos(split != "train")]
        if PACKAGES in listed:
            photos = [*packaged_photos(split), *photos]
        return PhotoPool(photos, f"source.photographs=[{','.join(listed)}]")

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example]:
        """The examples of a chunk."""
        first = int(chunk.name) * EXAMPLES_PER_CHUNK
        for index in range(first, first + chunk.count):
            yield self._generate(split, task, index)

    def pair(self, split: str, task: str, index: int) -> Example:
        """The pair at `index`.

        Raises:
            UserError: the split is unknown, or does not have the task.
            IndexError: the index is not in [0, counts(split)[task]).
        """
        counts = self.counts(split)
        if task not in counts:
            raise UserError(f"split '{split}' has no task '{task}': {did_you_mean(task, counts)}")
        if not 0 <= index < counts[task]:
            raise IndexError(f"pair {index} of {split}/{task}, which has {counts[task]}")
        return self._generate(split, task, index)

    def _generate(self, split: str, task: str, index: int) -> Example:
        # crc32 rather than a position: a new task must not change the pairs of the others.
        task_seed = zlib.crc32(legacy.seed_word(task).encode())
        entropy = (self.seed, SPLITS.index(split), task_seed, index)
        rng = np.random.default_rng(np.random.SeedSequence(entropy))
        return Example(f"{index:06d}", task, _GENERATORS[task](rng, self._pool(split), self.size))
