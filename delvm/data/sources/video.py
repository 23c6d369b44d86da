"""Videos as clips: files, folders of frames, and HD-VILA's cut videos."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple

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
from delvm.data.sources.base import IMAGE_SUFFIXES, RawSource, files_digest, to_bytes, unique_keys
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError

VIDEOS_PER_CHUNK = 100


class VideoItem(NamedTuple):
    """A video, or why it is rejected.

    Attributes:
        name: its path below the root; without the extension unless two differ only in that.
        path: below the root: a file, or a directory of frames.
        group: the original video it was cut from; all its cuts are in one split.
        error: why it is rejected.
    """

    name: str
    path: str
    group: str
    error: str | None = None


@dataclass
class Video(RawSource):
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
    """

    name: ClassVar[str] = "video"
    clip_length: int = 8
    stride: int = 4
    strides: list[int] = field(default_factory=list)
    random_start: bool = False
    overlap: int = 0
    scene_cut_threshold: float = 0.45

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        for key, least in (("clip_length", 2), ("stride", 1), ("overlap", 0)):
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

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Chunks of 100 videos each, with names that identify the videos."""
        self.check(split)
        root = self.root()
        return {
            "video": [
                SourceChunk(
                    name, inputs=files_digest(root, (root / video.path for _, video in videos))
                )
                for name, videos in self._chunks(split).items()
            ]
        }

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The clips of the videos of a chunk."""
        for key, video in self._chunks(split)[chunk.name]:
            if video.error:
                yield RejectedItem(video.path, video.error)
                continue
            errors: list[str] = []
            too_short: list[str] = []
            num_clips = 0
            for stride in self.strides or [self.stride]:
                name = f"{key}-s{stride}" if self.strides else key
                for each in self._clips(video.path, stride):
                    if isinstance(each, str):
                        (too_short if isinstance(each, TooShort) else errors).append(each)
                    else:
                        num_clips += 1
                        yield Example(f"{name}-{each.start:06d}", task, each.frames)
            if not num_clips:  # else it is too short for some of the strides alone
                errors += too_short
            for error in dict.fromkeys(errors):
                yield RejectedItem(video.path, error)

    def _clips(self, video: str, stride: int) -> Iterator[Clip | str]:
        """The clips of one stride, and errors."""
        start = 0
        if self.random_start:
            start = int(self.rng("start", video, stride).integers(0, stride * self.clip_length))
        for each in self._clips_from(video, stride, start):
            if start and isinstance(each, TooShort):
                yield from self._clips_from(video, stride, 0)
            else:
                yield each

    def _clips_from(self, video: str, stride: int, start: int) -> Iterator[Clip | str]:
        path = self.root() / video
        frames = (read_frame_folder if path.is_dir() else read_video)(path, stride, start)
        return split_into_clips(
            frames, self.to_square, self.clip_length, self.overlap, self.scene_cut_threshold
        )

    def _chunks(self, split: str) -> dict[str, list[tuple[str, VideoItem]]]:
        """(key, video) of each chunk of a split.

        The clips of a chunk are not counted before it is read, so its name identifies its videos:
        with other videos it is another chunk.
        """
        videos = self._items.get(split, [])
        chunks = {}
        for start in range(0, len(videos), VIDEOS_PER_CHUNK):
            members = videos[start : start + VIDEOS_PER_CHUNK]
            text = "\n".join(video.path for _, video in members)
            digest = blake2b(to_bytes(text), digest_size=4).hexdigest()
            chunks[f"{start // VIDEOS_PER_CHUNK:06d}-{digest}"] = members
        return chunks

    @cached_property
    def _items(self) -> dict[str, list[tuple[str, VideoItem]]]:

        def list_items() -> dict[str, list[VideoItem]]:
            found: dict[str, list[VideoItem]] = {}
            for video in self.videos():
                found.setdefault(self.split_of(video.group), []).append(video)
            return found

        splits = self.with_minimum_splits(list_items, 1)  # a video has at least a clip
        if not splits:
            raise UserError(f"source.path={self.path} {self.nothing_found()}: set source.path=DIR")
        if find_spec("av") is None and any(
            Path(video.path).suffix.lower() in VIDEO_SUFFIXES
            for videos in splits.values()
            for video in videos
        ):
            raise UserError(
                f"videos in source.path={self.path} need the package av: run "
                "`pip install delvm[data]`"
            )
        return {
            split: list(zip(unique_keys([video.name for video in videos]), videos, strict=True))
            for split, videos in splits.items()
        }

    def nothing_found(self) -> str:
        """What is missing from the path, for the error if nothing was found."""
        return "contains neither videos nor directories of frames"

    def videos(self) -> Iterator[VideoItem]:
        """Every video below the root, sorted by path."""
        root = self.root()
        files, folders = set[str](), set[str]()
        for path in walk(root):
            if path.name.startswith("."):
                continue
            if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
                files.add(path.relative_to(root).as_posix())
            elif path.suffix.lower() in IMAGE_SUFFIXES:
                folders.add(path.parent.relative_to(root).as_posix())
        # Without its extension, unless another has that name.
        stems = Counter([*(Path(file).with_suffix("").as_posix() for file in files), *folders])
        for path_name in sorted(files | folders, key=natural_sort_key):
            is_file = path_name in files
            stem = Path(path_name).with_suffix("").as_posix() if is_file else path_name
            yield VideoItem(stem if stems[stem] == 1 else path_name, path_name, path_name)
