import numpy as np
import pytest
import torch

from delvm.tasks import derived


def test_to_grayscale_keeps_luma():
    image = np.array([[(255, 0, 0), (0, 255, 0), (0, 0, 255), (80, 80, 80)]], np.uint8)
    gray = derived.to_grayscale(image)
    assert (gray == gray[:, :, :1]).all()
    assert gray[0, :, 0].tolist() == [76, 150, 29, 80]


@pytest.mark.parametrize("size", [32, 64])
def test_mask_rectangle_is_one_black_rectangle(size):
    image = np.full((size, size, 3), 200, np.uint8)
    for seed in range(10):
        hole = (derived.mask_rectangle(image, np.random.default_rng(seed)) == 0).all(axis=2)
        rows, columns = np.flatnonzero(hole.any(1)), np.flatnonzero(hole.any(0))
        assert hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert hole.sum() == len(rows) * len(columns)
        assert size // 4 <= len(rows) <= size // 2 and size // 4 <= len(columns) <= size // 2
    assert (image == 200).all()


def test_mask_rectangle_size():
    image = np.full((40, 20, 3), 200, np.uint8)
    hole = derived.mask_rectangle(image, np.random.default_rng(0), (0.75, 0.75)) == 0
    assert hole.any((1, 2)).sum() == 30 and hole.any((0, 2)).sum() == 15
    assert (derived.mask_rectangle(image, np.random.default_rng(0), (1, 1)) == 0).all()


@pytest.mark.parametrize("size", [32, 64])
def test_edge_map_marks_shape_border(size):
    image = np.full((size, size, 3), 60, np.uint8)
    image[size // 4 : 3 * size // 4, size // 4 : 3 * size // 4] = 180
    edges = derived.edge_map(image)
    assert (edges == edges[:, :, :1]).all()
    middle = edges[size // 2, :, 0]
    assert middle[size // 4] > 200 and middle[3 * size // 4 - 1] > 200
    assert middle[size // 2] == 0 and middle[2] == 0
    assert not derived.edge_map(np.full((size, size, 3), 60, np.uint8)).any()


def hole_of(kind, image):
    rng = np.random.default_rng(1)
    mask = derived.mask_rectangle if kind == "box" else derived.mask_patches
    return mask(image, rng, **({} if kind == "box" else {"patch_size": 8}))


@pytest.mark.parametrize("kind", ["box", "patches"])
def test_psnr_in_the_hole_counts_its_pixels_alone(kind):
    rng = np.random.default_rng(0)
    truth = rng.integers(1, 200, (32, 32, 3)).astype(np.uint8)
    query = hole_of(kind, truth)
    hole = (query == 0).all(axis=2)
    assert (derived.find_hole(query, truth) == hole).all() and 0 < hole.sum() < hole.size
    inside, outside = truth.copy(), truth.copy()
    inside[hole] += 10
    outside[~hole] += 50
    expected = 20 * np.log10(255 / 10)
    assert derived.psnr_hole(inside, truth, query) == pytest.approx(expected)
    assert derived.psnr_hole(outside, truth, query) == 60.0
    pixels = [torch.from_numpy(i).permute(2, 0, 1)[None] / 255 for i in (inside, truth, query)]
    scores = derived.INPAINTING.score(*pixels)
    share = 10 * np.log10(hole.mean())
    assert scores["psnr_hole"].item() == pytest.approx(expected, abs=1e-4)
    assert scores["psnr"].item() == pytest.approx(expected - share, abs=1e-4)  # of the entire image


def test_what_is_black_in_the_photograph_does_not_count():
    truth = np.full((32, 32, 3), 90, np.uint8)
    truth[:6] = 0  # a black sky
    truth[20:22, 20:22] = 0  # a black spot within the hole is part of it
    query = truth.copy()
    query[16:26, 16:26] = 0
    hole = derived.find_hole(query, truth)
    assert hole[16:26, 16:26].all() and hole.sum() == 100
    assert np.isnan(derived.psnr_hole(truth, truth, truth))


def test_metrics_of_the_query_are_left_out_without_it():
    image = torch.full((1, 3, 32, 32), 0.5)
    assert derived.INPAINTING.metrics == ("psnr_hole", "psnr", "ssim")
    assert derived.INPAINTING.score(image, image).keys() == {"psnr", "ssim"}
    with pytest.raises(ValueError, match=r"query \(1, 3, 8, 8\) and truth"):
        derived.INPAINTING.score(image, image, torch.zeros(1, 3, 8, 8))
