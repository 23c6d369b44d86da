"""Images in and out: opening untrusted files, conversion to tensors and back."""

import io
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from torch import Tensor

from delvm.data.file_kinds import HEAD_BYTES, describe_file, describe_head
from delvm.data.resizing import same_shape
from delvm.data.types import ImageArray
from delvm.errors import UserError

# Below the size at which PIL itself starts to warn of decompression bombs, so its warning has
# nothing to add. Catching it around each image would cost a sixth of decoding one of 64 px, and
# decoding threads would interfere with each other.
MAX_PIXELS = 80_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class StoredImage(NamedTuple):
    """An image as its file stores it, and how it is meant to be displayed.

    Annotations such as masks and keypoints usually refer to the stored pixels.

    Attributes:
        pixels: in mode RGB, not turned.
        orientation: EXIF's tag, 1 to 8; 1 is upright.
    """

    pixels: Image.Image
    orientation: int

    def upright(self) -> Image.Image:
        """The image as it is meant to be displayed: turned and mirrored as EXIF asks for."""
        method = _TRANSPOSE.get(self.orientation)
        return self.pixels if method is None else self.pixels.transpose(method)

    def of_size(self, size: tuple[int, int]) -> Image.Image | None:
        """The image that annotations of that width and height refer to; None if neither fits.

        The stored pixels come first; some tools annotate what they display.
        """
        if self.pixels.size == size:
            return self.pixels
        upright = self.upright()
        return upright if upright.size == size else None


_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_INVERSE = {6: 8, 8: 6}  # the others are their own inverses


def open_image(
    file: str | Path | bytes, name: str = "", short_side: int | None = None
) -> Image.Image:
    """Open any image that PIL reads as 8-bit RGB; the file is not trusted.

    The first frame of an animation is taken; the rest is as in `to_rgb`.

    Args:
        file: A path, or the bytes of a file.
        name: What to call it in messages; the path by default.
        short_side: A JPEG may be decoded at a half, a quarter or an eighth of its size, which takes
            less time and memory, as long as its short side stays at least this.

    Returns:
        The image in mode RGB, at least one pixel in each direction.

    Raises:
        UserError: The file is missing, is not an image, is damaged, or exceeds MAX_PIXELS.
    """
    return open_stored(file, name, short_side=short_side).upright()


def open_stored(
    file: str | Path | bytes,
    name: str = "",
    convert: Callable[[Image.Image], Image.Image] | None = None,
    short_side: int | None = None,
) -> StoredImage:
    """Open an image without turning it as EXIF asks for; the rest is as for `open_image`.

    Args:
        file, name, short_side: As for `open_image`.
        convert: Makes RGB of an image in its own mode; may raise ValueError.
    """
    name = name or ("image" if isinstance(file, bytes) else str(file))
    if not isinstance(file, bytes):
        if not Path(file).exists():
            raise UserError(f"image not found: {name}")
        if Path(file).is_dir():
            raise UserError(f"{name} is a directory, not an image")
        if not Path(file).is_file():  # reading a named pipe would never end
            raise UserError(f"{name} is not a file")
    try:
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(source, formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            if short_side:
                image.draft(None, (short_side, short_side))
            return _stored(image, convert or convert_to_rgb)
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name} is too large ({error}): the limit is {MAX_PIXELS:,} pixels"
        ) from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        head = file[:HEAD_BYTES] if isinstance(file, bytes) else None
        known = describe_head(head) if head is not None else describe_file(Path(str(file)))
        reason = known or ("not an image" if isinstance(error, UnidentifiedImageError) else error)
        raise UserError(f"{name} cannot be read as an image: {reason}") from None


def stored_size(file: Path, name: str = "") -> tuple[int, int]:
    """Width and height of an image, not turned, from the header of its file, which is not trusted.

    Args:
        file, name: As for `open_image`.

    Raises:
        UserError: The file is missing, is not an image, or exceeds MAX_PIXELS.
    """
    try:
        with Image.open(file, formats=_formats()) as image:
            if image.width * image.height <= MAX_PIXELS:
                return image.size
    except Exception:  # decoders raise nearly anything on a damaged file
        pass
    return open_stored(file, name).pixels.size  # raises the reason


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Every format PIL reads except EPS, which Ghostscript would run as a program."""
    Image.init()
    with suppress(ImportError):  # reads HEIC where it is installed
        import_module("pillow_heif").register_heif_opener()
    return [name for name in Image.ID if name != "EPS"]


def aligned(first: StoredImage, second: StoredImage) -> tuple[Image.Image, Image.Image]:
    """The images of a pair, of which both are turned as EXIF asks for, or neither."""
    one, other = all_aligned((first, second))
    return one, other


def aligned_pair(
    first: StoredImage, second: StoredImage, names: tuple[str, str]
) -> tuple[Image.Image, Image.Image]:
    """`aligned`, of a pair in a prompt, whose images have the same shape up to a pixel.

    Args:
        first, second: input and target.
        names: of both, for the message.

    Raises:
        UserError: they have different shapes.
    """
    one, other = aligned(first, second)
    if not same_shape(one.size, other.size):
        raise UserError(
            f"{names[0]} has {one.width} x {one.height} pixels and {names[1]} "
            f"{other.width} x {other.height}: crop them to one shape"
        )
    return one, other


def all_aligned(images: Sequence[StoredImage]) -> list[Image.Image]:
    """The images of an example, of which all are turned as EXIF asks for, or none.

    Where only some have the tag, the others were usually made from stored pixels, or for them, by a
    tool that dropped the tag, perhaps in another resolution; the shapes decide where they can.
    """
    one_turn = len({each.orientation for each in images}) == 1
    if not one_turn and all(same_shape(images[0].pixels.size, each.pixels.size) for each in images):
        return [each.pixels for each in images]
    return [each.upright() for each in images]


def to_rgb(image: Image.Image) -> Image.Image:
    """Any image of PIL as 8-bit RGB, the same whether it comes from a file or from Python.

    EXIF rotation is applied, transparency is composited over black, 16-bit gray is scaled to 8
    bits, and colors are converted to sRGB by the ICC profile that the image contains.

    Returns:
        The image in mode RGB without metadata; applied again, this changes nothing.

    Raises:
        ValueError: The range of its values is unknown.
        OSError: It is a file that is damaged.
    """
    return to_stored(image).upright()


def to_stored(image: Image.Image) -> StoredImage:
    """`to_rgb` without turning the image; raises the same errors."""
    return _stored(image, convert_to_rgb)


def _stored(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> StoredImage:
    orientation = _orientation(image)
    image.load()
    rgb = convert(image)
    if rgb is image:
        rgb = image.copy()
    rgb.info = {}  # an orientation left here would be applied a second time
    # PIL turns a TIFF when it is loaded.
    if orientation != 1 and image.format == "TIFF" and _orientation(image) == 1:
        rgb = rgb.transpose(_TRANSPOSE[_INVERSE.get(orientation, orientation)])
    return StoredImage(rgb, orientation)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1 if there is none that is known."""
    value = image.getexif().get(ExifTags.Base.Orientation, 1)
    return int(value) if value in _TRANSPOSE else 1


def convert_to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of PIL as RGB, not turned; raises ValueError if the range of values is unknown."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        top = 1.0 if image.mode == "F" else 65535.0
        if not (values.min() >= 0 and values.max() <= top):  # also true of NaN
            raise ValueError(
                f"values {values.min():g}..{values.max():g} of mode {image.mode} "
                f"are outside 0..{top:g}"
            )
        if image.mode != "F" and 0 < values.max() < 256:
            raise ValueError(
                f"values 0..{values.max():g} in more than 8 bits would all be black: save it in 8 "
                "bits or, if they are labels of source=paired, set source.label_targets=true"
            )
        return Image.fromarray((values * (255.0 / top) + 0.5).astype(np.uint8)).convert("RGB")
    profile = image.info.get("icc_profile")
    if not image.has_transparency_data:
        return _to_srgb(image, profile)
    rgba = image.convert("RGBA")
    if profile:
        opaque = _to_srgb(rgba.convert("RGB"), profile)
        opaque.putalpha(rgba.getchannel("A"))
        rgba = opaque
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba).convert("RGB")


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """An opaque image as RGB; a profile that is sRGB, damaged or of other colors is ignored."""
    if image.mode == "P":
        image = image.convert("RGB")
    if isinstance(profile, bytes) and (transform := _srgb_transform(profile, image.mode)):
        converted: Image.Image = transform.apply(image)
        return converted
    return image.convert("RGB")


@lru_cache(maxsize=8)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From the colors of an ICC profile to sRGB, for images of a mode; None if there is none."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if _COLOR_SPACES.get(opened.profile.xcolor_space.strip()) != mode:
            return None
        if "srgb" in ImageCms.getProfileDescription(opened).lower():
            return None
        return ImageCms.buildTransform(opened, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


_COLOR_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # ICC -> PIL


def to_tensor(images: Sequence[Image.Image | ImageArray]) -> Tensor:
    """Images as a tensor of pixels.

    Args:
        images: RGB images of one size: PIL, or uint8 (H, W, 3).

    Returns:
        float32 (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: There are no images, or they have another type or shape or different sizes.
    """
    arrays = [np.asarray(image) for image in images]
    if not arrays:
        raise ValueError("no images given")
    for array in arrays:
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"expected uint8 (H, W, 3), got {array.dtype} {array.shape}")
        if array.shape != arrays[0].shape:
            raise ValueError(f"images of different sizes: {arrays[0].shape} and {array.shape}")
    stacked = torch.from_numpy(np.stack(arrays))  # (B, H, W, 3)
    return stacked.permute(0, 3, 1, 2).contiguous().float().div_(255)


def upload(pixels: Tensor, device: torch.device) -> Tensor:
    """Pixels on a device; to a GPU they are copied from pinned memory, and nobody waits for it."""
    if device.type == "cuda" and pixels.device.type == "cpu":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) as images: values are clamped to [0, 1] and rounded half up."""
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"expected (B, 3, H, W), got {tuple(pixels.shape)}")
    scaled = pixels.detach().float().clamp(0, 1).mul(255).add(0.5).floor()
    arrays = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
