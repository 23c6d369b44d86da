"""Depth, normals, edges and colors: what is rendered is parsed, and errors have known scores."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import color

from delvm.data.sources.shapes.photographs import load_photo
from delvm.data.sources.stereo import stereo_scene
from delvm.tasks import boundaries, depth, derived, lab, normals


def test_depth_is_read_back_within_half_a_level() -> None:
    distance = np.geomspace(depth.NEAR, depth.FAR, 400).reshape(20, 20)
    distance[3, 4] = np.nan
    found = depth.parse(depth.render(distance))
    assert np.isnan(found[3, 4]) and np.isnan(found).sum() == 1
    step = (1 / depth.NEAR - 1 / depth.FAR) / 254
    assert np.nanmax(np.abs(1 / found - 1 / distance)) <= step / 2 + 1e-9
    assert set(np.unique(depth.render(np.array([[0.1, 99.0, 0.0]])))) == {0, 1, 255}


def test_scores_of_depth_by_hand() -> None:
    truth = depth.render(np.full((4, 4), 2.0))
    for factor, good in ((1.2, 1.0), (0.84, 1.0), (1.3, 0.0), (0.75, 0.0)):
        answer = depth.render(np.full((4, 4), 2.0 * factor))
        assert depth.delta1(answer, truth) == good
        assert depth.abs_rel(answer, truth) == pytest.approx(abs(factor - 1), abs=0.02)
    half = truth.copy()
    half[:2] = 0  # unknown in the truth: left out
    assert depth.delta1(depth.render(np.full((4, 4), 2.0)), half) == 1
    assert depth.delta1(np.zeros_like(truth), truth) == 0  # black is far
    assert np.isnan(depth.delta1(truth, np.zeros_like(truth)))
    assert np.isnan(depth.abs_rel(truth, np.zeros_like(truth)))


def test_depth_of_the_stereo_pair_has_the_true_proportions() -> None:
    from skimage.data import stereo_motorcycle

    disparity = stereo_motorcycle()[2]
    found = depth.parse(np.asarray(stereo_scene()[1]))
    known = np.isfinite(disparity)
    assert (np.isnan(found) == ~known).all()
    # Disparity times depth is a constant, up to the 254 levels.
    product = found[known] * disparity[known]
    assert np.abs(product / np.median(product) - 1).max() < 0.02


def test_normals_of_a_sphere_are_read_back() -> None:
    y, x = np.mgrid[-1:1:40j, -1:1:40j]
    z = np.sqrt(np.where(x**2 + y**2 < 1, 1 - x**2 - y**2, np.nan))
    vectors = np.stack((np.where(np.isnan(z), np.nan, x), np.where(np.isnan(z), np.nan, y), z), 2)
    image = normals.render(vectors)
    found = normals.parse(image)
    assert (np.isnan(found[:, :, 0]) == np.isnan(z)).all()
    assert np.nanmax(np.abs(found - vectors)) < 0.01
    for degrees in (5.0, 15.0, 25.0, 40.0):
        angle = np.radians(degrees)
        turn = np.array((
            (np.cos(angle), -np.sin(angle), 0), (np.sin(angle), np.cos(angle), 0), (0, 0, 1),
        ))  # fmt: skip
        flat = np.broadcast_to(np.array((1.0, 0.0, 0.0)), (4, 4, 3))
        answer, truth = normals.render(flat @ turn.T), normals.render(flat)
        assert normals.mean_angle(answer, truth) == pytest.approx(degrees, abs=0.5)
        for name, limit in normals.ANGLES.items():
            assert normals.TASK.metric_fns[name](answer, truth) == float(degrees < limit)
    assert normals.mean_angle(np.zeros_like(truth), truth) == 180
    assert np.isnan(normals.mean_angle(truth, np.zeros_like(truth)))


def test_edges_may_be_displaced_within_the_tolerance() -> None:
    truth = np.zeros((100, 100, 3), np.uint8)
    truth[:, 50] = 255
    assert boundaries.ois(truth, truth) == 1
    assert boundaries.ois(np.roll(truth, 1, axis=1), truth) == 1  # 0.0075 of 141 px is 1.06
    assert boundaries.ois(np.roll(truth, 2, axis=1), truth) == 0
    faint = truth // 4  # the best threshold is low
    assert boundaries.ois(faint, truth) == 1
    doubled = np.maximum(truth, np.roll(truth, 30, axis=1))
    assert boundaries.ois(doubled, truth) == pytest.approx(2 / 3)
    assert np.isnan(boundaries.ois(truth, np.zeros_like(truth)))


def test_ods_has_one_threshold_for_the_set() -> None:
    photos = [np.asarray(load_photo(name).resize((96, 96))) for name in ("chelsea", "coffee")]
    truths = [derived.edge_map(photo) for photo in photos]
    answers = [truths[0], truths[1] // 3]
    rows = np.stack([boundaries.counts(a, t) for a, t in zip(answers, truths, strict=True)])
    by_image = [boundaries.best_f(row) for row in rows]
    ods = boundaries.ods(rows, np.array(["", ""]))
    assert ods <= max(by_image) and ods < np.mean(by_image) + 1e-9 and ods > 0.4
    blurred = np.stack([
        boundaries.counts(ndimage.gaussian_filter(t, (3, 3, 0)), t) for t in truths
    ])  # fmt: skip
    assert boundaries.ods(blurred, np.array(["", ""])) < 1


def test_lab_is_that_of_scikit_image() -> None:
    photo = np.asarray(load_photo("coffee").resize((40, 40)))
    np.testing.assert_allclose(lab.to_lab(photo), color.rgb2lab(photo), atol=0.02)
    gray = derived.to_grayscale(photo)
    expected = np.linalg.norm(
        color.rgb2lab(photo)[:, :, 1:] - color.rgb2lab(gray)[:, :, 1:], axis=2
    )
    assert lab.ab_error(gray, photo) == pytest.approx(expected.mean(), abs=0.01)
    assert lab.ab_error(photo, photo) == 0
