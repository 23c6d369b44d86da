"""Frames of a video one after another, and clips of them; files are not trusted.

A frame is kept only until its clip is complete, however long the video is.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image

from delvm.data.file_kinds import describe_file
from delvm.data.image_io import MAX_PIXELS, open_image
from delvm.data.sources.base import IMAGE_SUFFIXES
from delvm.data.types import ImageArray
from delvm.errors import UserError

# Only files: a playlist with the name of an .mp4 would make ffmpeg open whatever it lists.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts"
VIDEO_SUFFIXES = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"))

T = TypeVar("T")
# (number of the frame in the video, the frame or why it was rejected)
Frame = tuple[int, Image.Image | str]


class TooShort(str):
    """Why a video has no clip: it is not damaged, but has too few frames."""


class Clip(NamedTuple):
    """Frames of one shot.

    Attributes:
        start: number of the first frame in the video.
        frames: (size, size, 3) uint8 each; (k, size, size, 3) of a frame and its annotations.
    """

    start: int
    frames: tuple[ImageArray, ...]


def natural_sort_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts `frame_10` after `frame_9`."""
    return [
        (0, int(piece), piece) if piece.isdigit() else (1, 0, piece)
        for piece in re.findall(r"[0-9]+|[^0-9]+", name)
    ]


def read_frame_folder(folder: Path, stride: int, start: int = 0) -> Iterator[Frame]:
    """Every `stride`-th image directly in a directory, sorted by number, from `start` on.

    Yields:
        (number, image), or (number, name of the file and why it was rejected).
    """
    frames = frame_names(folder)
    for number in range(start, len(frames), stride):
        name = frames[number]
        try:
            yield number, open_image(folder / name, name)
        except UserError as error:
            yield number, str(error)


def frame_names(folder: Path) -> list[str]:
    """Names of the images directly in a directory, sorted by number; hidden ones are skipped."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES]
    names = (path.name for path in files if not path.name.startswith("."))
    return sorted(names, key=natural_sort_key)


def read_video(path: Path, stride: int, start: int = 0) -> Iterator[Frame]:
    """Every `stride`-th frame of the first video stream of a file, from frame `start` on.

    Yields:
        (number, upright image), or (number, why it was rejected); after an error in the file
        itself nothing more is yielded.

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise UserError(f"{path} needs the package av: run `pip install delvm[data]`") from None
    if not path.is_file():  # reading a named pipe would never end
        yield 0, "cannot be read as a video: not a file"
        return
    number, damaged = 0, False
    try:
        with path.open("rb") as file:
            reason = _truncation_error(file)
            allowed = {"format_whitelist": _CONTAINERS}
            with av.open(
                file, "r", container_options=allowed, metadata_errors="replace"
            ) as container:
                stream = _video_stream(container)
                for decoded in container.decode(stream):
                    # Frames after a damaged one are predicted from it, until the next key frame.
                    damaged = decoded.is_corrupt or (damaged and not decoded.key_frame)
                    _check_size(decoded)
                    if number >= start and (number - start) % stride == 0:
                        yield number, "damaged frames" if damaged else _displayed(decoded, stream)
                    number += 1
    except Exception as error:  # decoders raise nearly anything on a damaged file
        known = describe_file(path)
        reason = f"cannot be read as a video: {known or getattr(error, 'strerror', None) or error}"
    if reason:
        yield number, reason


def count_frames(path: Path) -> int | None:
    """Frames of the first video stream of a file, without decoding it; None if that fails."""
    try:
        import av

        if not path.is_file():
            return None
        allowed = {"format_whitelist": _CONTAINERS}
        with (
            path.open("rb") as file,
            av.open(file, "r", container_options=allowed, metadata_errors="replace") as container,
        ):
            return sum(1 for packet in container.demux(_video_stream(container)) if packet.size)
    except Exception:  # its reader reports why
        return None


def _video_stream(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("no video stream")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError("no decoder for its video stream")
    _check_size(stream)
    return stream


def _check_size(frame: Any) -> None:
    if frame.width * frame.height > MAX_PIXELS:
        raise ValueError(
            f"{frame.width} x {frame.height} pixels, the limit is {MAX_PIXELS:,} per frame"
        )


def _displayed(decoded: Any, stream: Any) -> Image.Image:
    """A decoded frame as a player shows it: RGB with square pixels, turned and mirrored.

    Raises:
        ValueError: its pixels are so wide or high that it would be too large.
    """
    image = Image.fromarray(decoded.to_ndarray(format="rgb24"))
    aspect = float(stream.sample_aspect_ratio or 1) or 1.0  # width of a pixel by its height
    if aspect != 1:
        width, height = image.width * max(1.0, aspect), image.height * max(1.0, 1 / aspect)
        if width * height > MAX_PIXELS:
            raise ValueError(f"pixels {aspect:g} times as wide as high")
        image = image.resize((round(width), round(height)), Image.Resampling.BICUBIC)
    for data in decoded.side_data:
        if data.type.name == "DISPLAYMATRIX" and (method := _transpose_of(bytes(data))) is not None:
            image = image.transpose(method)
    return image


def _transpose_of(matrix: bytes) -> Image.Transpose | None:
    """The turn, to a multiple of 90 degrees, and mirroring of a display matrix; None is neither.

    Args:
        matrix: 9 integers of 32 bits, a b u, c d v, x y w: a pixel (x, y) is displayed at
            (a x + c y, b x + d y), with y downwards.
    """
    if len(matrix) < 36:
        return None
    a, b, _, c, d = np.frombuffer(matrix[:20], np.int32).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return {
            (True, False): Image.Transpose.FLIP_LEFT_RIGHT,
            (False, True): Image.Transpose.FLIP_TOP_BOTTOM,
            (True, True): Image.Transpose.ROTATE_180,
        }.get((a < 0, d < 0))
    return {
        (False, False): Image.Transpose.TRANSPOSE,
        (True, False): Image.Transpose.ROTATE_270,
        (False, True): Image.Transpose.ROTATE_90,
        (True, True): Image.Transpose.TRANSVERSE,
    }[(c < 0, b < 0)]


def _truncation_error(file: BinaryIO) -> str | None:
    """An error if an MP4 or MOV is shorter than its header states; ffmpeg would not report it."""
    length = file.seek(0, 2)
    offset = 0
    while offset + 16 <= length:
        file.seek(offset)
        head = file.read(16)
        if offset == 0 and head[4:8] != b"ftyp":
            break
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # it follows, in 64 bits
            size = int.from_bytes(head[8:], "big")
        if size == 0:  # up to the end of the file
            break
        if size < 8 or offset + size > length:
            file.seek(0)
            return f"truncated or damaged: its {length:,} bytes are fewer than the header states"
        offset += size
    file.seek(0)
    return None


# ------------------------------------------------------------ clips


def scene_distance(first: ImageArray, second: ImageArray) -> float:
    """How unlikely it is that two frames (size, size, 3) are of one scene, in [0, 1].

    The geometric mean of the difference of their color histograms and of the difference of their
    coarse pixels without the mean color. A moving camera changes mainly the pixels, and the light
    mainly the histogram; a cut changes both. Two photographs have a distance of 0.5 or more.
    Dissolves are not found.
    """
    pair = [
        np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BOX))
        for frame in (first, second)
    ]
    histograms = [
        np.stack([np.histogram(frame[:, :, channel], 8, (0, 256))[0] for channel in range(3)])
        for frame in pair
    ]
    color_distance = np.abs(histograms[0] - histograms[1]).sum() / (2 * 3 * 64 * 64)
    coarse = [frame.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)) for frame in pair]
    centered = [frame - frame.mean(axis=(0, 1)) for frame in coarse]
    pixel_distance = np.abs(centered[0] - centered[1]).mean() / 255
    return float(np.sqrt(color_distance * min(1.0, 5 * pixel_distance)))


def split_into_clips(
    frames: Iterable[tuple[int, T | str]],
    to_square: Callable[[T], ImageArray],
    length: int,
    overlap: int = 0,
    scene_cut_threshold: float = 0.0,
    every: int = 1,
) -> Iterator[Clip | str]:
    """The clips of a video, and a line for each error that prevented one.

    Args:
        frames: Of one video, with their numbers; of consecutive errors only the first is yielded.
        to_square: Makes an image (size, size, 3) of a frame, or (k, size, size, 3) of a frame and
            its annotations, the frame first.
        length: Frames per clip.
        overlap: Last frames of a clip that are also the first of the next.
        scene_cut_threshold: Scene distance above which a clip ends; 0 ignores cuts.
        every: Of so many frames the first may be in a clip, and the others only show cuts.
    """
    kept: list[tuple[int, ImageArray]] = []  # of the incomplete clip
    last: ImageArray | None = None  # the frame before
    num_frames = num_cuts = num_yielded = 0
    broken = False
    for index, (number, frame) in enumerate(frames):
        if isinstance(frame, str):
            if not broken:
                num_yielded += 1
                yield f"frame {number}: {frame}"
            broken = True
            kept.clear()
            continue
        broken = False
        image = to_square(frame)
        threshold = scene_cut_threshold if kept else 0
        if threshold and last is not None and scene_distance(last, _frame(image)) > threshold:
            num_cuts += 1
            kept.clear()
        last = _frame(image)
        if index % every:
            continue
        num_frames += 1
        kept.append((number, image))
        if len(kept) == length:
            num_yielded += 1
            yield Clip(kept[0][0], tuple(each for _, each in kept))
            del kept[: length - overlap]
    if not num_yielded:
        cuts = f" and {num_cuts} cuts between them" if num_cuts else ""
        yield TooShort(f"too short: {num_frames} frames{cuts}, a clip has {length}")


def _frame(image: ImageArray) -> ImageArray:
    """The frame (size, size, 3) without its annotations."""
    first: ImageArray = image if image.ndim == 3 else image[0]
    return first
