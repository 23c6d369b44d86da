"""Similarity of two images, pixel by pixel: one value per image."""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional.image import (
    multiscale_structural_similarity_index_measure,
    peak_signal_noise_ratio,
    structural_similarity_index_measure,
)

# Identical images have an infinite PSNR; a finite cap keeps means finite.
PSNR_CAP = 60.0
_WINDOW = 11
_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def psnr_of_error(error: npt.NDArray[np.float64]) -> float:
    """PSNR in dB of an error in levels of 8 bits, of any shape; capped at `PSNR_CAP`."""
    rmse = math.sqrt(float((error**2).mean()))
    return min(PSNR_CAP, 20 * math.log10(255 / rmse)) if rmse else PSNR_CAP


def psnr(prediction: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, capped at `PSNR_CAP`.

    Args:
        prediction: Pixels (B, 3, H, W) in [0, 1].
        truth: Pixels of the same shape.

    Returns:
        (B,) one value per image.
    """
    values = peak_signal_noise_ratio(
        prediction, truth, data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return values.clamp(max=PSNR_CAP)


def ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004; Gaussian window 11, sigma 1.5).

    There is a window at every pixel; images are padded by reflection.

    Args:
        prediction: Pixels (B, 3, H, W) in [0, 1], at least 6 x 6.
        truth: Pixels of the same shape.

    Returns:
        (B,) one value per image, at most 1.
    """
    values = structural_similarity_index_measure(
        prediction, truth, data_range=1.0, reduction="none"
    )
    assert isinstance(values, Tensor)  # a tuple only when the contrast map is requested
    return values.reshape(len(truth))


def ms_ssim_scales(side: int) -> int:
    """Scales of MS-SSIM that fit an image of that side: the usual five from 176 pixels on."""
    # The window must fit the smallest scale; torchmetrics needs a little more for four scales.
    fitting = [n for n in range(1, 6) if side // max(2 ** (n - 1), (n - 1) ** 2) >= _WINDOW]
    return max(fitting, default=0)


def ms_ssim(prediction: Tensor, truth: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang et al. 2003; Gaussian window 11, sigma 1.5).

    Below 176 pixels there is no room for five scales: only those of `ms_ssim_scales` are used, and
    their weights are scaled to sum to 1.

    Args:
        prediction: Pixels (B, 3, H, H) in [0, 1], at least 11 x 11.
        truth: Pixels of the same shape.

    Returns:
        (B,) one value per image, at most 1.
    """
    weights = _SCALE_WEIGHTS[: ms_ssim_scales(truth.shape[-1])]
    return multiscale_structural_similarity_index_measure(
        prediction,
        truth,
        data_range=1.0,
        betas=tuple(weight / sum(weights) for weight in weights),
        normalize="relu",
        reduction="none",
    ).reshape(len(truth))


def to_uint8(pixels: Tensor) -> npt.NDArray[np.uint8]:
    """Pixels (B, 3, H, W) in [0, 1] as images (B, H, W, 3) uint8, rounded half up."""
    levels = (pixels.detach().float().cpu().clamp(0, 1) * 255 + 0.5).floor().to(torch.uint8)
    images: npt.NDArray[np.uint8] = levels.permute(0, 2, 3, 1).numpy()
    return images
