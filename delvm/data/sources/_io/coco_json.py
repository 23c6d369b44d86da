"""The keypoint annotations of COCO, read from JSON that is not trusted."""

import json
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from delvm.data.types import RejectedItem
from delvm.errors import UserError
from delvm.tasks.pose import KEYPOINTS

# COCO's own order. The neck, which it does not know, is the middle of the shoulders.
ORDER = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip
PLACES = [KEYPOINTS.index(name) for name in ORDER]
_NECK = KEYPOINTS.index("neck")
_SHOULDERS = [KEYPOINTS.index(f"{side}_shoulder") for side in ("right", "left")]
_FARTHEST = 100_000  # pixels from the corner; no picture is larger


class Person(NamedTuple):
    """One annotation.

    Attributes:
        number: its id in the file.
        points: (18, 2) x and y in pixels, NaN where not labelled.
        labelled: keypoints of 17 that are.
        box: left, top, width and height in pixels.
    """

    number: int
    points: np.ndarray
    labelled: int
    box: tuple[float, float, float, float]

    @property
    def side(self) -> float:
        """The longer side of the box."""
        return max(self.box[2:])


class Photo(NamedTuple):
    """A picture.

    Attributes:
        file: below the folder of its split.
        size: width and height in pixels, which the keypoints refer to.
        people: in the order of the annotations.
    """

    file: str
    size: tuple[int, int]
    people: list[Person]


@lru_cache(maxsize=4)
def read_annotations(path: Path, stamp: int) -> list[Photo | RejectedItem]:
    """Everything in person_keypoints_SPLIT2017.json, 200 MB of JSON, once a process.

    Crowds and people without a labelled keypoint are left out: COCO has no pose of them.

    Args:
        path: Of the file.
        stamp: When it was changed, so that a changed file is read again.

    Returns:
        Pictures in the order of their ids, then what is wrong with entries of the file.

    Raises:
        UserError: it is no such JSON.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"annotations {path} cannot be read: {error}") from None
    held = value if isinstance(value, dict) else {}
    images, annotations = held.get("images"), held.get("annotations")
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise UserError(f"annotations {path} are no object with lists of images and annotations")
    rejects: list[RejectedItem] = []
    photos = _photos(images, rejects)
    numbers: set[int] = set()
    for place, annotation in enumerate(annotations):
        try:
            person = _person(annotation)
            image = annotation["image_id"]
            if image not in photos:
                raise UserError(f"of image {str(image)[:40]}, which is not listed")
            if person and person.number in numbers:
                raise UserError(f"its id {person.number} comes twice")
        except (UserError, TypeError, KeyError) as error:
            said = str(error) if isinstance(error, UserError) else f"cannot be read: {error!r}"
            rejects.append(RejectedItem(f"annotation {place}", said))
            continue
        if person:
            numbers.add(person.number)
            photos[image].people.append(person)
    return [photos[number] for number in sorted(photos)] + rejects


def _photos(images: list[Any], rejects: list[RejectedItem]) -> dict[int, Photo]:
    photos: dict[int, Photo] = {}
    files: set[str] = set()
    for place, image in enumerate(images):
        match image:
            case {"id": int(number), "file_name": str(file), "width": int(w), "height": int(h)}:
                if not file or ".." in PurePosixPath(file).parts or file[0] == "/" or "\\" in file:
                    fault = "its path leads out of the data set"
                elif number in photos or file in files:
                    fault = "its id or file_name comes twice"
                else:
                    files.add(file)
                    photos[number] = Photo(file, (w, h), [])
                    continue
            case _:
                fault = "without id, file_name, width and height"
        rejects.append(RejectedItem(f"image {place}", fault))
    return photos


def _person(annotation: Any) -> Person | None:
    """The person of an annotation, or None of a crowd or one without keypoints.

    Raises:
        UserError: it has no keypoints or box as COCO writes them.
        TypeError, KeyError: it is of another form altogether.
    """
    if annotation.get("iscrowd") if isinstance(annotation, dict) else False:
        return None
    number = annotation["id"]
    try:
        values = np.asarray(annotation["keypoints"], float)
        box = np.asarray(annotation["bbox"], float)
    except (ValueError, OverflowError):
        raise UserError("keypoints or bbox that are no numbers") from None
    if type(number) is not int or values.shape != (3 * len(ORDER),) or box.shape != (4,):
        raise UserError(f"without an id, {3 * len(ORDER)} keypoints and 4 numbers of a bbox")
    *places, seen = values.reshape(-1, 3).T  # (17,) each
    labelled = seen > 0
    known = np.concatenate([*(place[labelled] for place in places), box])
    if not (np.abs(known) < _FARTHEST).all():  # also of NaN
        raise UserError("keypoints or bbox far outside any picture")
    if not labelled.any():
        return None
    points = np.full((len(KEYPOINTS), 2), np.nan)
    # Whole numbers are pixels, whose middles are half a pixel further on.
    points[PLACES] = np.where(labelled[:, None], np.stack(places, axis=1) + 0.5, np.nan)
    points[_NECK] = points[_SHOULDERS].mean(axis=0)
    left, top, width, height = box.tolist()
    return Person(number, points, int(labelled.sum()), (left, top, width, height))
