"""Videos as clips: files, folders of frames, and HD-VILA's cut videos."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, NamedTuple

from delvm.data.sources._io.video import (
    VIDEOS,
    Clip,
    clips_of,
    frames_of_file,
    frames_of_folder,
    natural,
)
from delvm.data.sources.base import PICTURES, RawSource, check_split, distinct, encoded
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError

VIDEOS_A_PART = 100


class _Shown(NamedTuple):
    """A video, or what is wrong with it.

    Attributes:
        name: its path below the root, without the extension unless two differ in that alone.
        path: below the root: a file, or a folder of frames.
        whole: what it is cut from, which is in one split with all its cuts.
        fault: why it is not taken.
    """

    name: str
    path: str
    whole: str
    fault: str | None = None


@dataclass
class Video(RawSource):
    """Any folder with videos, with folders of frames, or with both.

    A video gives clips one after another, none across a cut. What is left in front of a cut, and
    at the end, is less than a clip and dropped; a video that gives no clip at all is rejected.

    Attributes:
        frames: pictures a clip.
        stride: every how many frames of the video one is taken.
        overlap: last frames of a clip that are the first of the next; 0 shows each once.
        cut: distance of two frames, from 0 to 1, above which a scene has ended; 0 looks for none.
    """

    name: ClassVar[str] = "video"
    frames: int = 8
    stride: int = 4
    overlap: int = 0
    cut: float = 0.45

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """Parts of 100 videos each, whose names tell which ones.

        Raises:
            UserError: no videos, or settings that no clip can have.
        """
        check_split(split)
        self._check()
        return {"video": [SourceChunk(name) for name in self._parts(split)]}

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The clips of the videos of a part."""
        for key, shown in self._parts(split)[part.name]:
            if shown.fault:
                yield RejectedItem(shown.path, shown.fault)
                continue
            for each in self._clips(self.root() / shown.path):
                if isinstance(each, str):
                    yield RejectedItem(shown.path, each)
                else:
                    yield Example(f"{key}-{each.start:06d}", task, each.frames)

    def _clips(self, path: Path) -> Iterator[Clip | str]:
        opened = (frames_of_folder if path.is_dir() else frames_of_file)(path, self.stride)
        return clips_of(opened, self.size, self.frames, self.overlap, self.cut)

    def _parts(self, split: str) -> dict[str, list[tuple[str, _Shown]]]:
        """(key, video) of each part of a split.

        A part's clips are not counted before it is read, so its name says which videos it is of:
        where there are others now, it is another part.
        """
        found = self._listed.get(split, [])
        parts = {}
        for start in range(0, len(found), VIDEOS_A_PART):
            mine = found[start : start + VIDEOS_A_PART]
            text = "\n".join(shown.path for _, shown in mine)
            digest = blake2b(encoded(text), digest_size=4).hexdigest()
            parts[f"{start // VIDEOS_A_PART:06d}-{digest}"] = mine
        return parts

    @cached_property
    def _listed(self) -> dict[str, list[tuple[str, _Shown]]]:
        splits: dict[str, list[_Shown]] = {}
        for shown in self.videos():
            splits.setdefault(self.split_of(shown.whole), []).append(shown)
        if not splits:
            raise UserError(f"source.path={self.path} {self.wanted()}: set source.path=FOLDER")
        if find_spec("av") is None and any(
            Path(shown.path).suffix.lower() in VIDEOS
            for found in splits.values()
            for shown in found
        ):
            raise UserError(
                f"videos in source.path={self.path} need the package av: run "
                "`pip install delvm[data]`"
            )
        return {
            split: list(zip(distinct([shown.name for shown in found]), found, strict=True))
            for split, found in splits.items()
        }

    def wanted(self) -> str:
        """What is missing where nothing was found."""
        return "holds neither videos nor folders of frames"

    def videos(self) -> Iterator[_Shown]:
        """Every video below the root, in the order of their paths."""
        root = self.root()
        files, folders = set[str](), set[str]()
        for path in root.rglob("*"):
            if path.name.startswith("."):
                continue
            if path.suffix.lower() in VIDEOS and not path.is_dir():
                files.add(path.relative_to(root).as_posix())
            elif path.suffix.lower() in PICTURES:
                folders.add(path.parent.relative_to(root).as_posix())
        # Without its extension, unless another is called so.
        stems = Counter([*(Path(file).with_suffix("").as_posix() for file in files), *folders])
        for place in sorted(files | folders, key=natural):
            stem = Path(place).with_suffix("").as_posix() if place in files else place
            yield _Shown(stem if stems[stem] == 1 else place, place, place)

    def _check(self) -> None:
        for key, least in (("frames", 2), ("stride", 1), ("overlap", 0)):
            value = getattr(self, key)
            if value < least:
                raise UserError(f"source.{key}={value} is below {least}: set source.{key}={least}")
        if self.overlap >= self.frames:
            raise UserError(
                f"source.overlap={self.overlap} is not below source.frames={self.frames}: set "
                "source.overlap=0"
            )
        if not 0 <= self.cut <= 1:
            raise UserError(f"source.cut={self.cut} is not in [0, 1]: set source.cut=0.45")


@dataclass
class HdVila(Video):
    """HD-VILA-100M (Xue et al., CVPR 2022), cut: PATH/video_clips/ID/ID.N.mp4.

    All cuts of one video are in one split.
    """

    name: ClassVar[str] = "hdvila"

    def wanted(self) -> str:
        """What is missing where nothing was found."""
        return "holds no video_clips/ID/ID.N.mp4"

    def videos(self) -> Iterator[_Shown]:
        """Every cut, by their videos and numbers; and files that are none."""
        root = self.root()
        inside = root / "video_clips"
        files = [
            path.relative_to(root).as_posix()
            for path in (inside if inside.is_dir() else root).rglob("*")
            if path.suffix.lower() in VIDEOS and not path.name.startswith(".")
        ]
        for file in sorted(files, key=natural):
            folder, name = Path(file).parent.name, Path(file).name
            fits = re.fullmatch(rf"{re.escape(folder)}\.\d+\.mp4", name)
            fault = None if folder and fits else "is not called ID/ID.N.mp4"
            yield _Shown(Path(name).stem, file, folder, fault)
