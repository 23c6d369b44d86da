"""The frames of a video to continue, and the files that show how it continues."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from glob import has_magic
from pathlib import Path

from PIL import Image, ImageOps

from delvm.data.image_io import open_image
from delvm.data.sources._io.video import VIDEO_SUFFIXES, natural_sort_key, read_video
from delvm.errors import UserError
from delvm.inference.files.answer_files import SUFFIXES, shorten
from delvm.inference.files.query_files import find_queries
from delvm.progress import log
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid

IMAGES_PER_ROW = 8
FRAME_MS = 250  # how long the animation shows a frame
BORDERS = {"given": (160, 160, 160), "predicted": (30, 100, 220)}


def find_frames(video: str, output: str) -> list[Path]:
    """The files of a video: images in the order of their numbers, or one video file.

    Args:
        video: a directory of images, a pattern, an image, or a video file.
        output: directory that new frames go to.

    Raises:
        UserError: nothing is there, or new frames would be among those of the video.
    """
    path = Path(output)
    if path.suffix.lower() in SUFFIXES or path.is_file():
        raise UserError(f"output {path}: the frames of a video are several files: set output=DIR")
    if not Path(video).exists() and not has_magic(video):
        raise UserError(f"video not found: {video} (set video=DIR, a pattern or a video file)")
    found = find_queries(video, exclude=path, key="video")
    if found.others:
        log(f"generate: not images, left out: {shorten([each.name for each in found.others])}")
    if path.resolve() in {each.resolve().parent for each in found.images}:
        raise UserError(f"output {path} holds the video's frames: set output to another directory")
    if len(found.images) == 1 and _is_animation(found.images[0]):
        raise UserError(
            f"video {found.images[0]} is an animation: save its frames into a directory"
        )
    return sorted(found.images, key=lambda each: natural_sort_key(str(each)))


def _is_animation(path: Path) -> bool:
    """Whether an image file has several frames, of which only the first would be read."""
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return False
    with suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(path) as image:
        return getattr(image, "n_frames", 1) > 1
    return False  # not an image: `read_frames` gives the reason


def read_frames(
    files: Sequence[Path], most: int, stride: int, prepare: Callable[[Image.Image], Image.Image]
) -> list[Image.Image]:
    """The last frames of a video, the very last one included.

    Args:
        files: from `find_frames`.
        most: frames to return at most, 1 or more.
        stride: every how many frames one is taken, counted from the last.
        prepare: is applied to each frame as soon as it is read.

    Raises:
        UserError: a frame cannot be read.
    """
    needed = (most - 1) * stride + 1
    if len(files) > 1 or files[0].suffix.lower() not in VIDEO_SUFFIXES:
        return [prepare(open_image(each)) for each in files[-needed:][::-1][::stride][::-1]]
    frames: deque[Image.Image] = deque(maxlen=needed)
    for number, frame in read_video(files[0], 1):
        if isinstance(frame, str):
            raise UserError(f"{files[0]}, frame {number + 1}: {frame}")
        frames.append(prepare(frame))
    if not frames:
        raise UserError(f"{files[0]} has no frames")
    return [*frames][::-1][::stride][::-1]


class FrameWriter:
    """Writes each new frame as it comes, and then all of them as a grid and an animation."""

    def __init__(self, output: str, given: Sequence[Image.Image]) -> None:
        """
        Args:
            output: a directory.
            given: the frames that are continued, all of one size.
        """
        self.output, self.given = Path(output), given
        self.frames: list[Image.Image] = []

    def write(self, frame: Image.Image) -> None:
        """Write the next frame."""
        self.frames.append(frame)
        with atomic_path(self.path(len(self.frames))) as tmp:
            frame.save(tmp)

    def path(self, number: int) -> Path:
        """The file of a new frame, numbered from 1."""
        return self.output / f"frame_{number:04d}.png"

    def finish(self) -> tuple[Path, Path]:
        """Write the grid and the animation; returns their paths."""
        grid, animation = self.output / "grid.png", self.output / "video.gif"
        with atomic_path(grid) as tmp:
            self._grid().save(tmp)
        first, *rest = self._animation()
        with atomic_path(animation) as tmp:
            first.save(tmp, save_all=True, append_images=rest, duration=FRAME_MS, loop=0)
        written = {self.path(number + 1) for number in range(len(self.frames))}
        if old := sorted(set(self.output.glob("frame_*.png")) - written):
            log(f"generate: {len(old)} frames of an earlier run remain, from {old[0]} on")
        return grid, animation

    def _grid(self) -> Image.Image:
        rows, titles = [], []
        for title, images in (("given", self.given), ("predicted", self.frames)):
            for start in range(0, len(images), IMAGES_PER_ROW):
                rows.append(images[start : start + IMAGES_PER_ROW])
                titles.append(title if start == 0 else "")
        return image_grid(rows, cell=max(*self.given[0].size, 128), row_titles=titles)

    def _animation(self) -> list[Image.Image]:
        """All frames, large enough to be seen; predicted ones have another border."""
        factor = max(1, 128 // self.given[0].width)
        return [
            ImageOps.expand(
                ImageOps.scale(image, factor, Image.Resampling.NEAREST), 4, BORDERS[key]
            )
            for key, images in (("given", self.given), ("predicted", self.frames))
            for image in images
        ]
