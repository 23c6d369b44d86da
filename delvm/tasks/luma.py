"""PSNR and SSIM of the Y channel, with the conventions of the literature on rain removal.

Its MATLAB scripts convert images of 8 bits by rgb2ycbcr (ITU-R BT.601, Y in 16..235, rounded to 8
bits), and compare Y by 20 log10(255 / RMSE) and by the SSIM of Wang et al. 2004 as first published:
a Gaussian window of 11 x 11 pixels with sigma 1.5, only where it fits the image, no downsampling.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from delvm.tasks.base import ImageArray
from delvm.tasks.metrics import psnr_of_error

_WEIGHTS = np.array((65.481, 128.553, 24.966)) / 255
_RADIUS, _SIGMA = 5, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def to_luma(image: ImageArray) -> npt.NDArray[np.uint8]:
    """Y (H, W) uint8 of an image (H, W, 3) uint8, as rgb2ycbcr of MATLAB."""
    luma: npt.NDArray[np.uint8] = (image.astype(np.float64) @ _WEIGHTS + 16.5).astype(np.uint8)
    return luma


def psnr_y(prediction: ImageArray, truth: ImageArray) -> float:
    """PSNR of Y in dB, at most `PSNR_CAP`; the range is 255 although Y is in 16..235."""
    return psnr_of_error(to_luma(prediction).astype(np.float64) - to_luma(truth))


def ssim_y(prediction: ImageArray, truth: ImageArray) -> float:
    """SSIM of Y, at most 1; NaN for images smaller than the window of 11 pixels."""
    if min(truth.shape[:2]) < 2 * _RADIUS + 1:
        return float("nan")
    a, b = (to_luma(image).astype(np.float64) for image in (prediction, truth))
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    return float((luminance * (2 * covariance + _C2) / (variance_a + variance_b + _C2)).mean())


def _blur(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The Gaussian window's means, where it fits into (H, W)."""
    offsets = np.arange(-_RADIUS, _RADIUS + 1)
    window = np.exp(-(offsets**2) / (2 * _SIGMA**2))
    window /= window.sum()
    for axis in (0, 1):
        values = ndimage.correlate1d(values, window, axis)
    inner: npt.NDArray[np.float64] = values[_RADIUS:-_RADIUS, _RADIUS:-_RADIUS]
    return inner
