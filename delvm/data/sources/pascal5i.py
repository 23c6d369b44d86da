"""Pascal-5i: few-shot segmentation of the classes of Pascal VOC, in its four folds.

Shaban et al., "One-Shot Learning for Semantic Segmentation", BMVC 2017; the data set is that of
Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from delvm.data.image_io import aligned, open_stored
from delvm.data.sources.base import (
    RawSource,
    chunks_of,
    items_of,
    require_same_size,
    sanitize_key,
    to_reject,
)
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError
from delvm.tasks import foreground

_VOID = 255  # the border of objects
_LISTS = {"train": "train", "val": "val", "test": "val"}  # split -> list of the data set


@dataclass
class Pascal5i(RawSource):
    """JPEGImages/*.jpg, SegmentationClass/*.png, ImageSets/Segmentation/{train,val}.txt.

    An example is an image and the objects of one of its classes. Those of the five classes that a
    fold holds out are in "test", and in "val" too: as in the literature, prompts are of the same
    images as the queries, but never of the query itself. "train" has the other fifteen classes, of
    the images in train.txt. Borders (255) count as background.

    Attributes:
        folds: of 0 to 3, each a task of its own (`foreground_fold0`).
        annotations: directory of the masks: SegmentationClass, or SegmentationClassAug with the
            additional ones of SBD.
    """

    name: ClassVar[str] = "pascal5i"
    folds: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    annotations: str = "SegmentationClass"

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        if (
            not self.folds
            or not set(self.folds) <= set(range(foreground.NUM_FOLDS))
            or len(set(self.folds)) < len(self.folds)
        ):
            errors.append(
                f"folds={self.folds} is not a list of some of 0, 1, 2, 3: set "
                "source.folds=[0,1,2,3]"
            )
        return errors

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Numbered chunks of 1000 images each; how many examples they make is not known before."""
        self.check(split)
        root = self._voc_root
        names = self._names[_LISTS[split]]
        chunks = [
            SourceChunk(chunk.name, 0, chunk.inputs)
            for chunk in chunks_of(names, root, lambda name: self._files(name))
        ]
        return {foreground.FOLDS[fold].name: chunks for fold in self.folds}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """An example for each class of the split that an image shows."""
        fold = next(i for i, each in enumerate(foreground.FOLDS) if each.name == task)
        held_out = set(foreground.fold_classes(fold))
        for name in items_of(chunk, self._names[_LISTS[split]]):
            opened = self._open(name)
            if isinstance(opened, RejectedItem):
                yield opened
                continue
            image, labels = opened
            for number in np.unique(labels):
                if not 1 <= number <= len(foreground.CLASSES):
                    continue
                category = foreground.CLASSES[number - 1]
                if (category in held_out) == (split != "train"):
                    mask = Image.fromarray(foreground.render(labels == number))
                    pair = self.to_square(image), self.to_square(mask, labels=True)
                    yield Example(f"{category}-{sanitize_key(name)}", task, pair)

    def _open(self, name: str) -> tuple[Image.Image, np.ndarray] | RejectedItem:
        photo, mask = (path.relative_to(self._voc_root).as_posix() for path in self._files(name))
        label = photo
        try:
            stored = open_stored(self._voc_root / photo, photo)
            label = mask
            labels = open_stored(self._voc_root / mask, mask, _class_ids)
            images = aligned(stored, labels)
            require_same_size(images)
        except UserError as error:
            return to_reject(label, error)
        return images[0], np.asarray(images[1])[:, :, 0]

    def _files(self, name: str) -> tuple[Path, Path]:
        """The photograph and the mask of an image."""
        root = self._voc_root
        return root / "JPEGImages" / f"{name}.jpg", root / self.annotations / f"{name}.png"

    @cached_property
    def _voc_root(self) -> Path:
        """The directory with JPEGImages: the root, or VOCdevkit/VOC2012 below it."""
        root = self.root()
        for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
            if (folder / "JPEGImages").is_dir():
                return folder
        raise UserError(
            f"source.path={self.path} has no JPEGImages: set source.path to VOCdevkit/VOC2012"
        )

    @cached_property
    def _names(self) -> dict[str, list[str]]:
        """The images of each list of the data set, shuffled, so that the first show all classes."""
        found = {}
        for part in ("train", "val"):
            path = self._voc_root / "ImageSets" / "Segmentation" / f"{part}.txt"
            try:
                names = dict.fromkeys(path.read_text("utf-8").split())
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"the list of images {path} cannot be read: {error}") from None
            if wrong := [name for name in names if "/" in name or "\\" in name]:
                raise UserError(f"{path} has {wrong[0]!r}, which is not the name of an image")
            found[part] = sorted(names, key=lambda name: (self.uniform("order", name), name))
        return found


def _class_ids(image: Image.Image) -> Image.Image:
    """The ids of the classes, of an image with a palette or in gray.

    Raises:
        ValueError: it has another mode, or other ids.
    """
    if image.mode not in ("P", "L"):
        raise ValueError(f"its mode is {image.mode}, not that of ids of classes")
    ids = np.asarray(image)
    unknown = set(np.unique(ids).tolist()) - {*range(len(foreground.CLASSES) + 1), _VOID}
    if unknown:
        raise ValueError(f"{min(unknown)} is not the id of a class")
    return Image.fromarray(ids).convert("RGB")
