import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from delvm import tasks
from delvm.data.sources.shapes import people
from delvm.tasks import multi_pose as poses
from delvm.tasks import pose

SIZE = 128


def crowd(seed: int, scales: tuple[float, ...]) -> np.ndarray:
    """A person in each column of the image, (n, 18, 2)."""
    rng = np.random.default_rng(seed)
    found = []
    for number, scale in enumerate(scales):
        points = people.random_keypoints(rng)
        center = np.nanmean(points, axis=0)
        at = ((number + 0.5) / len(scales), 0.5)
        found.append((points - center) * scale + at)
    return np.stack(found)


def test_single_person_equals_pose():
    points = people.random_keypoints(np.random.default_rng(0))
    rendered = poses.render(points[None], np.array([1.0]), SIZE)
    assert (rendered == pose.render(points, SIZE)).all()


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 0.45), (0.4, 0.3, 0.3)])
def test_parse_finds_every_person(scales):
    for seed in range(5):
        skeletons = crowd(seed, scales)
        found = poses.parse(poses.render(skeletons, np.array(scales), SIZE))
        for keypoint in (4, 7, 10, 13):  # hands and feet are far from other keypoints
            points_found = found[keypoint]
            distance = np.linalg.norm(points_found[:, None] - skeletons[None, :, keypoint], axis=2)
            assert len(points_found) == len(scales) and distance.min(axis=0).max() < 0.03
        assert not any(len(found[keypoint]) for keypoint in range(pose.NUM_BODY_KEYPOINTS, 18))


def test_score_values():
    skeletons, scales = crowd(0, (0.45, 0.45)), np.array([0.45, 0.45])
    truth = poses.render(skeletons, scales, SIZE)
    assert poses.f1(truth, truth) == 1
    assert poses.f1(np.zeros_like(truth), truth) == 0
    assert np.isnan(poses.f1(truth, np.zeros_like(truth)))
    assert poses.f1(truth[:, ::-1], truth) < 0.5  # left is not right
    one = poses.render(skeletons[:1], scales[:1], SIZE)
    # All that is found is true, half of what is true is found; and the other way round.
    assert poses.f1(one, truth) == pytest.approx(2 / 3, abs=0.03)
    assert poses.f1(truth, one) == pytest.approx(2 / 3, abs=0.03)
    blurred = Image.fromarray(truth).filter(ImageFilter.GaussianBlur(0.8))
    assert poses.f1(np.asarray(blurred), truth) > 0.9


def test_task_registered_and_never_flipped():
    assert tasks.get("poses") is poses.TASK and not poses.TASK.allows_hflip
    assert "poses" not in tasks.NAMES


def test_batch_scored_per_image():
    images = np.stack([poses.render(crowd(n, (0.5,)), np.array([0.5]), SIZE) for n in (0, 1)])
    truth = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    scores = poses.TASK.score(torch.stack((truth[0], truth[0])), truth)
    assert tuple(scores) == ("f1", "psnr", "ssim")
    assert scores["f1"].tolist() == pytest.approx([1, poses.f1(images[0], images[1])])
