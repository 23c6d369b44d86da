"""HD-VILA-100M: cut videos, or the folders of frames that DeLVM extracts from them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from delvm.data.file_kinds import describe_file
from delvm.data.sources._io.video import VIDEO_SUFFIXES, natural_sort_key
from delvm.data.sources._io.walk import walk
from delvm.data.sources.base import image_files
from delvm.data.sources.clips_base import VideoItem
from delvm.data.sources.video import Video
from delvm.errors import UserError
from delvm.progress import log
from delvm.untrusted import parse_json

CLIPS, FRAMES, LISTS = "video_clips", "video_clips_imgs", "cut_video_results"


@dataclass
class HdVila(Video):
    """HD-VILA-100M (Xue et al., CVPR 2022), cut: PATH/video_clips/ID/ID.N.mp4.

    Or, as DeLVM's README has it, PATH/video_clips_imgs/ID/CLIP/*.jpg with the list of videos
    PATH/cut_video_results/*.jsonl. All cuts of one video are in one split.

    Attributes:
        video_list: JSONL of the videos to take, a name such as "ID.mp4" in each line, as a path
            from `path`. None takes those of PATH/cut_video_results for folders of frames, and all
            where there is no list.
    """

    name: ClassVar[str] = "hdvila"
    video_list: str | None = None

    def nothing_found(self) -> str:
        """What is missing from the path, for the error if nothing was found."""
        return f"contains neither {CLIPS}/ID/ID.N.mp4 nor {FRAMES}/ID/CLIP/*.jpg"

    def videos(self) -> Iterator[VideoItem]:
        """Every cut, sorted by video and number; files with other names are rejected."""
        root = self.root()
        has_clips, has_frames = (root / CLIPS).is_dir(), (root / FRAMES).is_dir()
        if has_clips and has_frames:
            log(f"prepare: reading {root / CLIPS}; for its frames set source.path={root / FRAMES}")
        if not has_clips and (has_frames or root.name == FRAMES):
            items = _frame_folders(root, root / FRAMES if has_frames else root)
            lists = self._lists((root if has_frames else root.parent) / LISTS)
        else:
            items = _cut_videos(root, root / CLIPS if has_clips else root)
            lists = self._lists(None)
        if not lists:
            return items
        return _listed(items, {name for path in lists for name in read_video_list(path)})

    def _lists(self, folder: Path | None) -> list[Path]:
        """The lists of videos to take."""
        if self.video_list is None:
            return sorted(folder.glob("*.jsonl")) if folder else []
        path = Path(self.path) / self.video_list
        if not path.is_file():
            raise UserError(
                f"source.video_list={self.video_list} is not a file in source.path={self.path}: "
                "set source.video_list=null to take all videos"
            )
        return [path]


def _cut_videos(root: Path, folder: Path) -> Iterator[VideoItem]:
    files = [
        path.relative_to(root).as_posix()
        for path in walk(folder)
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")
    ]
    for file in sorted(files, key=natural_sort_key):
        video_id, name = Path(file).parent.name, Path(file).name
        matches = re.fullmatch(rf"{re.escape(video_id)}\.\d+\.mp4", name)
        error = None if video_id and matches else "is not named ID/ID.N.mp4"
        yield VideoItem(Path(name).stem, file, video_id, error)


def _frame_folders(root: Path, folder: Path) -> Iterator[VideoItem]:
    folders = {path.parent for path in image_files(folder)}
    for path in sorted(folders, key=lambda each: natural_sort_key(each.as_posix())):
        inside = path.relative_to(folder).parts
        error = None if len(inside) == 2 else "its frames are not in ID/CLIP"
        name = "/".join(inside) or "."
        yield VideoItem(name, path.relative_to(root).as_posix(), (*inside, "")[0], error)


def _listed(items: Iterator[VideoItem], names: set[str]) -> Iterator[VideoItem]:
    """The cuts of listed videos; logs how many are not, and rejects listed ones without any."""
    found, others = set[str](), 0
    for item in items:
        if item.group in names:
            found.add(item.group)
            yield item
        else:
            others += 1
    if others:
        log(f"prepare: {others:,} cuts of videos that are not listed, left out")
    for name in sorted(names - found):
        yield VideoItem(name, name, name, "listed, but without files")


def read_video_list(path: Path) -> list[str]:
    """The IDs of videos in a JSONL file, of lines such as "ID.mp4".

    Raises:
        UserError: the file cannot be read, or a line is not a JSON string.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if known := describe_file(path):
        raise UserError(f"{path} is {known}")
    return [
        parse_json(line, f"{path} line {number}", str).split(".")[0]
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
