"""Images in and out: opening untrusted files, conversion to tensors and back."""

import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from delvm.data.types import ImageArray
from delvm.errors import UserError

# Below the size at which PIL itself starts to warn of decompression bombs, so its warning has
# nothing to add. Catching it around each image would cost a sixth of decoding one of 64 px, and
# decoding threads would interfere with each other.
MAX_PIXELS = 80_000_000
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_image(file: str | Path | bytes, name: str = "") -> Image.Image:
    """Open any image that PIL reads as 8-bit RGB; the file is not trusted.

    The first frame of an animation is taken, EXIF rotation is applied, transparency is composited
    over black, and 16-bit gray is scaled to 8 bits.

    Args:
        file: A path, or the bytes of a file.
        name: What to call it in messages; the path by default.

    Returns:
        The image in mode RGB, at least one pixel in each direction.

    Raises:
        UserError: The file is missing, is not an image, is damaged, or exceeds MAX_PIXELS.
    """
    name = name or ("image" if isinstance(file, bytes) else str(file))
    if not isinstance(file, bytes):
        if not Path(file).exists():
            raise UserError(f"image not found: {name}")
        if Path(file).is_dir():
            raise UserError(f"{name} is a directory, not an image")
    try:
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(source, formats=_formats()) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width} x {height} pixels")
            return _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{name} is too large ({error}): the limit is {MAX_PIXELS:,} pixels"
        ) from None
    except Exception as error:  # decoders raise nearly anything on a damaged file
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        raise UserError(f"{name} cannot be read as an image: {reason}") from None


@lru_cache(maxsize=1)
def _formats() -> list[str]:
    """Every format PIL reads except EPS, which Ghostscript would run as a program."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of PIL as RGB; raises ValueError if the range of the values is unknown."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image).astype(np.float64)
        top = 1.0 if image.mode == "F" else 65535.0
        if not (values.min() >= 0 and values.max() <= top):  # also true of NaN
            raise ValueError(
                f"values {values.min():g}..{values.max():g} of mode {image.mode} "
                f"are outside 0..{top:g}"
            )
        image = Image.fromarray((values * (255.0 / top) + 0.5).astype(np.uint8))
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return image.convert("RGB")


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


def to_pil(pixels: Tensor) -> list[Image.Image]:
    """Pixels (B, 3, H, W) as images: values are clamped to [0, 1] and rounded half up."""
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"expected (B, 3, H, W), got {tuple(pixels.shape)}")
    scaled = pixels.detach().float().clamp(0, 1).mul(255).add(0.5).floor()
    arrays = scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(array)) for array in arrays]
