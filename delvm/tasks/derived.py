"""Tasks derived from any picture without a label; held out from training here."""

import numpy as np
from scipy import ndimage

from delvm.tasks.base import Task

LUMA = np.array((0.299, 0.587, 0.114), np.float32)  # ITU-R BT.601


def grey(picture: np.ndarray) -> np.ndarray:
    """The picture (H, W, 3) uint8 without its colours."""
    luma = picture.astype(np.float32) @ LUMA
    return np.repeat((luma + 0.5).astype(np.uint8)[:, :, None], 3, axis=2)


def cut_hole(
    picture: np.ndarray, rng: np.random.Generator, ratio: tuple[float, float] = (0.3, 0.5)
) -> np.ndarray:
    """The picture (H, W, 3) uint8 with a black rectangle somewhere.

    Args:
        picture: (H, W, 3) uint8.
        rng: Where the rectangle's sides and place come from.
        ratio: Least and most of each side of the picture that the rectangle takes, in (0, 1].
    """
    height, width = picture.shape[:2]
    rows, columns = (int(rng.uniform(*ratio) * side) for side in (height, width))
    top = int(rng.integers(0, height - rows + 1))
    left = int(rng.integers(0, width - columns + 1))
    holed = picture.copy()
    holed[top : top + rows, left : left + columns] = 0
    return holed


def trace_edges(picture: np.ndarray) -> np.ndarray:
    """Edges of the picture (H, W, 3) uint8: white on black, about side / 32 thick.

    The strongest gradients of each picture count as edges, so a pale picture has them too.
    """
    luma = picture.astype(np.float32) @ LUMA
    sigma = min(luma.shape) / 50
    slope = ndimage.gaussian_gradient_magnitude(luma, sigma)
    strong = max(float(np.quantile(slope, 0.9)), 1.0)
    lines = np.clip(2 * slope / strong - 0.8, 0, 1)
    return np.repeat((255 * lines + 0.5).astype(np.uint8)[:, :, None], 3, axis=2)


COLOURISATION = Task(name="colourisation", description="a grey picture given its colours")
INPAINTING = Task(name="inpainting", description="a black hole filled in")
EDGES = Task(name="edges", description="edges of a picture, white on black")
