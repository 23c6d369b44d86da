"""Foreground segmentation by example: the objects of one class in white on black.

The classes are those of Pascal VOC, in the four folds of Pascal-5i (Shaban et al., "One-Shot
Learning for Semantic Segmentation", BMVC 2017): fold i holds out classes 5i + 1 to 5i + 5. The key
of an example begins with its class, and prompts are of the query's class.

Two scores have the name mIoU in the literature, and both are here:
    iou          the mean over images of the foreground's IoU, as in visual prompting (Bar et al.,
                 NeurIPS 2022)
    class_miou   the mean over classes of intersection / union, both summed over the images of the
                 class, as in few-shot segmentation (PANet, HSNet)
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from delvm.tasks.base import Counts, ImageArray, SetMetric, Task

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
NUM_FOLDS = 4
PALETTE = ((255, 255, 255),)


def fold_classes(fold: int) -> tuple[str, ...]:
    """The five classes that a fold holds out."""
    return CLASSES[5 * fold : 5 * fold + 5]


def render(mask: npt.NDArray[np.bool_]) -> ImageArray:
    """A mask (H, W) as an image (H, W, 3) uint8, white on black."""
    return np.repeat(np.where(mask, 255, 0).astype(np.uint8)[:, :, None], 3, axis=2)


def parse(image: ImageArray) -> npt.NDArray[np.bool_]:
    """The pixels (H, W) of an image (H, W, 3) uint8 that are nearer to white than to black."""
    foreground: npt.NDArray[np.bool_] = image.sum(axis=2, dtype=np.int64) > 382
    return foreground


def areas(prediction: ImageArray, truth: ImageArray) -> Counts:
    """Pixels (4,): intersection and union of the foreground, then of the background."""
    p, t = parse(prediction), parse(truth)
    return np.array([(p & t).sum(), (p | t).sum(), (~p & ~t).sum(), (~p | ~t).sum()], np.float64)


def iou(prediction: ImageArray, truth: ImageArray) -> float:
    """IoU of the foreground; NaN if the ground truth has none."""
    both, either, _, _ = areas(prediction, truth)
    return float(both / either) if parse(truth).any() else float("nan")


def accuracy(prediction: ImageArray, truth: ImageArray) -> float:
    """Fraction of the pixels that are on the right side."""
    return float((parse(prediction) == parse(truth)).mean())


def class_miou(counts: Counts, groups: npt.NDArray[np.str_]) -> float:
    """Mean over classes of the foreground's IoU, summed over the images of each class."""
    names, index = np.unique(groups, return_inverse=True)
    both, either = (np.bincount(index, counts[:, i], len(names)) for i in (0, 1))
    known = either > 0
    return float((both[known] / either[known]).mean()) if known.any() else float("nan")


def fb_iou(counts: Counts, groups: npt.NDArray[np.str_]) -> float:
    """Mean of the IoUs of foreground and background, summed over all images whatever the class."""
    both, either = counts[:, (0, 2)].sum(axis=0), counts[:, (1, 3)].sum(axis=0)
    return float((both[either > 0] / either[either > 0]).mean())


def class_of(key: str) -> str:
    """The class of an example, with which its key begins."""
    return key.split("-", 1)[0]


# Of any data set with masks of one class, without folds.
FOREGROUND = Task(
    name="foreground",
    description="the objects of one class in white on black",
    metric_fns={"iou": iou, "accuracy": accuracy},
    primary_metric="iou",
    label_palette=PALETTE,
    set_metrics={"fb_iou": SetMetric(areas, fb_iou)},
)


def _fold(fold: int) -> Task:
    return replace(
        FOREGROUND,
        name=f"foreground_fold{fold}",
        description=f"{FOREGROUND.description}; Pascal-5i, fold {fold}",
        set_metrics={"class_miou": SetMetric(areas, class_miou)} | dict(FOREGROUND.set_metrics),
        group_of=class_of,
    )


FOLDS = tuple(map(_fold, range(NUM_FOLDS)))
