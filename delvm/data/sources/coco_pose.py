"""COCO keypoints: people as OpenPose stick figures (Lin et al., "Microsoft COCO", ECCV 2014)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from PIL import Image

from delvm.data.image_io import open_image, resize_center_crop
from delvm.data.sources._io.coco_json import ORDER, PLACES, Person, Photo, read_annotations
from delvm.data.sources.base import (
    Box,
    RawSource,
    check_split,
    distinct,
    file_parts,
    files_of,
    middle_square,
    rejected,
)
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError
from delvm.tasks import Task, pose
from delvm.tasks import multi_pose as poses

# The data set's own splits, and what they are here: its test split has no annotations.
NATURAL = {"train": "train", "val": "test"}


class _Item(NamedTuple):
    """What one example is made of.

    Attributes:
        name: unique in its split.
        own: split in the data set.
        photo: number of the picture in its file.
        person: number in the picture; None takes everybody.
    """

    name: str
    own: str
    photo: int
    person: int | None


@dataclass
class CocoPose(RawSource):
    """annotations/person_keypoints_{train,val}2017.json with {train,val}2017/*.jpg.

    COCO's val is "test" here, and "val" takes a share of the pictures of its train.

    Attributes:
        whole: whether an example is a picture with everybody in it (task `poses`), its middle, or
            one person, cut out, and only that one drawn (task `pose`).
        margin: about a person's box on each side, as a share of its longer side.
        keypoints: labelled ones of 17 that a person needs to be taken; a whole picture is taken
            for one such person in its middle, and everybody else in it is drawn too.
        min_side: of a person's box, the longer one, in pixels; smaller people are not cut out.
    """

    name: ClassVar[str] = "coco_pose"
    whole: bool = False
    margin: float = 0.15
    keypoints: int = 8
    min_side: int = 64

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered parts of 1000 people or pictures each.

        Raises:
            UserError: the annotations are missing or no such JSON, or a setting is out of range.
        """
        check_split(split)
        self.root()
        self._check()
        return {self._task().name: file_parts(self._listed.get(split, []))}

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The people, or the pictures, of a part."""
        for key, item in files_of(part, self._listed[split]):
            photo = self._photos(item.own)[item.photo]
            if isinstance(photo, RejectedItem):
                yield RejectedItem(f"{self._path(item.own).name} {photo.key}", photo.reason)
                continue
            name = f"{item.own}2017/{photo.file}"
            try:
                image = open_image(self.root() / name, name)
                if image.size != photo.size:
                    raise UserError(f"of {image.size} pixels, annotated as of {photo.size}")
                people = photo.people
                if item.person is None:
                    pictures = self._everybody(image, people)
                else:
                    pictures = self._alone(image, people[item.person])
            except UserError as error:
                yield rejected(name, error)
                continue
            yield Example(key, task, pictures)

    def _alone(self, image: Image.Image, person: Person) -> tuple[np.ndarray, np.ndarray]:
        box = square_about(person.box, self.margin, *image.size)
        figure = pose.render(_within(person.points, box), self.size)
        return np.asarray(resize_center_crop(image.crop(box), self.size)), figure

    def _everybody(self, image: Image.Image, people: list[Person]) -> tuple[np.ndarray, np.ndarray]:
        box = middle_square(*image.size)
        by_size = sorted(people, key=lambda person: person.side)  # the nearest on top, mostly
        figures = np.stack([_within(person.points, box) for person in by_size])
        scales = np.array([person.side for person in by_size]) / (box[2] - box[0])
        drawn = poses.render(figures, scales, self.size)
        return np.asarray(resize_center_crop(image.crop(box), self.size)), drawn

    def _task(self) -> Task:
        return poses.TASK if self.whole else pose.TASK

    @cached_property
    def _listed(self) -> dict[str, list[tuple[str, _Item]]]:
        """(key, what it is made of) of each split."""
        there = [own for own in NATURAL if self._path(own).exists()]
        if not there:
            raise UserError(
                f"source.path={self.path} has no {self._path('train').relative_to(self.path)}: set "
                "source.path to the folder that holds annotations"
            )
        splits: dict[str, list[_Item]] = {}
        for own in there:
            for number, photo in enumerate(self._photos(own)):
                name = photo.key if isinstance(photo, RejectedItem) else photo.file
                split = self.split_of(f"{own}/{name}", NATURAL[own])
                splits.setdefault(split, []).extend(self._items(own, number, photo))
        if not any(splits.values()):
            raise UserError(
                f"source.path={self.path} has nobody with keypoints={self.keypoints} and "
                f"min_side={self.min_side}: set source.keypoints=1 source.min_side=0"
            )
        return {
            split: list(zip(distinct([item.name for item in found]), found, strict=True))
            for split, found in splits.items()
        }

    def _items(self, own: str, number: int, photo: Photo | RejectedItem) -> Iterator[_Item]:
        if isinstance(photo, RejectedItem):
            yield _Item(f"{own} {photo.key}", own, number, None)
            return
        stem = Path(photo.file).with_suffix("").as_posix()
        if self.whole:
            box = middle_square(*photo.size)
            shown = (labelled_within(person.points, box) for person in photo.people)
            if max(shown, default=0) >= self.keypoints:
                yield _Item(stem, own, number, None)
            return
        for each, person in enumerate(photo.people):
            if person.labelled >= self.keypoints and person.side >= self.min_side:
                yield _Item(f"{stem}-{person.number}", own, number, each)

    def _path(self, own: str) -> Path:
        return Path(self.path) / "annotations" / f"person_keypoints_{own}2017.json"

    def _photos(self, own: str) -> list[Photo | RejectedItem]:
        path = self._path(own)
        return read_annotations(path, path.stat().st_mtime_ns)

    def _check(self) -> None:
        if not 1 <= self.keypoints <= len(ORDER):
            raise UserError(
                f"source.keypoints={self.keypoints} is not in 1..{len(ORDER)}: set "
                "source.keypoints=8"
            )
        if not 0 <= self.margin <= 2:
            raise UserError(f"source.margin={self.margin} is not in [0, 2]: set source.margin=0.15")


def square_about(
    box: tuple[float, float, float, float], margin: float, width: int, height: int
) -> Box:
    """The square to cut a person out with.

    It is moved into the picture where it fits, and its margin is less where only that makes it
    fit; a person longer than the picture's short side gets a square that reaches beyond it.

    Args:
        box: Left, top, width and height of the person.
        margin: On each side, as a share of the longer side.
        width, height: Of the picture.

    Raises:
        UserError: the box lies outside the picture.
    """
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], width), min(box[1] + box[3], height)
    if right - left < 1 or bottom - top < 1:
        raise UserError(f"the box of a person, {list(box)}, lies outside its {width} x {height}")
    longest = math.ceil(max(right - left, bottom - top))
    side = max(longest, min(round(longest * (1 + 2 * margin)), width, height))
    corner = []
    for middle, room in (((left + right) / 2, width), ((top + bottom) / 2, height)):
        start = round(middle - side / 2)
        corner.append(min(max(start, 0), room - side) if side <= room else (room - side) // 2)
    x, y = corner
    return x, y, x + side, y + side


def labelled_within(points: np.ndarray, box: Box) -> int:
    """How many of COCO's keypoints, of points (18, 2) in pixels, are labelled and in a square."""
    left, top, right, bottom = box
    x, y = points[PLACES].T
    return int(((x >= left) & (x < right) & (y >= top) & (y < bottom)).sum())


def _within(points: np.ndarray, box: Box) -> np.ndarray:
    """Points (18, 2) in pixels as shares of a square."""
    return (points - box[:2]) / (box[2] - box[0])
