"""Annotations as images: depth, normals, labels and masks in the formats that data sets store."""

import re
from collections.abc import Sequence
from contextlib import suppress
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from delvm.data.image_io import StoredImage, convert_to_rgb, open_stored
from delvm.data.sources._io.label_images import Palette, labels_to_rgb
from delvm.errors import UserError

# Gray of 8 bits with more values than this is a soft mask, or a compressed one, and not ids.
MAX_GRAY_IDS = 63
# What an image's own depths are scaled to: the darkest and brightest 2% of the pixels are clipped.
PERCENTILES = (2, 98)
_SAMPLED = 7  # every so many pixels are looked at for the range of several images


class AnnotationKind(StrEnum):
    """What the pixels of an annotation are.

    Attributes:
        image: colors or gray, such as edges or a rendered pose; as they are.
        labels: colors or ids; never smoothed.
        mask: how likely each pixel is foreground, in 8 or 16 bits or as 0 and 1; white where above
            one half, never smoothed.
        depth: distances in 16 or 32 bits, 0 where unknown; in 8 bits taken as rendered already.
        depth_float16: the same in half precision, whose bits are stored as an integer of 16 bits.
        disparity: as depth, but larger values are nearer (inverse or relative depth).
        normals: directions as colors; smoothed, never mirrored or turned.
    """

    image = "image"
    labels = "labels"
    mask = "mask"
    depth = "depth"
    depth_float16 = "depth_float16"
    disparity = "disparity"
    normals = "normals"


DEPTHS = (AnnotationKind.depth, AnnotationKind.depth_float16, AnnotationKind.disparity)
_GUESSES = (
    (AnnotationKind.disparity, r"dispar|inverse_?depth"),
    (AnnotationKind.depth, r"depth"),
    (AnnotationKind.normals, r"normal"),
    (AnnotationKind.labels, r"seg|label|mask|semantic|panoptic|instance"),
)


def guess_kind(folder: str) -> AnnotationKind:
    """The kind that the name of a directory suggests."""
    matches = (kind for kind, pattern in _GUESSES if re.search(pattern, folder.lower()))
    return next(matches, AnnotationKind.image)


class OpenedAnnotation(NamedTuple):
    """An image or an annotation in RGB.

    Attributes:
        stored: its pixels, and how it is to be turned.
        kind: what its pixels are; None for the image that is annotated.
        unsmoothed: whether it is resized to the nearest pixel.
    """

    stored: StoredImage
    kind: AnnotationKind | None = None
    unsmoothed: bool = False


def open_annotation(
    file: Path,
    name: str,
    kind: AnnotationKind | None,
    depth_range: tuple[float, float] | None,
    video_ids: Sequence[int] = (),
) -> OpenedAnnotation:
    """Open an image or annotation, which is not trusted, and render it in RGB.

    Args:
        file: its path.
        name: what to call it in messages.
        kind: of the annotation; None for the image that is annotated.
        depth_range: smallest and largest value to show of depth or disparity; None: its own.
        video_ids: of labels, as for `labels_to_rgb`.

    Raises:
        UserError: it is missing, damaged, too large, or has other values than its kind.
    """
    match kind:
        case None | AnnotationKind.image | AnnotationKind.normals:
            return OpenedAnnotation(open_stored(file, name), kind)
        case AnnotationKind.labels:
            labels = partial(_labels, video_ids=video_ids)
            return OpenedAnnotation(open_stored(file, name, labels), kind, unsmoothed=True)
        case AnnotationKind.mask:
            return OpenedAnnotation(open_stored(file, name, _mask), kind, unsmoothed=True)
    unknown: list[bool] = []

    def render(image: Image.Image) -> Image.Image:
        rgb = depth_to_rgb(image, kind, depth_range)
        # Pixels without a depth must not be mixed with others.
        unknown.append(_is_deep(image) and not np.asarray(rgb).all())
        return rgb

    return OpenedAnnotation(open_stored(file, name, render), kind, any(unknown))


def annotation_of_frame(frame: Image.Image, kind: AnnotationKind | None) -> OpenedAnnotation:
    """A frame of a video file as an annotation, or as what is annotated; depth is not changed."""
    if kind is AnnotationKind.mask:
        frame = _mask(frame)
    return OpenedAnnotation(
        StoredImage(frame, 1), kind, kind in (AnnotationKind.mask, AnnotationKind.labels)
    )


def _is_deep(image: Image.Image) -> bool:
    """Whether an image has one channel of more than 8 bits."""
    return image.mode.startswith("I") or image.mode == "F"


def depth_to_rgb(
    image: Image.Image, kind: AnnotationKind, depth_range: tuple[float, float] | None = None
) -> Image.Image:
    """A depth map as gray: near is white (255), far is dark gray (1), and unknown is black (0).

    The gray level is linear in the inverse of the depth, as monocular depth networks predict it and
    LVM shows it. So it does not depend on the unit of the file. Depth in 8 bits, gray or color, is
    rendered already, and is not changed.

    Args:
        image: of any mode.
        kind: depth, depth_float16 or disparity.
        depth_range: smallest and largest value shown, in the unit of the file; None: those of the
            image itself, between the percentiles `PERCENTILES` of its inverse depth.

    Raises:
        ValueError: no pixel has a depth.
    """
    if not _is_deep(image):
        return convert_to_rgb(image)
    known, near = _nearness(image, kind)
    if not known.any():
        raise ValueError("no pixel has a depth")
    if depth_range is None:
        low, high = np.percentile(near, PERCENTILES)
    else:
        low, high = sorted(_invert(np.array(depth_range), kind))
    level = np.full(near.shape, 0.5)
    if high > low:
        level = np.clip((near - low) / (high - low), 0, 1)
    gray = np.zeros(known.shape)
    gray[known] = np.round(1 + 254 * level)
    return Image.fromarray(gray.astype(np.uint8)).convert("RGB")


def common_depth_range(files: Sequence[Path], kind: AnnotationKind) -> tuple[float, float] | None:
    """The range of the depth in several images, such as the frames of a video.

    Args:
        files: that cannot be read are left out.
        kind: depth, depth_float16 or disparity.

    Returns:
        Smallest and largest value as for `depth_to_rgb`, between the percentiles of all images
        together; None where no image has a depth in more than 8 bits, or all of one distance.
    """
    found: list[npt.NDArray[np.float64]] = []

    def collect(image: Image.Image) -> Image.Image:
        if _is_deep(image):
            found.append(_nearness(image, kind)[1][::_SAMPLED])
        return Image.new("RGB", image.size)

    for file in files:
        with suppress(UserError):
            open_stored(file, "", collect)
    values = np.concatenate(found) if found else np.zeros(0)
    if not values.size:
        return None
    low, high = sorted(_invert(np.percentile(values, PERCENTILES), kind).tolist())
    return (low, high) if high > low else None


def common_ids(files: Sequence[Path]) -> tuple[int, ...]:
    """The ids in all label images of a video, if they have more than 8 bits, else ().

    Ids of instances are far above the number of colors, so they are numbered; in each frame alone,
    a number would stand for another instance whenever one enters or leaves.

    Args:
        files: that cannot be read are left out.
    """
    found = set[int]()
    modes: list[str] = []

    def collect(image: Image.Image) -> Image.Image:
        modes.append(image.mode)
        if image.mode.startswith("I"):
            found.update(np.unique(np.asarray(image)).tolist())
        return Image.new("RGB", (1, 1))

    for file in files:
        with suppress(UserError):
            open_stored(file, "", collect)
        if modes and not found:  # of 8 bits: not read a second time
            break
    return tuple(sorted(found))


def _nearness(
    image: Image.Image, kind: AnnotationKind
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Which pixels (H, W) have a depth, and the inverse depth of these (n,)."""
    values = np.asarray(image)
    if kind is AnnotationKind.depth_float16:
        values = values.astype(np.uint16).view(np.float16)
    values = values.astype(np.float64)
    known = np.isfinite(values) & (values > 0)
    return known, _invert(values[known], kind)


def _invert(values: npt.NDArray[np.float64], kind: AnnotationKind) -> npt.NDArray[np.float64]:
    """Depth as inverse depth and the other way round; disparity as it is."""
    inverted: npt.NDArray[np.float64] = values if kind is AnnotationKind.disparity else 1 / values
    return inverted


def _labels(image: Image.Image, video_ids: Sequence[int]) -> Image.Image:
    """Labels as RGB: colors are kept, and ids become the colors of Pascal VOC."""
    if image.mode == "L" and len(np.unique(np.asarray(image))) > MAX_GRAY_IDS + 1:
        return convert_to_rgb(image)
    return labels_to_rgb(image, VOC_PALETTE, video_ids)


def _mask(image: Image.Image) -> Image.Image:
    """A soft mask as black and white; of a palette all entries but the first are white."""
    if image.mode == "1":
        return image.convert("RGB")
    if image.mode == "P":
        values = np.asarray(image) > 0
    elif image.mode == "L" or _is_deep(image):
        values = np.asarray(image)
    else:  # the brightest channel, since the luminance of a pure color is low
        values = np.asarray(image.convert("RGB")).max(-1)
    # By the largest value, since 0 and 1, or 0 and 255, are also saved in more bits.
    largest = 1 if image.mode == "F" else values.max()
    half = next((top for top in (1, 255) if largest <= top), 65535) / 2
    return Image.fromarray(np.where(values > half, 255, 0).astype(np.uint8)).convert("RGB")


def _voc_color(label: int) -> tuple[int, int, int]:
    """The color of a label of Pascal VOC.

    Bits 0, 3 and 6 of a label are the highest three bits of red, bits 1, 4 and 7 those of green,
    and bits 2 and 5 those of blue, each lowest first.
    """
    red, green, blue = (
        sum((label >> (3 * position + channel) & 1) << (7 - position) for position in range(3))
        for channel in range(3)
    )
    return red, green, blue


VOC_PALETTE: Palette = [_voc_color(label) for label in range(1, 256)]
