"""Every task: a perfect prediction scores perfectly, and what is rendered is parsed back."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from delvm import tasks
from delvm.data.sources.shapes.source import Shapes
from delvm.evaluation.scores.video_scoring import frame_scores
from delvm.tasks import depth, derived, foreground, multi_pose, normals, reasoning
from tests.tasks.test_multi_pose import crowd
from tests.tasks.test_sam_masks import target

SIZE = 64


def of_shapes(task: str) -> np.ndarray:
    return Shapes(size=SIZE).pair("test", task, 0).target


def any_image() -> np.ndarray:
    return of_shapes("derain")


def disc() -> np.ndarray:
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return foreground.render((rows - 30) ** 2 + (columns - 25) ** 2 < 200)


def sphere() -> np.ndarray:
    y, x = np.mgrid[-1.2 : 1.2 : SIZE * 1j, -1.2 : 1.2 : SIZE * 1j]
    z = np.sqrt(np.where(x**2 + y**2 < 1, 1 - x**2 - y**2, np.nan))
    return normals.render(np.stack((x, y, z), axis=2))


# Task -> a ground truth of it; the others have no metrics that read an image.
TRUTHS: dict[str, Callable[[], np.ndarray]] = {
    **{name: partial(of_shapes, name) for name in tasks.NAMES},
    **dict.fromkeys(("denoise", "super_resolution", "low_light"), any_image),
    "foreground": disc,
    "masks": lambda: target(0, 6)[: 90 // 2, : 128 // 2],
    "poses": lambda: multi_pose.render(crowd(0, (0.45, 0.45)), np.array([0.45, 0.45]), 128),
    **{f"foreground_fold{fold}": disc for fold in range(4)},
    "depth": lambda: depth.render(np.linspace(0.4, 12, SIZE)[:, None] * np.ones((1, SIZE))),
    "normals": sphere,
    **{
        f"reasoning_{change}": partial(reasoning.render, reasoning.Object(80, 90, 30), SIZE)
        for change in reasoning.CHANGES
    },
}
# Task -> the query of a ground truth, for metrics that depend on it.
QUERIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "inpainting": lambda truth: derived.mask_rectangle(truth, np.random.default_rng(0)),
}
BEST = {"psnr": 60.0, "psnr_y": 60.0, "psnr_hole": 60.0}


def to_pixels(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("name", tasks.all_names())
def test_perfect_prediction_scores_perfectly(name: str) -> None:
    task = tasks.get(name)
    assert name in TRUTHS or not (task.metric_fns or task.set_metrics)
    image = TRUTHS.get(name, any_image)()
    truth = to_pixels(image)
    assert name in QUERIES or not task.query_metric_fns
    scores = task.score(truth, truth, to_pixels(QUERIES.get(name, np.asarray)(image)))
    assert list(scores) == list(task.metrics)
    for metric, value in scores.items():
        best = 0.0 if metric in task.lower_is_better else BEST.get(metric, 1.0)
        assert value.tolist() == pytest.approx([best], abs=1e-5), metric
    counted = task.measure(truth, truth)
    assert list(counted) == list(task.set_metrics)
    for metric, counts in counted.items():
        combine = task.set_metrics[metric].combine
        of_set = combine(counts.numpy(), np.array(["one"]))
        assert of_set == pytest.approx(0.0 if metric in task.lower_is_better else 1.0), metric
    assert task.primary_metric in task.metrics
    assert task.primary_metric not in task.lower_is_better  # reports take the highest for the best


def test_a_perfectly_continued_clip_scores_perfectly() -> None:
    """The metrics of frames ahead, by which sequences are evaluated."""
    clip = torch.stack([to_pixels(Shapes(size=SIZE).pair("test", "derain", i).target)[0]
                        for i in range(3)])[None]  # fmt: skip
    for metric, values in frame_scores(tasks.get("video"), clip, clip).items():
        assert values.tolist() == [pytest.approx([BEST.get(metric, 1.0)] * 3, abs=1e-5)], metric
    assert {name for name in tasks.all_names() if tasks.get(name).is_sequence} == {
        "video", "object_views",
    }  # fmt: skip
