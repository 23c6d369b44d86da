"""Frames of a video and of its annotations, which stay in step; files are not trusted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np

from delvm.data.sources._io.annotation_images import (
    DEPTHS,
    AnnotationKind,
    OpenedAnnotation,
    annotation_of_frame,
    common_depth_range,
    common_ids,
)
from delvm.data.sources._io.video import count_frames, frame_names, read_video
from delvm.data.sources.annotated.settings import AnnotatedSource
from delvm.data.types import ImageArray
from delvm.errors import UserError, did_you_mean

DEPTH_FRAMES = 16  # of a video, from which the range of its depth is taken
LAYOUTS = ("separate", "interleaved")
# (number of the frame in the video, what it holds or why it was rejected)
_Opened: TypeAlias = tuple[int, OpenedAnnotation | str]


class Stream(NamedTuple):
    """A video, or one of its annotations.

    Attributes:
        path: a file, or a directory of frames.
        annotation: the directory that annotations are named after; None for the video itself.
        files: names of the frames in a directory.
        positions: for each frame of the video, its position in `files`, or None without one.
        unmatched: names of frames of an annotation that no frame of the video has.
        depth_range: of the depth in a directory of frames, so that a gray level means the same
            distance in all of them.
        ids: of labels in a directory of frames, so that a color means the same in all of them.
    """

    path: Path
    annotation: str | None
    files: tuple[str, ...] = ()
    positions: tuple[int | None, ...] = ()
    unmatched: tuple[str, ...] = ()
    depth_range: tuple[float, float] | None = None
    ids: tuple[int, ...] = ()


def open_streams(
    source: AnnotatedSource, paths: Sequence[Path], annotations: Sequence[str]
) -> list[Stream] | str:
    """A video and its annotations, or why they do not fit together.

    Frames in directories are matched by their names. Where names have nothing in common, and in
    video files, they are matched by their order, and there must be equally many.

    Args:
        source: knows what the annotations are.
        paths: of the video, then of its annotations.
        annotations: their names.
    """
    files = [tuple(frame_names(path)) if path.is_dir() else () for path in paths]
    counts: list[int | None] = [
        len(names) if path.is_dir() else count_frames(path)
        for path, names in zip(paths, files, strict=True)
    ]
    frames = _frame_keys(files[0])
    streams = [Stream(paths[0], None, files[0], tuple(range(len(frames))))]
    for path, name, names, count in zip(paths[1:], annotations, files[1:], counts[1:], strict=True):
        keys = {key: index for index, key in enumerate(_frame_keys(names))}
        unmatched: tuple[str, ...] = ()
        positions: tuple[int | None, ...] = tuple(range(len(names)))
        if known := set(frames) & keys.keys():
            positions = tuple(keys.get(key) for key in frames)
            unmatched = tuple(names[index] for key, index in keys.items() if key not in known)
        elif counts[0] is not None and count is not None and count != counts[0]:
            return f"has {counts[0]} frames, and {name} {count}"
        depth_range = _depth_range(source, path, name, names)
        is_labels = source.kind_of(name) is AnnotationKind.labels
        ids = common_ids([path / each for each in names]) if is_labels else ()
        streams.append(Stream(path, name, names, positions, unmatched, depth_range, ids))
    return streams


def _depth_range(
    source: AnnotatedSource, path: Path, annotation: str, names: Sequence[str]
) -> tuple[float, float] | None:
    """The range of some frames all over a video, if they are of depth and none is set."""
    kind = source.kind_of(annotation)
    if kind not in DEPTHS or source.depth_range:
        return None
    step = max(1, len(names) // DEPTH_FRAMES)
    return common_depth_range([path / name for name in names[::step]], kind)


def _frame_keys(names: Sequence[str]) -> list[str]:
    """What frames are matched by: the name up to its first dot, or without its extension.

    CO3D has frame000001.jpg and frame000001.jpg.geometric.png.
    """
    keys = [name.partition(".")[0] for name in names]
    return keys if len(set(keys)) == len(keys) else [Path(name).stem for name in names]


def read_streams(
    source: AnnotatedSource, streams: Sequence[Stream], stride: int, start: int, step: int
) -> Iterator[tuple[int, ImageArray | str]]:
    """Every `stride`-th frame of a video from frame `start` on, with its annotations.

    Args:
        source: opens the files, and makes squares.
        streams: from `open_streams`.
        stride, start: in frames.
        step: of the frames between them, which come without annotations; divides `stride`.

    Yields:
        (number, the frame and its annotations (k, size, size, 3)), or (number, why it was rejected)
    """
    video, *readers = (
        _read_stream(source, each, step if each.annotation is None else stride, start)
        for each in streams
    )
    number = start
    for index, (number, frame) in enumerate(video):
        if index % (stride // step):
            yield number, _combine(source, streams[:1], [frame])
            continue
        found = [next(reader, None) for reader in readers]
        ended = [
            each.annotation for each, other in zip(streams[1:], found, strict=True) if other is None
        ]
        if ended:
            yield number, f"{ended[0]} ends before {source.image}"
            break
        others = [other[1] for other in found if other is not None]
        yield number, _combine(source, streams, [frame, *others])
    for each in streams:
        if each.unmatched:
            text = f"{each.annotation}: {len(each.unmatched)} frames without an image"
            yield number, f"{text}, such as {each.unmatched[0]}"


def _read_stream(
    source: AnnotatedSource, stream: Stream, stride: int, start: int
) -> Iterator[_Opened]:
    if stream.path.is_dir():
        positions = range(start, len(stream.positions), stride)
        yield from ((number, _open_frame(source, stream, number)) for number in positions)
        return
    kind = None if stream.annotation is None else source.kind_of(stream.annotation)
    for number, frame in read_video(stream.path, stride, start):
        yield number, frame if isinstance(frame, str) else annotation_of_frame(frame, kind)


def _open_frame(source: AnnotatedSource, stream: Stream, number: int) -> OpenedAnnotation | str:
    """A frame from a directory, or why it is rejected."""
    position = stream.positions[number]
    if position is None:
        return "missing"
    name = stream.files[position]
    try:
        return source.open_file(
            stream.path / name, name, stream.annotation, stream.depth_range, stream.ids
        )
    except UserError as error:
        return str(error)


def _combine(
    source: AnnotatedSource, streams: Sequence[Stream], found: Sequence[OpenedAnnotation | str]
) -> ImageArray | str:
    """A frame and its annotations (k, size, size, 3), or why they are rejected."""
    opened = []
    for stream, frame in zip(streams, found, strict=True):
        if isinstance(frame, str):
            return frame if stream.annotation is None else f"{stream.annotation}: {frame}"
        opened.append(frame)
    try:
        return np.stack(source.squares(opened))
    except UserError as error:
        return str(error)


def read_frame(source: AnnotatedSource, streams: Sequence[Stream], number: int) -> ImageArray | str:
    """A frame of a directory and its annotations (k, size, size, 3), or why it is rejected."""
    return _combine(source, streams, [_open_frame(source, each, number) for each in streams])


def arrange(frames: Sequence[ImageArray], layout: str) -> tuple[ImageArray, ...]:
    """Frames and annotations, (k, size, size, 3) each, in the order of a sentence.

    Args:
        frames: of one clip.
        layout: "interleaved" (a frame, its annotations, the next frame), or "separate" (all frames,
            then all of the first annotation).
    """
    count = len(frames[0])
    if layout == "interleaved":
        return tuple(frame[index] for frame in frames for index in range(count))
    return tuple(frame[index] for index in range(count) for frame in frames)


def layout_errors(layouts: list[str]) -> list[str]:
    """Every error of the layouts of clips."""
    errors = [
        f"layouts has '{each}': {did_you_mean(each, LAYOUTS)}"
        for each in layouts
        if each not in LAYOUTS
    ]
    if len(set(layouts)) < len(layouts) or not layouts:
        errors.append(
            f"layouts=[{','.join(layouts)}] is empty, or has a duplicate: set "
            f"source.layouts=[{','.join(LAYOUTS)}]"
        )
    return errors
