"""CIE L*a*b* of sRGB images under D65, in which distances are about as large as they look."""

import numpy as np
import numpy.typing as npt

from delvm.tasks.base import ImageArray

_RGB_TO_XYZ = np.array((
    (0.4124564, 0.3575761, 0.1804375),
    (0.2126729, 0.7151522, 0.0721750),
    (0.0193339, 0.1191920, 0.9503041),
))  # fmt: skip
_WHITE = np.array((0.95047, 1.0, 1.08883))
_EDGE = 6 / 29


def to_lab(image: ImageArray) -> npt.NDArray[np.float64]:
    """L in [0, 100], a and b of an image (H, W, 3) uint8."""
    values = image.astype(np.float64) / 255
    linear = np.where(values > 0.04045, ((values + 0.055) / 1.055) ** 2.4, values / 12.92)
    xyz = linear @ _RGB_TO_XYZ.T / _WHITE
    x, y, z = np.moveaxis(
        np.where(xyz > _EDGE**3, np.cbrt(xyz), xyz / (3 * _EDGE**2) + 4 / 29), 2, 0
    )
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=2)


def ab_error(prediction: ImageArray, truth: ImageArray) -> float:
    """Mean distance of the colors (a, b), whatever the lightness."""
    offset = to_lab(prediction)[:, :, 1:] - to_lab(truth)[:, :, 1:]
    return float(np.linalg.norm(offset, axis=2).mean())
