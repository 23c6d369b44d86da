"""Noise, low resolution and low light, which are made of any image without a label."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from delvm.tasks.base import ImageArray, Task
from delvm.tasks.restoration import METRICS


def add_noise(
    image: ImageArray, rng: np.random.Generator, sigma: tuple[float, float] = (25.0, 50.0)
) -> ImageArray:
    """The image with white Gaussian noise.

    Args:
        image: (H, W, 3) uint8.
        rng: Where the strength and the noise come from.
        sigma: Range of the standard deviation in levels of 8 bits; the literature on denoising
            has 15, 25 and 50.
    """
    noise = rng.normal(0, rng.uniform(*sigma), image.shape)
    noisy: ImageArray = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    return noisy


def lower_resolution(image: ImageArray, factor: int = 4) -> ImageArray:
    """The image (H, W, 3) uint8 reduced by a factor and enlarged again, both bicubic."""
    height, width = image.shape[:2]
    reduced = (max(1, round(width / factor)), max(1, round(height / factor)))
    bicubic = Image.Resampling.BICUBIC
    return np.asarray(
        Image.fromarray(image).resize(reduced, bicubic).resize((width, height), bicubic)
    )


def darken(image: ImageArray, rng: np.random.Generator) -> ImageArray:
    """The image in low light: b (a x)^g for x in [0, 1].

    a is in [0.9, 1], b in [0.5, 1] and g in [1.5, 5], as in Lv et al. (arXiv 1908.00682); the noise
    that they add is left out.

    Args:
        image: (H, W, 3) uint8.
        rng: Where a, b and g come from.
    """
    a, b, gamma = rng.uniform(0.9, 1.0), rng.uniform(0.5, 1.0), rng.uniform(1.5, 5.0)
    dark: ImageArray = np.rint(255 * b * (a * image / 255) ** gamma).astype(np.uint8)
    return dark


DENOISE = Task(name="denoise", description="remove Gaussian noise", metric_fns=METRICS)
SUPER_RESOLUTION = Task(
    name="super_resolution",
    description="sharpen an image of a fourth of the resolution",
    metric_fns=METRICS,
)
LOW_LIGHT = Task(name="low_light", description="brighten a dark image", metric_fns=METRICS)

# Name of a task -> how its input is made of a clean image, given a random generator.
DEGRADATIONS: dict[str, Callable[[ImageArray, np.random.Generator], ImageArray]] = {
    DENOISE.name: add_noise,
    SUPER_RESOLUTION.name: lambda image, rng: lower_resolution(image),
    LOW_LIGHT.name: darken,
}
