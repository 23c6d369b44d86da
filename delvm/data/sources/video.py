"""Videos as clips: files, folders of frames, and HD-VILA's cut videos."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from delvm.data.sources._io.video import (
    VIDEO_SUFFIXES,
    Clip,
    TooShort,
    natural_sort_key,
    read_frame_folder,
    read_video,
    split_into_clips,
)
from delvm.data.sources._io.walk import walk
from delvm.data.sources.base import IMAGE_SUFFIXES
from delvm.data.sources.clips_base import ClipSource, NamedClip, VideoItem
from delvm.data.types import ImageArray

T = TypeVar("T")


@dataclass
class Video(ClipSource):
    """Any directory with videos, with directories of frames, or with both.

    A video is divided into consecutive clips, none of which spans a cut. The frames before a cut,
    or at the end, that do not fill a clip are dropped; a video without any clip is rejected.

    Attributes:
        clip_length: frames per clip.
        stride: every `stride`-th frame of the video is taken.
        strides: several strides instead, each of which makes clips of the video; the keys of their
            clips name the stride.
        random_start: whether the first clip begins at a random frame, less than a clip from the
            start of the video; of a video too short for that, at its start.
        overlap: last frames of a clip that are also the first of the next.
        scene_cut_threshold: distance of two frames, in [0, 1], above which a scene ends; 0 does
            not look for cuts.
        cut_stride: cuts are looked for between frames that are at most so far apart, since within a
            larger `stride` a moving camera looks like a cut; 0: between the frames of a clip alone.
    """

    name: ClassVar[str] = "video"
    clip_length: int = 8
    stride: int = 4
    strides: list[int] = field(default_factory=list)
    random_start: bool = False
    overlap: int = 0
    scene_cut_threshold: float = 0.45
    cut_stride: int = 5

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        for key, least in (("clip_length", 2), ("stride", 1), ("overlap", 0), ("cut_stride", 0)):
            if (value := getattr(self, key)) < least:
                errors.append(f"{key}={value} is below {least}: set source.{key}={least}")
        if any(stride < 1 for stride in self.strides) or len(set(self.strides)) < len(self.strides):
            errors.append(
                f"strides={self.strides} has one below 1, or a duplicate: set source.strides=[4,16]"
            )
        if self.overlap >= self.clip_length:
            errors.append(
                f"overlap={self.overlap} is not below source.clip_length={self.clip_length}: set "
                "source.overlap=0"
            )
        if not 0 <= self.scene_cut_threshold <= 1:
            errors.append(
                f"scene_cut_threshold={self.scene_cut_threshold} is not in [0, 1]: set "
                "source.scene_cut_threshold=0.45"
            )
        return errors

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """Every setting but size and seed; `cut_stride` only where it makes a difference."""
        settings = super().settings(split, task)
        strides = self.strides or [self.stride]
        if all(self.frame_step(stride) == stride for stride in strides):
            del settings["cut_stride"]
        return settings

    def frame_step(self, stride: int) -> int:
        """How far apart frames are read: the largest divisor of a stride up to `cut_stride`."""
        if not self.scene_cut_threshold or not 0 < self.cut_stride < stride:
            return stride
        return next(step for step in range(self.cut_stride, 0, -1) if stride % step == 0)

    def tasks(self) -> list[str]:
        """Its only task."""
        return ["video"]

    def clips(self, key: str, video: VideoItem) -> Iterator[NamedClip | str]:
        """The clips of a video of all strides, and a line for each error."""
        errors: list[str] = []
        too_short: list[str] = []
        num_clips = 0
        for stride in self.strides or [self.stride]:
            name = f"{key}-s{stride}" if self.strides else key
            for each in self._clips(video, stride):
                if isinstance(each, str):
                    (too_short if isinstance(each, TooShort) else errors).append(each)
                else:
                    num_clips += 1
                    yield NamedClip(f"{name}-{each.start:06d}", each.frames)
        if not num_clips:  # else it is too short for some of the strides alone
            errors += too_short
        yield from dict.fromkeys(errors)

    def _clips(self, video: VideoItem, stride: int) -> Iterator[Clip | str]:
        """The clips of one stride, and errors."""
        start = 0
        if self.random_start:
            start = int(
                self.rng("start", video.path, stride).integers(0, stride * self.clip_length)
            )
        for each in self._clips_from(video, stride, start):
            if start and isinstance(each, TooShort):
                yield from self._clips_from(video, stride, 0)
            else:
                yield each

    def _clips_from(self, video: VideoItem, stride: int, start: int) -> Iterator[Clip | str]:
        path = self.root() / video.path
        step = self.frame_step(stride)
        frames = (read_frame_folder if path.is_dir() else read_video)(path, step, start)
        return self.split_frames(frames, self.to_square, stride // step)

    def split_frames(
        self,
        frames: Iterable[tuple[int, T | str]],
        to_square: Callable[[T], ImageArray],
        every: int,
    ) -> Iterator[Clip | str]:
        """Frames of one video, of which one in `every` may be in a clip, as clips."""
        return split_into_clips(
            frames, to_square, self.clip_length, self.overlap, self.scene_cut_threshold, every
        )

    def nothing_found(self) -> str:
        """What is missing from the path, for the error if nothing was found."""
        return "contains neither videos nor directories of frames"

    def videos(self) -> Iterator[VideoItem]:
        """Every video below the root, sorted by path."""
        for name, path in find_videos(self.root()):
            yield VideoItem(name, path, path)


def find_videos(root: Path) -> Iterator[tuple[str, str]]:
    """(name, path) below a directory of every video file and directory of frames, sorted by path.

    The name is the path without its extension, unless another has that name.
    """
    files, folders = set[str](), set[str]()
    for path in walk(root):
        if path.name.startswith("."):
            continue
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
            files.add(path.relative_to(root).as_posix())
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            folders.add(path.parent.relative_to(root).as_posix())
    stems = Counter([*(Path(file).with_suffix("").as_posix() for file in files), *folders])
    for path_name in sorted(files | folders, key=natural_sort_key):
        is_file = path_name in files
        stem = Path(path_name).with_suffix("").as_posix() if is_file else path_name
        yield stem if stems[stem] == 1 else path_name, path_name
