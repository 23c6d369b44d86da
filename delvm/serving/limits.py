"""What is accepted from a client, and images from clients, which are not trusted."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from delvm.data.image_io import StoredImage, aligned_pair, open_stored
from delvm.errors import UserError

Upload: TypeAlias = bytes | Path  # an image as a client sent it: its bytes, or a file of them

# Decoders of rare formats have had many bugs that a file can exploit.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
FORMATS_IN_WORDS = "PNG, JPEG, WebP, GIF or BMP"
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What is accepted from a client.

    Attributes:
        max_upload_mb: of one uploaded file, and of the body of one request, in MiB.
        max_pixels: of one image.
        max_queue: requests that wait; one more is refused. Page and endpoint have a queue each.
        max_answers: that are computed alternately, each with its keys and values in memory. The
            others that are not refused wait.
        max_cache_mb: of all files that the page keeps on disk, in MiB; above it uploads and answers
            are refused until old files are deleted.
        max_body_seconds: that the body of one request may take to arrive.
    """

    max_upload_mb: int = 16
    max_pixels: int = 20_000_000
    max_queue: int = 16
    max_answers: int = 4
    max_cache_mb: int = 1024
    max_body_seconds: float = 30

    @property
    def max_upload_bytes(self) -> int:
        """`max_upload_mb` in bytes."""
        return self.max_upload_mb * MIB


def open_upload(upload: Upload, name: str, limits: Limits) -> StoredImage:
    """Open an image from a client, after its size has been checked.

    Args:
        upload: its bytes or file.
        name: what to call it in messages, such as "the query".
        limits: of its size.

    Returns:
        the image in mode RGB, and how it is meant to be displayed.

    Raises:
        UserError: it is too large, damaged, of another format than `FORMATS`, or its file has been
            deleted.
    """
    return open_stored(read_upload(upload, name, limits), name)


def open_pair(
    pair: tuple[Upload, Upload], names: tuple[str, str], limits: Limits
) -> tuple[Image.Image, Image.Image]:
    """Open input and target of a pair, turned as `delvm generate` does.

    Raises:
        UserError: as `open_upload`, or they have different shapes.
    """
    first, second = (
        open_upload(each, name, limits) for each, name in zip(pair, names, strict=True)
    )
    return aligned_pair(first, second, names)


def read_upload(upload: Upload, name: str, limits: Limits) -> bytes:
    """The bytes of an image from a client, after its size has been checked.

    Args:
        upload, name, limits: as of `open_upload`.

    Raises:
        UserError: as `open_upload`, but for damage behind the header of the file.
    """
    try:
        size = len(upload) if isinstance(upload, bytes) else upload.stat().st_size
        if size > limits.max_upload_bytes:
            raise UserError(
                f"{name} has {size / MIB:.1f} MiB, above the limit of {limits.max_upload_mb} MiB: "
                "send a smaller file"
            )
        data = upload if isinstance(upload, bytes) else upload.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{name} is no longer here, since uploads are deleted after an hour: upload it again"
        ) from None
    width, height = _size(data, name)
    if width * height > limits.max_pixels:
        raise UserError(
            f"{name} has {width} x {height} pixels, above the limit of {limits.max_pixels:,}: "
            "send a smaller image"
        )
    return data


def on_white(upload: Upload, name: str, limits: Limits) -> bytes:
    """A drawing, transparent where nothing was painted, as a PNG on a white sheet.

    Raises:
        UserError: as `open_upload`.
    """
    data = read_upload(upload, name, limits)
    open_stored(data, name)  # else a damaged file would be reported in other words
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        painted = image.convert("RGBA")
    sheet = Image.new("RGBA", painted.size, "white")
    return png_bytes(Image.alpha_composite(sheet, painted).convert("RGB"))


def png_bytes(image: Image.Image) -> bytes:
    """An image as the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _size(data: bytes, name: str) -> tuple[int, int]:
    """Width and height from the header of a file."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"{name} is too large: {error}") from None
    except Exception:  # decoders raise nearly anything on a damaged file
        raise UserError(f"{name} cannot be read as an image: send {FORMATS_IN_WORDS}") from None
