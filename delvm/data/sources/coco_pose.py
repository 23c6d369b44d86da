"""COCO keypoints: people as OpenPose stick figures (Lin et al., "Microsoft COCO", ECCV 2014)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image

from delvm.data.image_io import open_stored
from delvm.data.resizing import ResizeMode, place_points
from delvm.data.sources._io.coco_json import (
    COCO_TO_OPENPOSE,
    AnnotatedImage,
    Person,
    read_annotations,
)
from delvm.data.sources._io.minimum_splits import PAIRS_NEEDED
from delvm.data.sources.base import (
    Box,
    RawSource,
    chunks_of,
    items_of,
    to_reject,
    unique_keys,
)
from delvm.data.types import Example, ImageArray, RejectedItem, SourceChunk
from delvm.errors import UserError
from delvm.progress import log
from delvm.tasks import Task, multi_pose, pose
from delvm.tasks.oks import KEYPOINTS as COCO_KEYPOINTS

# Split of the data set -> split here: the data set's test split has no annotations.
NATIVE_SPLITS = {"train": "train", "val": "test"}


class _Item(NamedTuple):
    """What one example is made of.

    Attributes:
        name: unique in its split.
        native_split: its split in the data set.
        image: index of the image in its annotation file.
        person: index in the image; None takes everybody.
    """

    name: str
    native_split: str
    image: int
    person: int | None


@dataclass
class CocoPose(RawSource):
    """annotations/person_keypoints_{train,val}2017.json with {train,val}2017/*.jpg.

    COCO's val is "test" here, and "val" takes a fraction of the images of its train.

    Attributes:
        whole_image: whether an example is the center of an image with everybody in it (task
            `poses`), or a crop of one person, of whom alone the figure is rendered (task `pose`).
        margin: around a person's box on each side, as a fraction of its longer side.
        min_keypoints: labeled keypoints, of 17, that a person needs to be taken; a whole image is
            taken if it has one such person in its center, and everybody else in it is rendered too.
        min_side: of a person's box, the longer one, in pixels; smaller people are not cropped.
    """

    name: ClassVar[str] = "coco_pose"
    whole_image: bool = False
    margin: float = 0.15
    min_keypoints: int = 8
    min_side: int = 64

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        if not 1 <= self.min_keypoints <= len(COCO_KEYPOINTS):
            errors.append(
                f"min_keypoints={self.min_keypoints} is not in 1..{len(COCO_KEYPOINTS)}: set "
                "source.min_keypoints=8"
            )
        if not 0 <= self.margin <= 2:
            errors.append(f"margin={self.margin} is not in [0, 2]: set source.margin=0.15")
        return errors

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered chunks of 1000 people or images each."""
        self.check(split)
        root = self.root()

        def files(item: tuple[str, _Item]) -> Iterator[Path]:
            native = item[1].native_split
            entry = self._images(native)[item[1].image]
            yield self._annotation_file(native)
            if not isinstance(entry, RejectedItem):
                yield root / f"{native}2017" / entry.file

        return {self._task().name: chunks_of(self._items.get(split, []), root, files)}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The people, or the images, of a chunk."""
        for key, item in items_of(chunk, self._items[split]):
            entry = self._images(item.native_split)[item.image]
            if isinstance(entry, RejectedItem):
                file = self._annotation_file(item.native_split).name
                yield RejectedItem(f"{file} {entry.key}", entry.reason)
                continue
            name = f"{item.native_split}2017/{entry.file}"
            try:
                stored = open_stored(self.root() / name, name)
                if (image := stored.of_size(entry.size)) is None:
                    raise UserError(f"of {stored.pixels.size} pixels, annotated as {entry.size}")
                if item.person is None:
                    pair = self._all_people(image, entry.people)
                else:
                    pair = self._single_person(image, entry.people[item.person])
            except UserError as error:
                yield to_reject(name, error)
                continue
            yield Example(key, task, pair)

    def _single_person(self, image: Image.Image, person: Person) -> tuple[ImageArray, ImageArray]:
        box = square_crop(person.box, self.margin, *image.size)
        figure = pose.render(_relative_to(box, person.points), self.size)
        return self.to_square(image.crop(box)), figure

    def _all_people(
        self, image: Image.Image, people: list[Person]
    ) -> tuple[ImageArray, ImageArray]:
        by_size = sorted(people, key=lambda person: person.side)  # usually the nearest on top
        skeletons = np.stack([self._placed(image.size, person.points) for person in by_size])
        sides = np.array([person.side for person in by_size])
        unit = self._placed(image.size, np.array([[0.0, 0.0], [1.0, 1.0]]))
        scales = sides * float((unit[1] - unit[0]).mean())  # a squashed image has two scales
        target = multi_pose.render(skeletons, scales, self.size)
        return self.to_square(image), target

    def _placed(self, size: tuple[int, int], points: pose.Points) -> pose.Points:
        """Points (..., 2) of an image, as fractions of the square that is made of it."""
        return place_points(points, *size, self.size, ResizeMode(self.resize))

    def _task(self) -> Task:
        return multi_pose.TASK if self.whole_image else pose.TASK

    @cached_property
    def _items(self) -> dict[str, list[tuple[str, _Item]]]:
        """(key, item) of each split."""
        existing = self._existing_splits()

        def list_items() -> dict[str, list[_Item]]:
            found: dict[str, list[_Item]] = {}
            for native in existing:
                for index, image in enumerate(self._images(native)):
                    name = image.key if isinstance(image, RejectedItem) else image.file
                    split = self.split_of(f"{native}/{name}", NATIVE_SPLITS[native])
                    found.setdefault(split, []).extend(self._items_of_image(native, index, image))
            return found

        splits = self.with_minimum_splits(list_items, PAIRS_NEEDED)
        if not any(splits.values()):
            raise UserError(
                f"source.path={self.path} has nobody with min_keypoints={self.min_keypoints} and "
                f"min_side={self.min_side}: set source.min_keypoints=1 source.min_side=0"
            )
        return {
            split: list(zip(unique_keys([item.name for item in items]), items, strict=True))
            for split, items in splits.items()
        }

    def _existing_splits(self) -> list[str]:
        """The splits of the data set that are there; the annotations of all come in one archive."""
        annotated = [native for native in NATIVE_SPLITS if self._annotation_file(native).exists()]
        existing = [native for native in annotated if (self.root() / f"{native}2017").is_dir()]
        if not existing:
            file = self._annotation_file("train").relative_to(self.path)
            missing = f"{annotated[0]}2017" if annotated else file
            raise UserError(
                f"source.path={self.path} has no {missing}: set source.path to the directory that "
                "contains annotations and train2017 or val2017"
            )
        for native in annotated:
            if native not in existing:
                log(f"prepare: {self.path} has no {native}2017, so its people are left out")
        return existing

    def _items_of_image(
        self, native: str, index: int, image: AnnotatedImage | RejectedItem
    ) -> Iterator[_Item]:
        if isinstance(image, RejectedItem):
            yield _Item(f"{native} {image.key}", native, index, None)
            return
        stem = Path(image.file).with_suffix("").as_posix()
        if self.whole_image:
            placed = (self._placed(image.size, person.points) for person in image.people)
            counts = map(count_keypoints_inside, placed)
            if max(counts, default=0) >= self.min_keypoints:
                yield _Item(stem, native, index, None)
            return
        for number, person in enumerate(image.people):
            if person.num_labeled >= self.min_keypoints and person.side >= self.min_side:
                yield _Item(f"{stem}-{person.id}", native, index, number)

    def _annotation_file(self, native: str) -> Path:
        return Path(self.path) / "annotations" / f"person_keypoints_{native}2017.json"

    def _images(self, native: str) -> list[AnnotatedImage | RejectedItem]:
        path = self._annotation_file(native)
        return read_annotations(path, path.stat().st_mtime_ns)


def square_crop(
    box: tuple[float, float, float, float], margin: float, width: int, height: int
) -> Box:
    """The square crop around a person.

    It is shifted into the image where it fits, with a smaller margin if only that makes it fit.
    For a person longer than the image's short side it extends beyond the image.

    Args:
        box: Left, top, width and height of the person.
        margin: On each side, as a fraction of the longer side.
        width, height: Of the image.

    Raises:
        UserError: the box is outside the image.
    """
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], width), min(box[1] + box[3], height)
    if right - left < 1 or bottom - top < 1:
        raise UserError(f"the box of a person, {list(box)}, is outside its {width} x {height}")
    longest = math.ceil(max(right - left, bottom - top))
    side = max(longest, min(round(longest * (1 + 2 * margin)), width, height))
    corner = []
    for middle, room in (((left + right) / 2, width), ((top + bottom) / 2, height)):
        start = round(middle - side / 2)
        corner.append(min(max(start, 0), room - side) if side <= room else (room - side) // 2)
    x, y = corner
    return x, y, x + side, y + side


def count_keypoints_inside(points: pose.Points) -> int:
    """How many of COCO's keypoints, of points (18, 2) in a square of side 1, are inside it."""
    keypoints = points[COCO_TO_OPENPOSE]  # NaN where not labeled
    return int(((keypoints >= 0) & (keypoints < 1)).all(axis=1).sum())


def _relative_to(box: Box, points: pose.Points) -> pose.Points:
    """Points (18, 2) in pixels as fractions of a square."""
    relative: pose.Points = (points - box[:2]) / (box[2] - box[0])
    return relative
