"""Foreground segmentation: folds, and the two scores called mIoU, by hand."""

import numpy as np
import pytest

from delvm import tasks
from delvm.tasks import foreground


def test_folds_are_those_of_pascal5i() -> None:
    folds = [foreground.fold_classes(fold) for fold in range(4)]
    assert sum(folds, ()) == foreground.CLASSES and all(len(fold) == 5 for fold in folds)
    assert folds[0] == ("aeroplane", "bicycle", "bird", "boat", "bottle")
    assert folds[3] == ("pottedplant", "sheep", "sofa", "train", "tvmonitor")


def test_parse_inverts_render_and_splits_grays_in_the_middle() -> None:
    mask = np.random.default_rng(0).random((9, 7)) < 0.5
    assert (foreground.parse(foreground.render(mask)) == mask).all()
    levels = np.array([0, 127, 128, 255], np.uint8)[None, :, None].repeat(3, axis=2)
    assert foreground.parse(levels).tolist() == [[False, False, True, True]]


def image(*rows: str) -> np.ndarray:
    return foreground.render(np.array([[letter == "x" for letter in row] for row in rows]))


def test_iou_of_one_image() -> None:
    truth, answer = image("xx..", "xx.."), image("x...", "xxx.")
    assert foreground.iou(answer, truth) == pytest.approx(3 / 5)
    assert foreground.accuracy(answer, truth) == pytest.approx(6 / 8)
    assert np.isnan(foreground.iou(answer, image("....", "....")))
    assert foreground.areas(answer, truth).tolist() == [3, 5, 3, 5]


def test_class_miou_sums_within_a_class_first() -> None:
    pairs = {
        "cat": [(image("x..."), image("xxxx")), (image("...."), image("x..."))],
        "dog": [(image("xx.."), image("xx.."))],
    }
    counts = np.stack([foreground.areas(*pair) for each in pairs.values() for pair in each])
    groups = np.array(["cat", "cat", "dog"])
    # cat: (1 + 0) / (4 + 1); dog: 2 / 2. The mean over images would be (1/4 + 0 + 1) / 3.
    assert foreground.class_miou(counts, groups) == pytest.approx((1 / 5 + 1) / 2)
    assert foreground.fb_iou(counts, groups) == pytest.approx((3 / 7 + (0 + 3 + 2) / 9) / 2)
    task = tasks.get("foreground_fold1")
    assert task.set_metrics["class_miou"].combine(counts, groups) == pytest.approx(0.6)


def test_foreground_without_classes_has_no_groups() -> None:
    task, fold = tasks.get("foreground"), tasks.get("foreground_fold2")
    assert task.group_of is None and list(task.set_metrics) == ["fb_iou"]
    assert fold.group_of is foreground.class_of and list(fold.set_metrics) == [
        "class_miou",
        "fb_iou",
    ]
    assert (fold.metrics, fold.label_palette) == (task.metrics, task.label_palette)


def test_group_is_the_class_of_the_key() -> None:
    group_of = tasks.get("foreground_fold0").group_of
    assert group_of is not None and group_of("bird-2007_000033") == "bird"
