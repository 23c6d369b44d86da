import numpy as np
import pytest
import torch
from pycocotools import mask as coco
from scipy import ndimage

from delvm import tasks
from delvm.data.augment import MAX_LABEL_COLORS
from delvm.tasks import sam_masks as masks


def columns(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of a mask's runs, found pixel by pixel."""
    flat = np.concatenate(([0], mask.T.ravel(), [0])).astype(int)
    step = np.diff(flat)
    return np.flatnonzero(step == 1), np.flatnonzero(step == -1)


def random_masks(seed: int, count: int, height: int = 90, width: int = 128) -> np.ndarray:
    """Ellipses anywhere, large and small, (count, H, W)."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    found = []
    for _ in range(count):
        y, x, tall, wide = rng.random(4) * (height, width, height / 3, width / 3) + (0, 0, 3, 3)
        found.append(((rows - y) / tall) ** 2 + ((cols - x) / wide) ** 2 < 1)
    return np.stack(found)


def target(seed: int, count: int = 40) -> np.ndarray:
    samples = random_masks(seed, count)
    height, width = samples.shape[1:]
    labels = masks.label_map_from_runs(map(columns, samples), height, width, count)
    return masks.random_palette(count, np.random.default_rng(seed))[labels]


def test_palette_distinct_far_apart_and_not_black():
    table = np.asarray(((0, 0, 0), *masks.PALETTE), float)
    distance = np.linalg.norm(table[:, None] - table[None], axis=2)
    assert distance[np.triu_indices(len(table), 1)].min() > 2 * masks.TOLERANCE
    assert len(masks.PALETTE) == MAX_LABEL_COLORS - 1
    for seed in (0, 1):
        samples = masks.random_palette(len(masks.PALETTE), np.random.default_rng(seed))
        assert samples.dtype == np.uint8 and not samples[0].any()
        assert {tuple(map(int, color)) for color in samples[1:]} == set(masks.PALETTE)
    one, same, other = (masks.random_palette(9, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (one == same).all() and not (one == other).all()


@pytest.mark.parametrize("max_masks", [5, 40])
def test_label_map_from_runs_equals_painting_masks(max_masks):
    samples = random_masks(3, 40)
    by_size = sorted(
        samples, key=lambda mask: -int(coco.area(coco.encode(np.asfortranarray(mask))))
    )
    slow = np.zeros(samples.shape[1:], np.uint8)
    for label, mask in enumerate(by_size[:max_masks], 1):
        slow[mask] = label
    fast = masks.label_map_from_runs(map(columns, samples), *slow.shape, max_masks=max_masks)
    assert fast.dtype == np.uint8 and (fast == slow).all()


def test_parse_inverts_label_map():
    for seed in range(5):
        samples = random_masks(seed, 60)
        labels = masks.label_map_from_runs(map(columns, samples), *samples.shape[1:3], max_masks=60)
        for label in range(1, 61):  # specks are not read back, and that is by intent
            islands, _ = ndimage.label(labels == label)
            small = np.bincount(islands.ravel()) < masks.MIN_AREA * labels.size
            labels[small[islands] & (labels == label)] = 0
        colors = masks.random_palette(60, np.random.default_rng(seed))
        found = masks.parse(colors[labels])
        expected = np.array([0, *(1 + masks.PALETTE.index(tuple(map(int, c))) for c in colors[1:])])
        assert (found == expected[labels]).all()


def test_score_values():
    image = target(0)
    assert masks.miou(image, image) == 1
    assert masks.miou(image[:, :, [1, 2, 0]], image) == 1  # other colors, same masks
    assert masks.miou(np.roll(image, 40, axis=1), image) < 0.3
    assert masks.miou(target(1), image) < 0.3
    assert masks.miou(np.zeros_like(image), image) == 0
    assert np.isnan(masks.miou(image, np.zeros_like(image)))


def test_miou_robust_to_noise_and_blur():
    image = target(0, 12)
    noise = np.random.default_rng(0).normal(0, 10, image.shape)
    noisy = np.clip(image + noise, 0, 255).astype(np.uint8)
    assert masks.miou(noisy, image) > 0.95
    blurred = ndimage.gaussian_filter(image, (0.7, 0.7, 0))
    assert masks.miou(blurred, image) > 0.7


def test_miou_robust_to_color_drift():
    """As of a tokenizer that darkens colors and shifts their hue beyond the palette's tolerance."""
    image = target(0, 12)
    drifted = image * np.array((0.75, 0.85, 0.8)) + (image > 0).any(2, keepdims=True) * 20
    drifted = np.clip(drifted, 0, 255).astype(np.uint8)
    assert masks.miou(drifted, image) > 0.9
    noise = np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)
    assert masks.miou(noise, image) < 0.1


def test_task_registered_but_not_procedural():
    assert tasks.get("masks") is tasks.get_or_default("masks") is masks.TASK
    assert masks.TASK.allows_hflip and "masks" not in tasks.NAMES


def test_batch_scored_per_image():
    images = np.stack([target(0), target(1)])
    truth = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    scores = masks.TASK.score(torch.stack((truth[0], truth[0])), truth)
    assert tuple(scores) == ("miou", "best_iou", "recall", "psnr", "ssim")
    assert scores["miou"].tolist() == pytest.approx([1, masks.miou(images[0], images[1])])
