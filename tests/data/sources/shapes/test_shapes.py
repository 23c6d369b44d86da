from hashlib import blake2b
from importlib.metadata import version

import numpy as np
import pytest

from delvm import tasks
from delvm.data.sources.shapes import people, photographs, scenes
from delvm.data.sources.shapes.photographs import packaged_pool
from delvm.data.sources.shapes.source import Shapes
from delvm.data.types import SPLITS
from delvm.errors import UserError
from delvm.tasks import pose, segmentation


def same(a, b) -> bool:
    return bool((a.input == b.input).all() and (a.target == b.target).all())


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("task", tasks.NAMES)
def test_pair_images_have_the_size(task, size):
    pair = Shapes(size=size).pair("test", task, 3)
    assert (pair.key, pair.task) == ("000003", task)
    for image in (pair.input, pair.target):
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert image.std() > 3
    assert not (pair.input == pair.target).all()


@pytest.mark.parametrize("task", tasks.TRAINED)
def test_pair_depends_on_seed_split_and_index_only(task):
    source = Shapes(size=32)
    first = source.pair("train", task, 1)
    source.pair("train", task, 5)
    assert same(first, source.pair("train", task, 1))
    fewer = Shapes(size=32, train={task: 2}, num_val=9, num_test=1, held_out=[])
    assert same(first, fewer.pair("train", task, 1))
    assert not same(first, source.pair("train", task, 2))
    assert not same(first, Shapes(size=32, seed=1).pair("train", task, 1))
    assert not same(source.pair("val", task, 1), source.pair("test", task, 1))


# Mean levels of input and target of the first training pair. A change of the corpus makes
# shards and shipped weights stale, so it must not happen unnoticed.
FIRST_PAIRS = {
    "segmentation": (69.6, 16.7),
    "pose": (82.5, 15.5),
    "derain": (150.8, 83.6),
    "deblur": (115.3, 111.0),
}


@pytest.mark.parametrize("task", tasks.TRAINED)
def test_first_pair_unchanged(task):
    pair = Shapes(size=32).pair("train", task, 0)
    assert (pair.input.mean(), pair.target.mean()) == pytest.approx(FIRST_PAIRS[task], abs=0.3)


def test_counts():
    source = Shapes(train={"pose": 7, "derain": 2}, num_val=3, num_test=5, held_out=["edges"])
    assert source.counts("train") == {"pose": 7, "derain": 2}
    assert source.counts("val") == {"pose": 3, "derain": 3, "edges": 3}
    assert source.counts("test") == {"pose": 5, "derain": 5, "edges": 5}
    assert set(Shapes().counts("train")) == set(tasks.TRAINED)
    assert set(Shapes().counts("test")) == set(tasks.NAMES)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_split_uses_its_own_photographs(split, monkeypatch):
    opened = set()
    load = photographs.load_photo

    def spy(name: str):
        opened.add(name)
        return load(name)

    monkeypatch.setattr(photographs, "load_photo", spy)
    source = Shapes(size=16, num_test=30, num_val=30)
    for task in source.counts(split):
        for index in range(10):
            source.pair(split, task, index)
    assert opened and opened <= set(photographs.photos_of_split(split))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 8}, "source.size=8"),
        ({"seed": -1}, "source.seed=-1"),
        ({"num_val": -2}, "source.num_val=-2 is negative"),
        ({"train": {"pose": -1}}, "source.train.pose=-1 is negative"),
        ({"train": {"posse": 1}}, "unknown task 'posse': did you mean 'pose'"),
        ({"held_out": ["pose"]}, "'pose' is in source.train too"),
    ],
)
def test_invalid_settings_error(arguments, message):
    with pytest.raises(UserError, match=message):
        Shapes(**arguments).chunks("train")


def test_pair_out_of_range_error():
    source = Shapes(size=16, num_val=2)
    with pytest.raises(UserError, match="unknown split 'tets': did you mean 'test'"):
        source.pair("tets", "pose", 0)
    with pytest.raises(UserError, match="split 'train' has no task 'edges'"):
        source.pair("train", "edges", 0)
    with pytest.raises(IndexError, match="pair 2 of val/pose"):
        source.pair("val", "pose", 2)


@pytest.mark.parametrize("size", [32, 64])
def test_masks_match_instances(size):
    for seed in range(15):
        image, masks = scenes.instances(np.random.default_rng(seed), packaged_pool("train"), size)
        areas = masks.sum(axis=(1, 2))
        assert 1 <= len(masks) <= 3 and (np.diff(areas) < 0).all()
        labels = segmentation.parse(segmentation.render(masks))
        assert set(np.unique(labels)) == set(range(len(masks) + 1))
        bright = image.max(axis=2)
        assert bright[labels > 0].mean() > 1.5 * bright[labels == 0].mean()


def test_size_classes_are_far_apart():
    for larger, smaller in zip(scenes.SIZE_CLASSES, scenes.SIZE_CLASSES[1:], strict=False):
        assert larger[0] > 1.7 * smaller[1]


def test_polygon_mask_has_the_polygons_area():
    for name, outline in scenes.POLYGONS.items():
        for area in (0.03, 0.15):
            mask = scenes.polygon_mask(outline * area**0.5 + 0.5, 64)
            assert mask.mean() == pytest.approx(area, rel=0.1), name


def test_keypoints_inside_image_and_on_their_sides():
    spans = []
    for seed in range(60):
        points = people.random_keypoints(np.random.default_rng(seed))
        body = points[: pose.NUM_BODY_KEYPOINTS]
        assert np.isnan(points[pose.NUM_BODY_KEYPOINTS :]).all()
        assert body.min() > 0.04 and body.max() < 0.96
        for right, left in ((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13)):
            assert body[right, 0] < body[left, 0]
        assert body[0, 1] < body[1, 1] < body[8, 1] < body[10, 1]
        spans.append(np.ptp(body[:, 1]))
    assert min(spans) > 0.45 and np.ptp(spans) > 0.2


def test_inputs_do_not_parse_as_targets():
    # The query itself must not read as an answer.
    source = Shapes(size=64)
    for index in range(10):
        pair = source.pair("test", "segmentation", index)
        assert segmentation.miou(pair.input, pair.target) < 0.5
        pair = source.pair("test", "pose", index)
        assert pose.pck(pair.input, pair.target) < 0.2


# Of the bytes of pairs 0 to 3 of every task, at 32 px.
CORPUS_DIGESTS = {
    "train": "35b9eab611be3d0ab71aafcc24d2ca29",
    "val": "12ea1fad7d49b2714175fbc54a8d6e7c",
    "test": "dc00eaf01bc080a0a3b716e53c3c17b0",
}
PINNED = {"Pillow": "13.0.0", "numpy": "2.4.6"}


@pytest.mark.skipif(
    any(version(package) != pinned for package, pinned in PINNED.items()),
    reason="other versions of Pillow and numpy may round differently",
)
@pytest.mark.parametrize("split", SPLITS)
def test_default_corpus_has_the_same_bytes(split):
    source, digest = Shapes(size=32), blake2b(digest_size=16)
    for task in source.counts(split):
        for index in range(4):
            for image in source.pair(split, task, index).images:
                digest.update(image.tobytes())
    assert digest.hexdigest() == CORPUS_DIGESTS[split]
