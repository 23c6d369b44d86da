"""The keypoint annotations of COCO, read from JSON that is not trusted."""

import json
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from delvm.data.file_kinds import describe_file
from delvm.data.types import RejectedItem
from delvm.errors import UserError
from delvm.tasks.oks import KEYPOINTS as COCO_KEYPOINTS
from delvm.tasks.pose import COCO_INDICES, KEYPOINTS, Points

# In COCO's own order. The neck, which it does not annotate, is the middle of the shoulders.
COCO_TO_OPENPOSE = COCO_INDICES
_NECK = KEYPOINTS.index("neck")
_SHOULDERS = [KEYPOINTS.index(f"{side}_shoulder") for side in ("right", "left")]
_MAX_COORDINATE = 100_000  # pixels; no image is larger


class Person(NamedTuple):
    """One annotation.

    Attributes:
        id: as in the file.
        points: (18, 2) x and y in pixels, NaN if not labeled.
        num_labeled: number of labeled keypoints, of COCO's 17.
        box: left, top, width and height in pixels.
    """

    id: int
    points: Points
    num_labeled: int
    box: tuple[float, float, float, float]

    @property
    def side(self) -> float:
        """The longer side of the box."""
        return max(self.box[2:])


class AnnotatedImage(NamedTuple):
    """An image.

    Attributes:
        file: path below the directory of its split.
        size: width and height in pixels, which the keypoints refer to.
        people: in the order of the annotations.
    """

    file: str
    size: tuple[int, int]
    people: list[Person]


@lru_cache(maxsize=4)
def read_annotations(path: Path, mtime_ns: int) -> list[AnnotatedImage | RejectedItem]:
    """Everything in person_keypoints_SPLIT2017.json (200 MB), read once per process.

    Crowds and people without a labeled keypoint are left out: COCO has no pose of them.

    Args:
        path: Of the file.
        mtime_ns: When it was modified, so that a modified file is read again.

    Returns:
        Images in the order of their ids, then the entries of the file that were rejected.

    Raises:
        UserError: the JSON is invalid, or has another layout.
    """
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = describe_file(path) or error
        raise UserError(f"annotations {path} cannot be read: {reason}") from None
    content = value if isinstance(value, dict) else {}
    entries, annotations = content.get("images"), content.get("annotations")
    if not isinstance(entries, list) or not isinstance(annotations, list):
        raise UserError(f"annotations {path} are not an object with lists images and annotations")
    rejects: list[RejectedItem] = []
    images = _parse_images(entries, rejects)
    ids: set[int] = set()
    for index, annotation in enumerate(annotations):
        try:
            person = _parse_person(annotation)
            image = annotation["image_id"]
            if image not in images:
                raise UserError(f"of image {str(image)[:40]}, which is not listed")
            if person and person.id in ids:
                raise UserError(f"duplicate id {person.id}")
        except (UserError, TypeError, KeyError) as error:
            reason = str(error) if isinstance(error, UserError) else f"cannot be read: {error!r}"
            rejects.append(RejectedItem(f"annotation {index}", reason))
            continue
        if person:
            ids.add(person.id)
            images[image].people.append(person)
    return [images[number] for number in sorted(images)] + rejects


def _parse_images(entries: list[Any], rejects: list[RejectedItem]) -> dict[int, AnnotatedImage]:
    """Images by id; invalid entries are appended to `rejects`."""
    images: dict[int, AnnotatedImage] = {}
    files: set[str] = set()
    for index, entry in enumerate(entries):
        match entry:
            case {"id": int(number), "file_name": str(file), "width": int(w), "height": int(h)}:
                if not file or ".." in PurePosixPath(file).parts or file[0] == "/" or "\\" in file:
                    reason = "its path leads out of the data set"
                elif number in images or file in files:
                    reason = "duplicate id or file_name"
                else:
                    files.add(file)
                    images[number] = AnnotatedImage(file, (w, h), [])
                    continue
            case _:
                reason = "without id, file_name, width and height"
        rejects.append(RejectedItem(f"image {index}", reason))
    return images


def _parse_person(annotation: Any) -> Person | None:
    """The person of an annotation, or None for a crowd or one without keypoints.

    Raises:
        UserError: its keypoints or box are not as COCO writes them.
        TypeError, KeyError: it has another layout.
    """
    if annotation.get("iscrowd") if isinstance(annotation, dict) else False:
        return None
    number = annotation["id"]
    try:
        values = np.asarray(annotation["keypoints"], float)
        box = np.asarray(annotation["bbox"], float)
    except (ValueError, OverflowError):
        raise UserError("keypoints or bbox that are not numbers") from None
    if type(number) is not int or values.shape != (3 * len(COCO_KEYPOINTS),) or box.shape != (4,):
        raise UserError(
            f"without an id, {3 * len(COCO_KEYPOINTS)} keypoint values and 4 numbers of a bbox"
        )
    *coordinates, visibility = values.reshape(-1, 3).T  # (17,) each
    labeled = visibility > 0
    known = np.concatenate([*(axis[labeled] for axis in coordinates), box])
    if not (np.abs(known) < _MAX_COORDINATE).all():  # also of NaN
        raise UserError("keypoints or bbox far outside any image")
    if not labeled.any():
        return None
    points = np.full((len(KEYPOINTS), 2), np.nan)
    # Integers are pixel indices, whose centers are half a pixel further.
    centers = np.stack(coordinates, axis=1) + 0.5
    points[COCO_TO_OPENPOSE] = np.where(labeled[:, None], centers, np.nan)
    points[_NECK] = points[_SHOULDERS].mean(axis=0)
    left, top, width, height = box.tolist()
    return Person(number, points, int(labeled.sum()), (left, top, width, height))
