"""Average precision by keypoint similarity equals that of pycocotools."""

from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from delvm.data.sources.shapes import people as stick_figures
from delvm.tasks import multi_pose, oks, pose
from tests.tasks.test_multi_pose import crowd

SIDE = 640.0


def random_case(seed: int) -> tuple[list[oks.People], list[oks.Detections]]:
    """Images with people of all sizes, some ignored, crowds or without keypoints; and detections
    that are near some of them, doubled or anywhere.
    """
    rng = np.random.default_rng(seed)
    truths, answers = [], []
    for _ in range(12):
        count = int(rng.integers(0, 5))
        scale = rng.choice((30.0, 60.0, 150.0, 300.0), (count, 1, 1))
        points = rng.random((count, 1, 2)) * 300 + rng.random((count, 17, 2)) * scale
        visible = rng.random((count, 17)) < 0.7
        crowds = rng.random(count) < 0.1
        visible[(rng.random(count) < 0.15) | crowds] = False
        low, high = points.min(axis=1), points.max(axis=1)
        boxes = np.concatenate((low, high - low), axis=1)
        areas = 0.5 * (high - low).prod(axis=1)
        ignored = crowds | ~visible.any(axis=1)
        truths.append(oks.People(points, visible, areas, boxes, ignored, crowds))
        found = []
        for person, size in zip(points, scale, strict=True):
            for noise in rng.choice((0.01, 0.03, 0.1), int(rng.integers(0, 3))):
                found.append(person + rng.normal(0, noise * size, (17, 2)))
        found += [rng.random((17, 2)) * 200 for _ in range(int(rng.integers(0, 3)))]
        # Scores in tenths: many are equal.
        scores = rng.integers(0, 10, len(found)) / 10
        answers.append(oks.Detections(np.array(found).reshape(-1, 17, 2), scores))
    return truths, answers


def coco_stats(truths: list[oks.People], answers: list[oks.Detections]) -> list[float]:
    """The ten numbers that COCOeval prints."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image, (people, found) in enumerate(zip(truths, answers, strict=True), 1):
        for g in range(len(people.points)):
            rows = np.column_stack((people.points[g], 2 * people.visible[g]))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": 1,
                "iscrowd": int(people.crowds[g]), "area": float(people.areas[g]),
                "bbox": people.boxes[g].tolist(), "keypoints": rows.ravel().tolist(),
                "num_keypoints": int(people.visible[g].sum()),
            })  # fmt: skip
        for points, score in zip(found.points, found.scores, strict=True):
            rows = np.column_stack((points, np.ones(17)))
            results.append({
                "image_id": image, "category_id": 1, "keypoints": rows.ravel().tolist(),
                "score": float(score),
            })  # fmt: skip
    with redirect_stdout(StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": number} for number in range(1, len(truths) + 1)],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}],
        }
        truth.createIndex()
        truth.dataset["info"] = {}
        evaluation = COCOeval(truth, truth.loadRes(results), "keypoints")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


@pytest.mark.parametrize("seed", range(8))
def test_summary_equals_cocoeval(seed: int) -> None:
    truths, answers = random_case(seed)
    names = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")
    found = oks.summarize(answers, truths)
    assert [found[name] for name in names] == pytest.approx(coco_stats(truths, answers), abs=1e-9)
    assert 0.01 < found["AP"] < 0.9


def test_nobody_to_be_found_is_nan() -> None:
    empty = oks.people_of_keypoints(np.zeros((0, 17, 2)))
    nothing = oks.detections_of_keypoints(np.zeros((0, 17, 2)))
    assert np.isnan(list(oks.summarize([nothing], [empty]).values())).all()


def test_stick_figures_have_the_average_precision_of_cocoeval() -> None:
    """Keypoints read from images of several people, of which one is missing and one is shifted."""
    truths, answers, counts = [], [], []
    for seed in range(6):
        scales = np.array([0.42, 0.42])
        skeletons = crowd(seed, (0.42, 0.42))
        moved = skeletons[: 1 + seed % 2] + 0.01 * (seed // 2)
        truth, answer = (
            multi_pose.parse_people(multi_pose.render(each, scales[: len(each)], 128))
            for each in (skeletons, moved)
        )
        counts.append(pose.oks_counts(answer, truth))
        coco = pose.COCO_INDICES
        truths.append(oks.people_of_keypoints(truth[:, coco] * SIDE))
        answers.append(oks.detections_of_keypoints(answer[:, coco] * SIDE))
    found = oks.average_precision_of_set(np.stack(counts), np.array([""] * 6))
    assert found == pytest.approx(coco_stats(truths, answers)[0], abs=1e-9)
    assert 0.3 < found < 0.8


@pytest.mark.parametrize("scales", [(1.0,), (0.45, 0.4), (0.33, 0.3, 0.3)])
def test_people_are_read_back(scales: tuple[float, ...]) -> None:
    for seed in range(4):
        skeletons = crowd(seed, scales)
        found = multi_pose.parse_people(multi_pose.render(skeletons, np.array(scales), 256))
        body = range(pose.NUM_BODY_KEYPOINTS)
        found = found[(~np.isnan(found[:, body, 0])).sum(axis=1) > 2]
        assert len(found) == len(scales)
        order = np.argsort(np.nanmean(found[:, :, 0], axis=1))
        offset = np.linalg.norm(found[order] - skeletons, axis=2)[:, body]
        assert np.nanmax(offset) < 0.03 and np.isnan(offset).mean() < 0.1


def test_pck_of_boxes_and_heads() -> None:
    points = stick_figures.random_keypoints(np.random.default_rng(1))
    truth = pose.render(points, 128)
    true = pose.parse(truth)
    low, high = np.nanmin(true, axis=0), np.nanmax(true, axis=0)
    box = (high - low).max()
    nose, neck = (true[pose.KEYPOINTS.index(name)] for name in ("nose", "neck"))
    head = np.linalg.norm(nose - neck)
    moved = np.roll(truth, 9, axis=1)  # 0.07 of the side
    assert pose.pck(moved, truth) == 1
    assert pose.pck_box(moved, truth) == pytest.approx(float(0.1 * box >= 0.07), abs=0.2)
    assert pose.pckh(moved, truth) == pytest.approx(float(0.5 * head >= 0.07), abs=0.2)
    assert np.isnan(pose.pckh(truth, np.zeros_like(truth)))
    assert np.isnan(pose.pck_box(truth, np.zeros_like(truth)))
