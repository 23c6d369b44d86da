"""Tasks derived from any image without a label; here they are held out from training."""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from delvm.tasks import boundaries
from delvm.tasks.base import ImageArray, SetMetric, Task
from delvm.tasks.lab import ab_error
from delvm.tasks.metrics import psnr_of_error

LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601


def to_grayscale(image: ImageArray) -> ImageArray:
    """The image (H, W, 3) without its colors."""
    luma = image.astype(np.float32) @ LUMA
    return np.repeat((luma + 0.5).astype(np.uint8)[:, :, None], 3, axis=2)


def is_gray(image: ImageArray) -> bool:
    """Whether an image (H, W, 3) has no colors, so that nothing is left to be colorized."""
    return bool((image == to_grayscale(image)).all())


def mask_rectangle(
    image: ImageArray, rng: np.random.Generator, size: tuple[float, float] = (0.3, 0.5)
) -> ImageArray:
    """The image with a black rectangle at a random position.

    Args:
        image: (H, W, 3) uint8.
        rng: Where the rectangle's sides and position come from.
        size: Range of each side of the rectangle, as a fraction of the image's side, in (0, 1].
    """
    height, width = image.shape[:2]
    rows, columns = (int(rng.uniform(*size) * side) for side in (height, width))
    top = int(rng.integers(0, height - rows + 1))
    left = int(rng.integers(0, width - columns + 1))
    masked = image.copy()
    masked[top : top + rows, left : left + columns] = 0
    return masked


def mask_patches(
    image: ImageArray,
    rng: np.random.Generator,
    patch_size: int = 32,
    fraction: tuple[float, float] = (0.25, 0.5),
) -> ImageArray:
    """The image with random squares of a grid in black, as in LVM (arXiv 2312.00785).

    Args:
        image: (H, W, 3) uint8.
        rng: Where the number of squares and their positions come from.
        patch_size: Side of a square in pixels.
        fraction: Range of the fraction of the squares that are black, in (0, 1]; at least one is.
    """
    rows, columns = (-(-side // patch_size) for side in image.shape[:2])
    cells = rows * columns
    count = max(1, round(rng.uniform(*fraction) * cells))
    masked = image.copy()
    for cell in rng.choice(cells, size=count, replace=False):
        top, left = (patch_size * int(index) for index in divmod(cell, columns))
        masked[top : top + patch_size, left : left + patch_size] = 0
    return masked


def edge_map(image: ImageArray) -> ImageArray:
    """Edges of the image (H, W, 3): white on black, about side / 32 thick.

    The threshold is relative to the strongest gradients of the image, so that an image of low
    contrast has edges too.
    """
    luma = image.astype(np.float32) @ LUMA
    sigma = min(luma.shape) / 50
    gradient = ndimage.gaussian_gradient_magnitude(luma, sigma)
    strong = max(float(np.quantile(gradient, 0.9)), 1.0)
    lines = np.clip(2 * gradient / strong - 0.8, 0, 1)
    return np.repeat((255 * lines + 0.5).astype(np.uint8)[:, :, None], 3, axis=2)


def find_hole(query: ImageArray, truth: ImageArray) -> npt.NDArray[np.bool_]:
    """The pixels (H, W) that are to be filled in, of a query and its ground truth (H, W, 3) uint8.

    The black regions of the query, each as far as it is connected, in which the ground truth is
    not black everywhere: what is black in the photograph itself does not count, unless it touches
    such a region.
    """
    black = (query == 0).all(axis=2)
    regions, _ = ndimage.label(black)
    filled = np.unique(regions[black & (truth != 0).any(axis=2)])
    hole: npt.NDArray[np.bool_] = np.isin(regions, filled)
    return hole


def psnr_hole(prediction: ImageArray, truth: ImageArray, query: ImageArray) -> float:
    """PSNR in dB of the hole alone, at most `PSNR_CAP`; NaN without a hole."""
    hole = find_hole(query, truth)
    if not hole.any():
        return float("nan")
    return psnr_of_error(prediction[hole].astype(np.float64) - truth[hole])


COLORIZATION = Task(
    name="colorization",
    description="restore the colors of a grayscale image",
    metric_fns={"ab_error": ab_error},
    lower_is_better=("ab_error",),
)
INPAINTING = Task(
    name="inpainting",
    description="fill in what is black",
    query_metric_fns={"psnr_hole": psnr_hole},
)
EDGES = Task(
    name="edges",
    description="edges of an image, white on black",
    metric_fns={"ois": boundaries.ois},
    set_metrics={"ods": SetMetric(boundaries.counts, boundaries.ods)},
)
