"""Frames of a video one after another, and clips of them; files are not trusted.

A frame is held only as long as its clip is not whole, however long the video.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from delvm.data.image_io import MAX_PIXELS, open_image, resize_center_crop
from delvm.data.sources.base import PICTURES
from delvm.errors import UserError

# Files alone: a playlist that is called .mp4 would make ffmpeg open whatever it names.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts"
VIDEOS = frozenset((".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg"))

# (number of the frame in the video, the frame or what is wrong with it)
Frame = tuple[int, Image.Image | str]


class Clip(NamedTuple):
    """Frames of one shot.

    Attributes:
        start: number in the video of the first frame.
        frames: (size, size, 3) uint8 each.
    """

    start: int
    frames: tuple[np.ndarray, ...]


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts `frame_10` behind `frame_9`."""
    return [
        (0, int(piece), piece) if piece.isdigit() else (1, 0, piece)
        for piece in re.findall(r"[0-9]+|[^0-9]+", name)
    ]


def frames_of_folder(folder: Path, stride: int) -> Iterator[Frame]:
    """Every `stride`-th of the pictures directly in a folder, in the order of their numbers.

    Yields:
        (number, picture), or (number, the file's name and what is wrong with it).
    """
    files = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES]
    shown = sorted((path.name for path in files if not path.name.startswith(".")), key=natural)
    for number in range(0, len(shown), stride):
        name = shown[number]
        try:
            yield number, open_image(folder / name, name)
        except UserError as error:
            yield number, str(error)


def frames_of_file(path: Path, stride: int) -> Iterator[Frame]:
    """Every `stride`-th frame of the first video stream of a file.

    Yields:
        (number, picture turned upright), or (number, what is wrong); after a fault in the file
        itself nothing more comes.

    Raises:
        UserError: PyAV is not installed.
    """
    try:
        import av
    except ImportError:
        raise UserError(f"{path} needs the package av: run `pip install delvm[data]`") from None
    number, damaged = 0, False
    try:
        with path.open("rb") as file:
            fault = _cut_short(file)
            allowed = {"format_whitelist": _CONTAINERS}
            with av.open(
                file, "r", container_options=allowed, metadata_errors="replace"
            ) as container:
                for decoded in container.decode(_stream(container)):
                    # What follows a damaged frame is drawn on it, up to the next that stands alone.
                    damaged = decoded.is_corrupt or (damaged and not decoded.key_frame)
                    _check_size(decoded)
                    if number % stride == 0:
                        yield number, "damaged frames" if damaged else _upright(decoded)
                    number += 1
    except Exception as error:  # decoders raise nearly anything on a damaged file
        fault = f"cannot be read as a video: {getattr(error, 'strerror', None) or error}"
    if fault:
        yield number, fault


def _stream(container: Any) -> Any:
    if not container.streams.video:
        raise ValueError("no pictures in it")
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ValueError("no decoder for the pictures in it")
    _check_size(stream)
    return stream


def _check_size(shown: Any) -> None:
    if shown.width * shown.height > MAX_PIXELS:
        raise ValueError(
            f"{shown.width} x {shown.height} pixels, the limit is {MAX_PIXELS:,} a frame"
        )


def _upright(decoded: Any) -> Image.Image:
    """A decoded frame as RGB, turned as the file asks for."""
    pixels = decoded.to_ndarray(format="rgb24")
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, round(decoded.rotation / 90))))


def _cut_short(file: BinaryIO) -> str | None:
    """Whether an MP4 or MOV says that it is longer than it is; ffmpeg ends there quietly."""
    length = file.seek(0, 2)
    place = 0
    while place + 16 <= length:
        file.seek(place)
        head = file.read(16)
        if place == 0 and head[4:8] != b"ftyp":
            break
        size = int.from_bytes(head[:4], "big")
        if size == 1:  # it follows, in 64 bits
            size = int.from_bytes(head[8:], "big")
        if size == 0:  # as far as the file goes
            break
        if size < 8 or place + size > length:
            file.seek(0)
            return f"truncated or damaged: {length:,} bytes, and more are announced"
        place += size
    file.seek(0)
    return None


# ------------------------------------------------------------ clips


def scene_distance(one: np.ndarray, other: np.ndarray) -> float:
    """How far two frames (size, size, 3) uint8 are from being of one scene, in [0, 1].

    The geometric mean of how unlike their colours are, wherever these are, and of how unlike they
    are place by place, the mean colour of each taken off. A moving camera changes mostly the
    latter, and more light mostly the former; a cut changes both. Photographs are 0.5 and more
    apart, and dissolves are not found.
    """
    pair = [
        np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BOX))
        for frame in (one, other)
    ]
    bins = [
        np.stack([np.histogram(frame[:, :, channel], 8, (0, 256))[0] for channel in range(3)])
        for frame in pair
    ]
    colours = np.abs(bins[0] - bins[1]).sum() / (2 * 3 * 64 * 64)
    coarse = [frame.reshape(16, 4, 16, 4, 3).mean(axis=(1, 3)) for frame in pair]
    shapes = [frame - frame.mean(axis=(0, 1)) for frame in coarse]
    places = np.abs(shapes[0] - shapes[1]).mean() / 255
    return float(np.sqrt(colours * min(1.0, 5 * places)))


def clips_of(
    frames: Iterable[Frame], size: int, length: int, overlap: int = 0, cut: float = 0.0
) -> Iterator[Clip | str]:
    """The clips of a video, and a sentence for each thing that kept it from giving one.

    Args:
        frames: Of one video; of faults one after another the first is told.
        size: Side of the pictures to be made.
        length: Frames a clip.
        overlap: Last frames of a clip that are also the first of the next.
        cut: Scene distance above which no clip goes on; 0 goes on over all.
    """
    held: list[tuple[int, np.ndarray]] = []  # of the clip that is growing
    seen = cuts = told = 0
    broken = False
    for number, frame in frames:
        if isinstance(frame, str):
            if not broken:
                told += 1
                yield f"frame {number}: {frame}"
            broken = True
            held.clear()
            continue
        broken = False
        seen += 1
        picture = np.asarray(resize_center_crop(frame, size))
        if cut and held and scene_distance(held[-1][1], picture) > cut:
            cuts += 1
            held.clear()
        held.append((number, picture))
        if len(held) == length:
            told += 1
            yield Clip(held[0][0], tuple(each for _, each in held))
            del held[: length - overlap]
    if not told:
        between = f" and {cuts} cuts between them" if cuts else ""
        yield f"too short: {seen} frames taken{between}, a clip has {length}"
