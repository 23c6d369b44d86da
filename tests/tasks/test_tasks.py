import pytest
import torch

from delvm import tasks
from delvm.data.sources.shapes.source import Shapes
from delvm.errors import UserError


def batch(task: str, size: int = 64, count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (B, 3, H, W) in [0, 1]."""
    source = Shapes(size=size)
    pairs = [source.pair("test", task, index) for index in range(count)]
    inputs, targets = (
        torch.stack([torch.from_numpy(getattr(pair, side).copy()) for pair in pairs])
        for side in ("input", "target")
    )
    return inputs.permute(0, 3, 1, 2) / 255, targets.permute(0, 3, 1, 2) / 255


def test_task_names_and_metrics():
    assert tasks.NAMES == tasks.TRAINED + tasks.HELD_OUT
    for name in tasks.NAMES:
        task = tasks.get(name)
        assert task.name == name
        assert task.metrics[-2:] == ("psnr", "ssim")
        assert task.primary_metric in task.metrics
        assert task.description and "\n" not in task.description
    assert tasks.get("segmentation").primary_metric == "miou"
    assert tasks.get("pose").primary_metric == "pck"
    assert not tasks.get("pose").allows_hflip


def test_unknown_task_error_names_closest():
    with pytest.raises(UserError, match="unknown task 'derian': did you mean 'derain'"):
        tasks.get("derian")


def test_unregistered_task_has_default_metrics():
    assert tasks.get_or_default("pose") is tasks.get("pose")
    own = tasks.get_or_default("dehaze_2")
    assert (own.name, own.metrics, own.primary_metric, own.allows_hflip) == (
        "dehaze_2",
        ("psnr", "ssim"),
        "psnr",
        False,
    )
    for name in ("", "../x", "Derain", "2nd", "a-b", "a\n"):
        with pytest.raises(UserError, match="invalid task name .*: use lower-case letters"):
            tasks.get_or_default(name)


def test_unpaired_tasks_registered_but_not_evaluated():
    for name in ("images", "categories", "tuple", "video"):
        assert tasks.get(name).name == name and name not in tasks.NAMES
    assert tasks.get("images").allows_hflip and not tasks.get("video").allows_hflip


@pytest.mark.parametrize("name", tasks.NAMES)
def test_truth_scores_perfect_and_black_low(name):
    task = tasks.get(name)
    query, truth = batch(name)
    perfect = task.score(truth, truth, query)
    black = task.score(torch.zeros_like(truth), truth, query)
    assert tuple(perfect) == task.metrics
    for metric in task.metrics:
        assert perfect[metric].shape == (3,)
        lowest = metric in task.lower_is_better
        best = 60.0 if metric.startswith("psnr") else 1.0 - lowest
        assert perfect[metric].tolist() == pytest.approx([best] * 3, abs=1e-5)
        assert ((1 - 2 * lowest) * (perfect[metric] - black[metric]) > 0.05).all()
    for metric in {"psnr", task.primary_metric}:  # a mostly black truth has a high SSIM with black
        assert (black[metric] < 0.4 * perfect[metric]).all()


@pytest.mark.parametrize("name", ["segmentation", "pose"])
def test_other_image_or_query_scores_low(name):
    task = tasks.get(name)
    query, truth = batch(name, count=12)
    assert task.score(truth.roll(1, 0), truth)[task.primary_metric].mean() < 0.5
    assert task.score(query, truth)[task.primary_metric].mean() < 0.25


@pytest.mark.parametrize("name", ["segmentation", "pose"])
def test_empty_truth_scores_nan(name):
    task = tasks.get(name)
    _, truth = batch(name, count=2)
    truth[0] = 0
    scores = task.score(truth, truth)[task.primary_metric]
    assert scores[0].isnan() and scores[1] == 1


def test_score_shape_mismatch_error():
    image = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="must both be"):
        tasks.get("derain").score(image, torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="must both be"):
        tasks.get("derain").score(image[0], image[0])


def test_register_adds_a_task_with_its_own_metrics(monkeypatch):
    monkeypatch.setattr(tasks, "_TASKS", dict(tasks._TASKS))
    task = tasks.Task("dehaze", "remove haze", {"zero": lambda p, t: 0.0}, "zero")
    assert tasks.register(task) is task is tasks.register(task)
    assert tasks.get("dehaze") is tasks.get_or_default("dehaze") is task
    truth = torch.zeros(1, 3, 32, 32)
    assert task.score(truth, truth)["zero"].tolist() == [0]
    with pytest.raises(UserError, match="task 'derain' exists already"):
        tasks.register(tasks.Task("derain", "another"))
    with pytest.raises(UserError, match="invalid task name 'a-b'"):
        tasks.register(tasks.Task("a-b", "x"))


def test_former_task_name_is_found():
    assert tasks.get("colourisation") is tasks.get_or_default("colourisation")
    assert tasks.get("colourisation") is tasks.get("colorization")
