"""Views all around an object, in the layout of CO3D (Common Objects in 3D, version 2)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from delvm.data.sources._io.annotation_images import AnnotationKind
from delvm.data.sources._io.video import TooShort, natural_sort_key
from delvm.data.sources._io.walk import walk
from delvm.data.sources.annotated.settings import AnnotatedSource
from delvm.data.sources.annotated.streams import (
    LAYOUTS,
    Stream,
    arrange,
    layout_errors,
    open_streams,
    read_frame,
)
from delvm.data.sources.clips_base import ClipSource, NamedClip, VideoItem
from delvm.data.types import ImageArray
from delvm.errors import UserError, did_you_mean
from delvm.progress import log
from delvm.untrusted import parse_json

VIEWS = "object_views"
SET_LISTS = "set_lists"
CO3D_KINDS = {
    "masks": AnnotationKind.mask,  # how likely a pixel is of the object
    "depth_masks": AnnotationKind.mask,
    "depths": AnnotationKind.depth_float16,
}


@dataclass
class Co3d(AnnotatedSource, ClipSource):
    """PATH/CATEGORY/SEQUENCE/images/*.jpg: a video that goes around one object.

    Also PATH/CATEGORY/OBJECT/SEQUENCE/images, with all sequences of an object in one split.
    Cameras, point clouds and the annotations in frame_annotations.jgz are not read.

    In place of a frame that is black, whose mask is black, or that lacks an annotation, the next
    one is taken that has all. In the sequences of its test sets, CO3D has black images for the
    frames that its challenge asks for (github.com/facebookresearch/co3d/issues/58), masks are empty
    where the detector did not find the object, and not all frames have a depth map.

    Attributes:
        image, annotations: directories in that of a sequence: images, and any of masks, depths and
            depth_masks (or others), in the order of an example; [] is the images alone.
        layouts: with annotations, any of separate (task `object_views_separate`: all views, then
            all annotations) and interleaved (`object_views_interleaved`).
        num_views: views per example, evenly spaced over the sequence.
        examples_per_sequence: examples of each sequence, which begin at other views.
        categories: those to read; [] is all.
        set_lists: whether sequences go to the splits of CATEGORY/set_lists/*.json (test, and dev as
            val) and not to random ones.
    """

    name: ClassVar[str] = "co3d"
    image: str = "images"
    layouts: list[str] = field(default_factory=lambda: list(LAYOUTS))
    num_views: int = 8
    examples_per_sequence: int = 1
    categories: list[str] = field(default_factory=list)
    set_lists: bool = False

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate() + layout_errors(self.layouts)
        for key, least in (("num_views", 2), ("examples_per_sequence", 1)):
            if (value := getattr(self, key)) < least:
                errors.append(f"{key}={value} is below {least}: set source.{key}={least}")
        if len(set(self.categories)) < len(self.categories):
            errors.append(f"categories=[{','.join(self.categories)}] has a duplicate: remove it")
        return errors

    def found_annotations(self) -> list[str]:
        """The annotations, none of which is read unless it is set."""
        return self.annotations

    def kind_of(self, annotation: str) -> AnnotationKind:
        """What the pixels of annotations are; of those of CO3D it is known."""
        if annotation in CO3D_KINDS and annotation not in self.kinds:
            return CO3D_KINDS[annotation]
        return super().kind_of(annotation)

    def tasks(self) -> list[str]:
        """`object_views`, or one for each layout."""
        return [f"{VIEWS}_{layout}" for layout in self.layouts] if self.annotations else [VIEWS]

    def arrange(self, task: str, frames: tuple[ImageArray, ...]) -> tuple[ImageArray, ...]:
        """The views and their annotations in the order of a layout."""
        return arrange(frames, task.removeprefix(f"{VIEWS}_") if self.annotations else "separate")

    def nothing_found(self) -> str:
        """What is missing from the path, for the error if nothing was found."""
        return f"contains no CATEGORY/SEQUENCE/{self.image}/*.jpg"

    def videos(self) -> Iterator[VideoItem]:
        """Every sequence with its annotations, sorted by path."""
        yield from self._sequences

    @cached_property
    def _sequences(self) -> list[VideoItem]:
        root = self.root()
        folders = (
            path.relative_to(root).parent
            for path in walk(root)
            if path.name == self.image and path.is_dir()
        )
        found = sorted(folders, key=lambda folder: natural_sort_key(folder.as_posix()))
        # PATH may also be that of a category.
        names = {folder.parts[0] for folder in found if len(folder.parts) > 1}
        for category in self.categories:
            if category not in names:
                raise UserError(
                    f"source.categories has '{category}', not a category of source.path="
                    f"{self.path}: {did_you_mean(category, sorted(names))}"
                )
        chosen = [each for each in found if not self.categories or each.parts[0] in self.categories]
        if left := len(found) - len(chosen):
            log(f"prepare: {left:,} sequences of other categories, left out")
        if deep := [each for each in chosen if self.set_lists and len(each.parts) > 2]:
            raise UserError(
                f"source.set_lists=true is for CATEGORY/SEQUENCE/{self.image}, source.path="
                f"{self.path} contains {deep[0]}/{self.image}: set source.set_lists=false"
            )
        if self.annotations and chosen:
            self.check_annotations(
                path.name for folder in chosen for path in (root / folder).iterdir()
            )
        return [self._sequence(root, folder) for folder in chosen]

    def _sequence(self, root: Path, folder: Path) -> VideoItem:
        missing = [name for name in self.annotations if not (root / folder / name).is_dir()]
        error = f"missing {', '.join(missing)}" if missing else None
        annotations = tuple((folder / name).as_posix() for name in self.annotations)
        group = Path(*folder.parts[:2]).as_posix()
        return VideoItem(
            folder.as_posix(),
            (folder / self.image).as_posix(),
            group,
            error,
            () if error else annotations,
        )

    def split_of(self, key: str, native_split: str | None = None) -> str:
        """The split of an object: that of the set lists of its category, or a random one."""
        if self.set_lists:
            category, _, sequence = key.rpartition("/")
            splits = self._native_splits(category)
            native_split = splits.get(sequence, "train")
            if native_split == "train" and "val" in splits.values():
                return "train"
        return super().split_of(key, native_split)

    def _native_splits(self, category: str) -> dict[str, str]:
        """The split of each sequence of a category that is not in train.

        Raises:
            UserError: there are no set lists, or they have another format.
        """
        if category not in self._splits:
            folder = self.root() / category / SET_LISTS
            files = sorted(folder.glob("set_lists_*.json")) if folder.is_dir() else []
            if not files:
                raise UserError(
                    f"{folder} contains no set_lists_*.json: set source.set_lists=false for a "
                    "random split"
                )
            splits: dict[str, str] = {}
            for split, word in (("val", "_dev"), ("test", "_test")):
                for file in files:
                    if word in file.stem:
                        splits |= dict.fromkeys(read_set_list(file), split)
            self._splits[category] = splits
        return self._splits[category]

    @cached_property
    def _splits(self) -> dict[str, dict[str, str]]:
        return {}

    def clips(self, key: str, video: VideoItem) -> Iterator[NamedClip | str]:
        """The examples of a sequence, and a line for each error."""
        paths = [self.root() / path for path in (video.path, *video.annotations)]
        streams = open_streams(self, paths, self.annotations)
        if isinstance(streams, str):
            yield streams
            return
        errors: list[str] = []
        count = len(streams[0].files)
        if count < self.num_views:
            yield TooShort(f"too short: {count} frames, an example has {self.num_views} views")
            return
        for number in range(self.examples_per_sequence):
            views = self._views(streams, count, number)
            if isinstance(views, str):
                errors.append(views)
            else:
                yield NamedClip(f"{key}-{number}", views)
        yield from dict.fromkeys(errors)

    def _views(
        self, streams: list[Stream], count: int, number: int
    ) -> tuple[ImageArray, ...] | str:
        """The views of an example, or why it is rejected.

        Those of several examples of one sequence lie evenly between each other.
        """
        steps, example = self.num_views, number / self.examples_per_sequence
        positions = [int((view + example) * count / steps) for view in range(steps)]
        views: list[ImageArray] = []
        for first, following in pairwise([*positions, count]):
            view = self._view(streams, range(first, following))
            if isinstance(view, str):
                return view
            views.append(view)
        return tuple(views)

    def _view(self, streams: list[Stream], numbers: range) -> ImageArray | str:
        """The first of these frames that CO3D shows and annotates, or why there is none."""
        kinds = [None, *map(self.kind_of, self.annotations)]
        never_black = [n for n, kind in enumerate(kinds) if kind in (None, AnnotationKind.mask)]
        errors = []
        for number in numbers:
            missing = [each.annotation for each in streams if each.positions[number] is None]
            if missing:
                errors.append(f"{missing[0]}: missing")
                continue
            frame = read_frame(self, streams, number)
            if isinstance(frame, str):
                return f"frame {number}: {frame}"
            if frame[never_black].any(axis=(1, 2, 3)).all():
                return frame
            errors.append("black, or its mask is")
        return f"frame {numbers[0]}: {errors[0]}, and no other up to the next view can replace it"


def read_set_list(path: Path) -> set[str]:
    """The sequences that a set list has under "test".

    Raises:
        UserError: the file cannot be read, or has another format.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    frames = parse_json(text, f"set list {path}").get("test", [])
    if not isinstance(frames, list) or not all(
        isinstance(frame, list) and frame and isinstance(frame[0], str) for frame in frames
    ):
        raise UserError(f'set list {path}: "test" is not a list of [sequence, number, path]')
    return {frame[0] for frame in frames}
