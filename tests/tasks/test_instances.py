"""Instances found in whatever colors they have, and matched by their best IoU."""

import numpy as np
import pytest
from scipy import ndimage

from delvm.data.sources.shapes.source import Shapes
from delvm.tasks import instances, sam_masks, segmentation
from tests.tasks.test_sam_masks import target
from tests.tasks.test_segmentation import blocks


def drifted(image: np.ndarray) -> np.ndarray:
    """Darker, tinted, a little blurred and noisy, as a tokenizer's codebook leaves colors."""
    values = ndimage.gaussian_filter(image.astype(float), (0.7, 0.7, 0)) * (0.55, 0.75, 0.65)
    values += (10, 0, 15) + np.random.default_rng(0).normal(0, 4, image.shape)
    return np.clip(values, 0, 255).astype(np.uint8)


def slow_best_ious(prediction: np.ndarray, truth: np.ndarray) -> list[float]:
    found = []
    for label in np.unique(truth[truth > 0]):
        one = truth == label
        others = [prediction == other for other in np.unique(prediction[prediction > 0])]
        found.append(max(((one & m).sum() / (one | m).sum() for m in others), default=0.0))
    return found


def test_best_ious_equal_pairwise_comparison() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        prediction, truth = rng.integers(0, 5, (2, 12, 10))
        found = instances.best_ious([prediction], truth)
        assert found == pytest.approx(slow_best_ious(prediction, truth))
    nothing = np.zeros_like(truth)
    assert instances.best_ious([nothing], truth).tolist() == [0] * 4
    both = instances.best_ious([nothing, prediction], truth)
    assert both == pytest.approx(slow_best_ious(prediction, truth))


def test_nan_without_true_instances() -> None:
    empty = np.zeros((8, 8), np.int64)
    assert np.isnan(instances.mean_best_iou([empty + 1], empty))
    assert np.isnan(instances.recall([empty + 1], empty))


def test_recall_counts_overlaps_of_half() -> None:
    truth = np.zeros((4, 8), np.int64)
    truth[:, :4], truth[:, 4:] = 1, 2
    prediction = np.zeros_like(truth)
    prediction[:2, :4], prediction[:1, 4:] = 7, 9
    assert instances.best_ious([prediction], truth).tolist() == [0.5, 0.25]
    assert instances.recall([prediction], truth) == 0.5
    assert instances.mean_best_iou([prediction], truth) == 0.375


def test_masks_survive_color_drift_that_the_palette_does_not() -> None:
    truth = target(0, 12)
    answer = drifted(truth)
    by_palette = instances.mean_best_iou([sam_masks.parse(answer)], sam_masks.parse(truth))
    assert by_palette < 0.6  # a drift of 42 levels is another color, or none
    assert sam_masks.best_iou(answer, truth) > 0.8
    assert sam_masks.recall(answer, truth) > 0.9


def test_segmentation_survives_color_drift() -> None:
    truth = segmentation.render(blocks(20, 14, 9))
    answer = (0.75 * ndimage.gaussian_filter(truth, (0.7, 0.7, 0)) + (20, 10, 25)).astype(np.uint8)
    assert segmentation.best_iou(answer, truth) > 0.85
    assert segmentation.recall(answer, truth) == 1
    assert segmentation.best_iou(np.zeros_like(truth), truth) == 0
    assert segmentation.best_iou(np.roll(truth, 15, axis=0), truth) < 0.3


def test_photographs_are_not_taken_for_masks() -> None:
    scores = []
    for index in range(8):
        pair = Shapes(size=64).pair("test", "segmentation", index)
        scores.append(segmentation.best_iou(pair.input, pair.target))
    assert np.nanmean(scores) < 0.3
    truth = target(0, 8)
    photo = np.where(truth.any(axis=2, keepdims=True), truth // 2, (90, 120, 60)).astype(np.uint8)
    assert sam_masks.best_iou(photo, truth) < 0.5 < sam_masks.best_iou(truth // 2, truth)
