"""All the masks of an image as in SA-1B: dozens, each in its own color, on black.

Large masks are painted first and colors are random, as in DeLVM (arXiv 2402.04841), but two masks
never have one color. `segmentation` has fewer colors, further apart, whose order has a meaning, and
images of another kind; so this is a separate task.
"""

from collections.abc import Iterable
from itertools import product

import numpy as np
import numpy.typing as npt

from delvm.tasks import instances, segmentation
from delvm.tasks.base import ImageArray, Task

# Four levels per channel, without black. Together with black they are the maximum number of colors
# that augmentation takes for labels and not for a photograph: a warped target keeps its colors.
CHANNEL_LEVELS = (0, 85, 170, 255)
PALETTE = tuple((r, g, b) for r, g, b in product(CHANNEL_LEVELS, repeat=3) if r or g or b)
# Just under half the distance of two neighbors, so that no pixel is near two.
TOLERANCE = 42.0
# As a fraction of the image: 32 of 256 x 256 pixels. Real masks of SA-1B are small.
MIN_AREA = 0.0005


def random_palette(count: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Distinct colors in random order.

    Args:
        count: Number of colors, at most those of the palette.
        rng: Where the order comes from.

    Returns:
        (count + 1, 3) uint8, black for the background first.
    """
    assert count <= len(PALETTE)
    order = rng.permutation(len(PALETTE))[:count]
    return np.concatenate((np.zeros((1, 3)), np.asarray(PALETTE)[order])).astype(np.uint8)


def label_map_from_runs(
    runs: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    height: int,
    width: int,
    max_masks: int,
) -> npt.NDArray[np.uint8]:
    """Label the pixels of an image with its largest masks, smaller ones over larger ones.

    Painting runs touches only the pixels of masks, which for a hundred masks of a large image is
    many times faster than masks as arrays.

    Args:
        runs: For each mask, where its runs start and stop in the image in column-major order, (n,)
            int64 each.
        height, width: Of the image.
        max_masks: Number of masks to take, at most 255.

    Returns:
        Labels (height, width) uint8: 0 is background, 1 + rank of size a mask.
    """
    assert max_masks < 256  # a label must not wrap in uint8
    by_size = sorted(runs, key=lambda run: -int((run[1] - run[0]).sum()))[:max_masks]
    labels = np.zeros(width * height, np.uint8)
    for label, (starts, stops) in enumerate(by_size, 1):
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            labels[start:stop] = label
    return np.ascontiguousarray(labels.reshape(width, height).T)


def parse(image: ImageArray) -> instances.LabelMap:
    """Label the masks of an image (H, W, 3) uint8.

    Returns:
        Labels (H, W) int64: 0 is background, 1 + index in the palette a mask.
    """
    return segmentation.parse(image, PALETTE, TOLERANCE, MIN_AREA)


def _candidates(image: ImageArray, truth: instances.LabelMap) -> list[instances.LabelMap]:
    """The masks of a prediction by the palette and, if its background is black, by any colors.

    Otherwise a photograph, whose objects have colors of their own, would be taken for masks.
    """
    by_palette, by_color = parse(image), instances.parse_any_colors(image, MIN_AREA)
    outside = by_color[truth == 0]
    return [by_palette] if len(outside) and (outside > 0).mean() > 0.5 else [by_palette, by_color]


def best_iou(prediction: ImageArray, truth: ImageArray) -> float:
    """Mean over the true masks of the best IoU with any predicted one; NaN without any."""
    labels = parse(truth)
    return instances.mean_best_iou(_candidates(prediction, labels), labels)


def recall(prediction: ImageArray, truth: ImageArray) -> float:
    """Fraction of the true masks that overlap a predicted one by half; NaN without any."""
    labels = parse(truth)
    return instances.recall(_candidates(prediction, labels), labels)


def miou(prediction: ImageArray, truth: ImageArray) -> float:
    """Mean IoU of the masks in a true image, as `segmentation.hungarian_miou`.

    Colors are not compared: which mask has which color is random. Of the readings of a prediction,
    by the palette and by its own frequent colors, the better one counts.

    Args:
        prediction: Image (H, W, 3) uint8.
        truth: Image of the same size.

    Returns:
        A value in [0, 1]; NaN if the ground truth has no mask.
    """
    labels = parse(truth)
    return max(
        segmentation.hungarian_miou(each, labels, max(len(PALETTE), int(each.max())))
        for each in _candidates(prediction, labels)
    )


TASK = Task(
    name="masks",
    description="all masks of an image on black, each in its own color",
    metric_fns={"miou": miou, "best_iou": best_iou, "recall": recall},
    primary_metric="miou",
    label_palette=PALETTE,
)
