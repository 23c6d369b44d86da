"""Clips of videos with annotations of every frame, such as depth or segmentation."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from delvm.data.sources._io.video import VIDEO_SUFFIXES, Clip
from delvm.data.sources._io.walk import walk
from delvm.data.sources.annotated.settings import AnnotatedSource, folders_with
from delvm.data.sources.annotated.streams import (
    LAYOUTS,
    arrange,
    layout_errors,
    open_streams,
    read_streams,
)
from delvm.data.sources.base import IMAGE_SUFFIXES
from delvm.data.sources.clips_base import VideoItem
from delvm.data.sources.video import Video, find_videos
from delvm.data.types import ImageArray


@dataclass
class AnnotatedVideo(Video, AnnotatedSource):
    """Videos with videos of annotations: PATH/image/NAME and PATH/depth/NAME, or NAME/image.

    NAME is a video file or a directory of frames on either side. LVM (Bai et al., arXiv 2312.00785)
    makes two sentences of a clip: all frames and then all annotations, and frame by frame.

    Attributes:
        clip_length: frames per clip; an example has as many images for each annotation too.
        layouts: any of separate (task `video_separate`: all frames, then all annotations of the
            first kind, and so on) and interleaved (`video_interleaved`: a frame, its annotations,
            the next frame).
    """

    name: ClassVar[str] = "annotated_video"
    clip_length: int = 4
    layouts: list[str] = field(default_factory=lambda: list(LAYOUTS))

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        return super().validate() + layout_errors(self.layouts)

    def found_annotations(self) -> list[str]:
        """The annotations in the order of an example."""
        return self._found[0]

    def tasks(self) -> list[str]:
        """One for each layout."""
        return [f"video_{layout}" for layout in self.layouts]

    def arrange(self, task: str, frames: tuple[ImageArray, ...]) -> tuple[ImageArray, ...]:
        """The frames of a clip and their annotations in the order of a layout."""
        return arrange(frames, task.removeprefix("video_"))

    def nothing_found(self) -> str:
        """What is missing from the path, for the error if nothing was found."""
        return f"contains neither {self.image}/NAME nor NAME/{self.image} (source.image)"

    def _clips_from(self, video: VideoItem, stride: int, start: int) -> Iterator[Clip | str]:
        annotations = self.found_annotations()
        streams = open_streams(
            self, [self.root() / path for path in (video.path, *video.annotations)], annotations
        )
        if isinstance(streams, str):
            yield streams
            return
        step = self.frame_step(stride)
        frames = read_streams(self, streams, stride, start, step)
        yield from self.split_frames(frames, lambda frame: frame, stride // step)

    def videos(self) -> Iterator[VideoItem]:
        """Every video with its annotations, sorted by path."""
        yield from self._found[1]

    @cached_property
    def _found(self) -> tuple[list[str], list[VideoItem]]:
        """The annotations, and every video."""
        root = self.root()
        if (root / self.image).is_dir():
            return self._annotations_by_folder(root)
        return self._folders_by_video(root)

    def _annotations_by_folder(self, root: Path) -> tuple[list[str], list[VideoItem]]:
        """PATH/image/NAME and PATH/depth/NAME."""
        folders = folders_with(root, VIDEO_SUFFIXES | IMAGE_SUFFIXES)
        self.check_annotations(folders)
        annotations = self.choose_annotations(folders)
        sides = {each: dict(find_videos(root / each)) for each in (self.image, *annotations)}
        videos = []
        for name in [*dict.fromkeys(name for side in sides.values() for name in side)]:
            paths = {
                folder: f"{folder}/{side[name]}".removesuffix("/.")
                for folder, side in sides.items()
                if name in side
            }
            missing = [folder for folder in sides if folder not in paths]
            path, *others = paths.values()
            error = f"missing {', '.join(missing)}" if missing else None
            shown = self.image if name == "." else name
            videos.append(VideoItem(shown, path, shown, error, () if error else tuple(others)))
        return annotations, videos

    def _folders_by_video(self, root: Path) -> tuple[list[str], list[VideoItem]]:
        """NAME/image and NAME/depth, each a video file or a directory of frames."""
        streams = sorted(
            path.relative_to(root)
            for path in walk(root)
            if (path.name == self.image and path.is_dir())
            or (path.stem == self.image and _is_video(path))
        )
        siblings = {path.parent: _streams_in(root / path.parent) for path in streams}
        if not siblings:
            return [], []
        found = {
            name for names in siblings.values() for name, path in names.items() if _has_frames(path)
        }
        self.check_annotations(found)
        annotations = self.choose_annotations(found)
        videos = []
        for folder, names in siblings.items():
            missing = [each for each in annotations if each not in names]
            error = f"missing {', '.join(missing)}" if missing else None
            paths = [] if error else [names[each].relative_to(root) for each in annotations]
            name = folder.as_posix()
            path = names[self.image].relative_to(root).as_posix()
            others = tuple(each.as_posix() for each in paths)
            videos.append(VideoItem(name, path, name, error, others))
        return annotations, videos


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()


def _has_frames(path: Path) -> bool:
    """Whether it is a video file, or a directory of images; others may hold poses of the camera."""
    return not path.is_dir() or any(
        each.suffix.lower() in IMAGE_SUFFIXES and each.name[0] != "." for each in path.iterdir()
    )


def _streams_in(folder: Path) -> dict[str, Path]:
    """Name -> path of the video files and directories in a directory, hidden ones left out."""
    paths = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    files = {path.stem: path for path in paths if _is_video(path)}
    return files | {path.name: path for path in paths if path.is_dir()}
