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


def test_names():
    assert tasks.NAMES == tasks.TRAINED + tasks.HELD_OUT
    for name in tasks.NAMES:
        task = tasks.get(name)
        assert task.name == name
        assert task.metrics[-2:] == ("psnr", "ssim")
        assert task.primary in task.metrics
        assert task.description and "\n" not in task.description
    assert tasks.get("segmentation").primary == "miou"
    assert tasks.get("pose").primary == "pck"
    assert not tasks.get("pose").flips


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UserError, match="unknown task 'derian': did you mean 'derain'"):
        tasks.get("derian")


def test_a_task_of_the_users_own_has_the_general_metrics():
    assert tasks.of("pose") is tasks.get("pose")
    own = tasks.of("dehaze_2")
    assert (own.name, own.metrics, own.primary, own.flips) == (
        "dehaze_2",
        ("psnr", "ssim"),
        "psnr",
        False,
    )
    for name in ("", "../x", "Derain", "2nd", "a-b", "a\n"):
        with pytest.raises(UserError, match="is no plain name: use small letters"):
            tasks.of(name)


def test_tasks_of_many_pictures_or_one_are_known_and_not_evaluated():
    for name in ("images", "categories", "tuple", "video"):
        assert tasks.get(name).name == name and name not in tasks.NAMES
    assert tasks.get("images").flips and not tasks.get("video").flips


@pytest.mark.parametrize("name", tasks.NAMES)
def test_truth_is_a_perfect_answer_and_black_a_poor_one(name):
    task = tasks.get(name)
    _, truth = batch(name)
    perfect, black = task.score(truth, truth), task.score(torch.zeros_like(truth), truth)
    assert tuple(perfect) == task.metrics
    for metric in task.metrics:
        assert perfect[metric].shape == (3,)
        best = {"psnr": 60.0}.get(metric, 1.0)
        assert perfect[metric].tolist() == pytest.approx([best] * 3, abs=1e-5)
        assert (black[metric] < perfect[metric] - 0.05).all()
    for metric in {"psnr", task.primary}:  # a mostly black truth has a high SSIM with black
        assert (black[metric] < 0.4 * perfect[metric]).all()


@pytest.mark.parametrize("name", ["segmentation", "pose"])
def test_another_picture_or_the_query_is_a_poor_answer(name):
    task = tasks.get(name)
    query, truth = batch(name, count=12)
    assert task.score(truth.roll(1, 0), truth)[task.primary].mean() < 0.5
    assert task.score(query, truth)[task.primary].mean() < 0.25


@pytest.mark.parametrize("name", ["segmentation", "pose"])
def test_a_truth_with_nothing_to_find_scores_nan(name):
    task = tasks.get(name)
    _, truth = batch(name, count=2)
    truth[0] = 0
    scores = task.score(truth, truth)[task.primary]
    assert scores[0].isnan() and scores[1] == 1


def test_shapes_that_differ_are_refused():
    picture = torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="must both be"):
        tasks.get("derain").score(picture, torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="must both be"):
        tasks.get("derain").score(picture[0], picture[0])
