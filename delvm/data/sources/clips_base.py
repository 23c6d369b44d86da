"""What sources of clips share: videos in splits and chunks, from which clips are read."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from delvm.data.sources._io.video import VIDEO_SUFFIXES
from delvm.data.sources.base import RawSource, files_digest, to_bytes, unique_keys
from delvm.data.types import Example, ImageArray, RejectedItem, SourceChunk
from delvm.errors import UserError

VIDEOS_PER_CHUNK = 100


class VideoItem(NamedTuple):
    """A video, or why it is rejected.

    Attributes:
        name: its path below the root; without the extension unless two differ only in that.
        path: below the root: a file, or a directory of frames.
        group: the original video it was cut from; all its cuts are in one split.
        error: why it is rejected.
        annotations: paths of videos of annotations, frame by frame.
    """

    name: str
    path: str
    group: str
    error: str | None = None
    annotations: tuple[str, ...] = ()


class NamedClip(NamedTuple):
    """A clip, whose name is unique in its split.

    Attributes:
        name: of letters, digits, - and _.
        frames: (size, size, 3) uint8 each; (k, size, size, 3) of a frame and its annotations.
    """

    name: str
    frames: tuple[ImageArray, ...]


@dataclass
class ClipSource(RawSource):
    """Videos, or other sequences of frames, of which a chunk is 100."""

    def tasks(self) -> list[str]:
        """Names of the tasks, which differ in how the frames of a clip are arranged."""
        raise NotImplementedError

    def videos(self) -> Iterator[VideoItem]:
        """Every video below the root, in order."""
        raise NotImplementedError

    def clips(self, key: str, video: VideoItem) -> Iterator[NamedClip | str]:
        """The clips of a video, and a line for each error."""
        raise NotImplementedError

    def arrange(self, task: str, frames: tuple[ImageArray, ...]) -> tuple[ImageArray, ...]:
        """The images of an example of a task, given the frames of a clip."""
        return frames

    def nothing_found(self) -> str:
        """What is missing from the path, for the error if nothing was found."""
        raise NotImplementedError

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Chunks of 100 videos each, with names that identify the videos."""
        self.check(split)
        root = self.root()
        chunks = [
            SourceChunk(
                name,
                inputs=files_digest(
                    root, (root / path for _, v in videos for path in (v.path, *v.annotations))
                ),
            )
            for name, videos in self._chunks(split).items()
        ]
        return dict.fromkeys(self.tasks(), chunks)

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The clips of the videos of a chunk."""
        for key, video in self._chunks(split)[chunk.name]:
            if video.error:
                yield RejectedItem(video.path, video.error)
                continue
            for each in self.clips(key, video):
                if isinstance(each, str):
                    yield RejectedItem(video.path, each)
                else:
                    yield Example(each.name, task, self.arrange(task, each.frames))

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
