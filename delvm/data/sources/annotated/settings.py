"""What all sources with annotations share: which directories they are in, and what they hold."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delvm.data.image_io import all_aligned
from delvm.data.resizing import same_shape
from delvm.data.sources._io.annotation_images import (
    AnnotationKind,
    OpenedAnnotation,
    guess_kind,
    open_annotation,
)
from delvm.data.sources._io.walk import walk
from delvm.data.sources.base import RawSource
from delvm.data.types import ImageArray
from delvm.errors import UserError, did_you_mean
from delvm.progress import log


def folders_with(root: Path, suffixes: Collection[str]) -> list[str]:
    """The directories directly below a root that contain such files, hidden ones left out.

    Archives made on a Mac have a directory __MACOSX with a hidden file for each file.
    """
    return [
        folder.name
        for folder in root.iterdir()
        if folder.is_dir()
        and folder.name[0] != "."
        and any(path.suffix.lower() in suffixes and path.name[0] != "." for path in walk(folder))
    ]


@dataclass
class AnnotatedSource(RawSource):
    """A data set of images or videos with annotations in directories of their own.

    Attributes:
        image: the directory of what is annotated.
        annotations: the directories of annotations, in the order of an example; without any, all
            others next to that of the images.
        kinds: directory -> what its pixels are, one of `AnnotationKind`; of others it is taken from
            the name: *depth*, *dispar*, *normal*, *seg*, *label* or *mask*.
        depth_range: smallest and largest value that is shown of depth in more than 8 bits, in the
            unit of the files; without any, the range of each image, or of all frames of a video.
    """

    image: str = "image"
    annotations: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    depth_range: list[float] = field(default_factory=list)

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        if not self.image or self.image in self.annotations:
            errors.append(
                f"image='{self.image}' is not a directory of its own: set source.image=DIR and "
                "source.annotations=[DIR]"
            )
        if len(set(self.annotations)) < len(self.annotations):
            errors.append(f"annotations=[{','.join(self.annotations)}] has a duplicate: remove it")
        for folder, kind in self.kinds.items():
            if kind not in list(AnnotationKind):
                valid = did_you_mean(kind, list(AnnotationKind))
                errors.append(f"kinds.{folder}={kind} is unknown: {valid}")
            if self.annotations and folder not in self.annotations:
                valid = did_you_mean(folder, self.annotations)
                errors.append(f"kinds has '{folder}', not one of source.annotations: {valid}")
        if self.depth_range and not (
            len(self.depth_range) == 2 and 0 < self.depth_range[0] < self.depth_range[1]
        ):
            errors.append(
                f"depth_range={self.depth_range} is not a range above 0: set "
                "source.depth_range=[NEAR,FAR], or [] for that of each image"
            )
        return errors

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """Every setting but size and seed, with the annotations that were found and their kinds."""
        found = self.found_annotations()
        kinds = {each: self.kind_of(each).value for each in found}
        return super().settings(split, task) | {"annotations": found, "kinds": kinds}

    def found_annotations(self) -> list[str]:
        """The directories of annotations in the order of an example.

        Raises:
            UserError: there are none, or one that is set does not exist.
        """
        raise NotImplementedError

    def kind_of(self, annotation: str) -> AnnotationKind:
        """What the pixels of the annotations in a directory are."""
        return AnnotationKind(self.kinds.get(annotation) or guess_kind(annotation))

    def choose_annotations(self, found: Iterable[str]) -> list[str]:
        """The directories of annotations in the order of an example; logs what they hold.

        Args:
            found: names of the directories next to that of the images.

        Raises:
            UserError: there are none, or `kinds` has others.
        """
        chosen = self.annotations or sorted({*found} - {self.image})
        if not chosen:
            raise UserError(
                f"source.path={self.path} contains no annotations next to {self.image}: set "
                "source.annotations=[DIR]"
            )
        for folder in self.kinds:
            if folder not in chosen:
                valid = did_you_mean(folder, chosen)
                raise UserError(f"source.kinds has '{folder}', which does not exist: {valid}")
        kinds = ", ".join(f"{each} ({self.kind_of(each)})" for each in chosen)
        log(f"prepare: annotations {kinds}; for others set source.kinds={{{chosen[0]}: KIND}}")
        return chosen

    def check_annotations(self, found: Iterable[str]) -> None:
        """Refuse a directory of annotations that is set, and does not exist anywhere.

        Args:
            found: names of the directories next to those of the images.

        Raises:
            UserError: its name, and the nearest one.
        """
        names = sorted({*found} - {self.image})
        for annotation in self.annotations:
            if annotation not in names:
                raise UserError(
                    f"source.annotations has '{annotation}', which is nowhere next to {self.image} "
                    f"in source.path={self.path}: {did_you_mean(annotation, names)}"
                )

    def open_file(
        self,
        file: Path,
        name: str,
        annotation: str | None,
        depth_range: tuple[float, float] | None = None,
        video_ids: Sequence[int] = (),
    ) -> OpenedAnnotation:
        """Open an image, or the annotation of a directory.

        Args:
            file: its path.
            name: what to call it in messages.
            annotation: the directory; None for an image.
            depth_range: that is shown where none is set; None: that of the file.
            video_ids: of labels in a video, as for `labels_to_rgb`.

        Raises:
            UserError: it cannot be opened, or has other values than its kind.
        """
        kind = None if annotation is None else self.kind_of(annotation)
        if self.depth_range:
            depth_range = (self.depth_range[0], self.depth_range[1])
        return open_annotation(file, name, kind, depth_range, video_ids)

    def squares(self, opened: Sequence[OpenedAnnotation]) -> tuple[ImageArray, ...]:
        """An image and its annotations as squares.

        They may differ in resolution, as the output of networks does, but not in shape.

        Raises:
            UserError: their shapes differ, or normals would have to be turned.
        """
        images = all_aligned([each.stored for each in opened])
        for image, each in zip(images, opened, strict=True):
            if not same_shape(images[0].size, image.size):
                (width, height), (other_width, other_height) = images[0].size, image.size
                raise UserError(
                    f"images of one example have different shapes: {width} x {height} and "
                    f"{other_width} x {other_height} pixels"
                )
            turned = image is not each.stored.pixels
            if each.kind is AnnotationKind.normals and turned:
                raise UserError("normals that EXIF asks to turn: save them upright")
        return tuple(
            self.to_square(image, labels=each.unsmoothed)
            for image, each in zip(images, opened, strict=True)
        )
