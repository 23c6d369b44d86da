import colorsys

import numpy as np
import pytest
from PIL import Image, ImageFilter

from delvm.data.sources.shapes import people
from delvm.tasks import pose


def poses(count: int) -> list[np.ndarray]:
    return [people.random_keypoints(np.random.default_rng(seed)) for seed in range(count)]


def errors(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Distances of the body's keypoints; infinite where one is missing."""
    distance = np.linalg.norm(found - true, axis=1)[: pose.NUM_BODY_KEYPOINTS]
    return np.where(np.isnan(distance), np.inf, distance)


def test_keypoint_table_is_openpose():
    assert len(pose.KEYPOINTS) == len(pose.COLORS) == 18 and len(pose.LIMBS) == 17
    hues = [colorsys.rgb_to_hsv(*(level / 255 for level in c))[0] * 360 for c in pose.COLORS]
    assert np.round(hues).tolist() == pytest.approx([20 * i for i in range(18)], abs=1)
    names = {tuple(pose.KEYPOINTS[end] for end in limb) for limb in pose.LIMBS}
    assert ("neck", "right_shoulder") in names and ("left_eye", "left_ear") in names
    assert {end for limb in pose.LIMBS for end in limb} == set(range(18))


@pytest.mark.parametrize(("size", "within"), [(32, 0.035), (64, 0.02), (128, 0.015)])
def test_parse_finds_rendered_keypoints(size, within):
    for points in poses(40):
        found = pose.parse(pose.render(points, size))
        assert errors(found, points).max() < within
        assert np.isnan(found[pose.NUM_BODY_KEYPOINTS :]).all()


def test_parse_survives_blur_and_rescaling():
    within = []
    for points in poses(40):
        image = Image.fromarray(pose.render(points, 64))
        blurred = image.filter(ImageFilter.GaussianBlur(1.5))
        rescaled = image.resize((32, 32), Image.Resampling.BOX).resize((64, 64))
        for answer in (blurred, rescaled):
            within.append(errors(pose.parse(np.asarray(answer)), points) < pose.PCK_THRESHOLD)
    assert np.mean(within) > 0.99


def test_parse_missing_keypoints_nan():
    points = poses(1)[0]
    points[[4, 7, 10]] = np.nan  # both wrists, an ankle: the limbs to them go too
    found = pose.parse(pose.render(points, 64))
    assert np.isnan(found[[4, 7, 10]]).all()
    rest = np.setdiff1d(np.arange(pose.NUM_BODY_KEYPOINTS), (4, 7, 10))
    assert not np.isnan(found[rest]).any()


def test_parse_all_18_keypoints():
    points = np.full((18, 2), np.nan)
    columns, rows = np.meshgrid(np.linspace(0.1, 0.9, 6), np.linspace(0.2, 0.8, 3))
    points[:] = np.stack((columns, rows), axis=2).reshape(18, 2)
    found = pose.parse(pose.render(points, 256))
    np.testing.assert_allclose(found, points, atol=0.02)


def test_parse_black_image_finds_nothing():
    assert np.isnan(pose.parse(np.zeros((64, 64, 3), np.uint8))).all()
    assert not pose.render(np.full((18, 2), np.nan), 32).any()


def test_pck_is_fraction_of_found_keypoints():
    points = poses(1)[0]
    truth = pose.render(points, 64)
    assert pose.pck(truth, truth) == 1
    assert pose.pck(np.zeros_like(truth), truth) == 0
    assert np.isnan(pose.pck(truth, np.zeros_like(truth)))
    seven = points.copy()
    seven[[4, 7, 9, 10, 12, 13, 0]] = np.nan  # hands, knees, feet, nose
    assert pose.pck(pose.render(seven, 64), truth) == pytest.approx(0.5)


def test_pck_threshold():
    truth = np.zeros((100, 100, 3), np.uint8)
    truth[40:50, 40:50] = pose.COLORS[6]
    assert pose.pck(np.roll(truth, 9, axis=1), truth) == 1
    assert pose.pck(np.roll(truth, 11, axis=1), truth) == 0


def test_pck_of_flipped_prediction_is_low():
    scores = [pose.pck(pose.render(p, 64)[:, ::-1].copy(), pose.render(p, 64)) for p in poses(10)]
    assert np.mean(scores) < 0.5
