"""COCO keypoints: people cut out, or all together."""

import json
import shutil

import numpy as np
import pytest

from delvm.data.sources import coco_pose
from delvm.data.sources._io import coco_json as coco
from delvm.data.sources.coco_pose import CocoPose, square_crop
from delvm.data.sources.shapes import people
from delvm.errors import UserError
from delvm.tasks import multi_pose as poses
from delvm.tasks import oks, pose
from experiments.sources.layouts import COCO_KEYPOINTS, write_annotations, write_coco
from tests.data.sources import bad_files
from tests.data.sources.bad_files import smooth
from tests.data.sources.checks import keys, prepared, read_all, rejects, same

SIZE = 64
WIDE, HIGH = 280, 160


def person(seed, left, height=120):
    """A complete body, without eyes and ears, in pixels."""
    points = people.random_keypoints(np.random.default_rng(seed))
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    return (points - low) / (high - low).max() * height + (left, 20)


def raw(root, split="train", count=3):
    items = {
        f"{number:012d}.jpg": (
            smooth(WIDE, HIGH, seed=number),
            [person(10 * number, 10), person(10 * number + 1, 130)],
        )
        for number in range(1, count + 1)
    }
    return items, write_coco(root, split, items)


def source(root, **settings):
    return CocoPose(**{"path": str(root), "size": SIZE, "val_fraction": 0} | settings)


def test_coco_keypoint_order():
    assert oks.KEYPOINTS == COCO_KEYPOINTS and set(oks.KEYPOINTS) == set(pose.KEYPOINTS) - {"neck"}


def test_coco_to_openpose_keypoints(tmp_path):
    items, content = raw(tmp_path, count=1)
    (truth, _) = items["000000000001.jpg"][1]
    content["annotations"][0]["keypoints"][3 * COCO_KEYPOINTS.index("left_wrist") + 2] = 0
    write_annotations(tmp_path, "train", content)
    path = tmp_path / "annotations/person_keypoints_train2017.json"
    ((photo),) = coco.read_annotations(path, 0)
    points = photo.people[0].points
    wrist, neck = pose.KEYPOINTS.index("left_wrist"), pose.KEYPOINTS.index("neck")
    assert np.isnan(points[wrist]).all() and photo.people[0].num_labeled == 12
    shoulders = [pose.KEYPOINTS.index(f"{side}_shoulder") for side in ("left", "right")]
    assert points[neck] == pytest.approx(points[shoulders].mean(axis=0))
    rest = [n for n in range(pose.NUM_BODY_KEYPOINTS) if n not in (wrist, neck)]
    assert points[rest] == pytest.approx(np.floor(truth[rest]) + 0.5)
    assert np.isnan(points[pose.NUM_BODY_KEYPOINTS :]).all()


def test_neck_needs_both_shoulders(tmp_path):
    _, content = raw(tmp_path, count=1)
    content["annotations"][0]["keypoints"][3 * COCO_KEYPOINTS.index("left_shoulder") + 2] = 0
    write_annotations(tmp_path, "train", content)
    path = tmp_path / "annotations/person_keypoints_train2017.json"
    (photo,) = coco.read_annotations(path, 1)
    assert np.isnan(photo.people[0].points[pose.KEYPOINTS.index("neck")]).all()
    assert not np.isnan(photo.people[1].points[pose.KEYPOINTS.index("neck")]).any()


def test_single_person_crops(tmp_path):
    items, _ = raw(tmp_path)
    made = read_all(source(tmp_path), "train")["pose"]
    assert [each.key for each in made] == [
        f"{n:012d}-{2 * n + m}" for n in (1, 2, 3) for m in (-1, 0)
    ]
    for each, (number, left) in zip(made, [(n, s) for n in (1, 2, 3) for s in (0, 1)], strict=True):
        truth = items[f"{number:012d}.jpg"][1][left]
        box = square_crop(_box(truth), 0.15, WIDE, HIGH)
        expected = (np.floor(truth) + 0.5 - box[:2]) / (box[2] - box[0])
        assert np.nanmin(expected) >= 0 and np.nanmax(expected) <= 1
        found = pose.parse(each.target)
        assert np.linalg.norm(found - expected, axis=1)[: pose.NUM_BODY_KEYPOINTS].max() < 0.04
        assert pose.pck(each.target, each.target) == 1


def _box(points):
    """As `coco_person` writes it."""
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    room = 0.1 * (high - low).max()
    low, high = low - room, high + room
    return (*low, *(high - low))


def test_all_people_in_whole_image(tmp_path):
    items, _ = raw(tmp_path)
    made = read_all(source(tmp_path, whole_image=True), "train")["poses"]
    assert [each.key for each in made] == [f"{n:012d}" for n in (1, 2, 3)]
    box = ((WIDE - HIGH) // 2, 0)
    for number, each in enumerate(made, 1):
        found = poses.parse(each.target)
        for truth in items[f"{number:012d}.jpg"][1]:
            expected = (truth - box) / HIGH
            for keypoint in range(pose.NUM_BODY_KEYPOINTS):
                if 0.03 < expected[keypoint, 0] < 0.97 and keypoint in (2, 5, 8, 11):
                    distance = np.linalg.norm(found[keypoint] - expected[keypoint], axis=1)
                    assert distance.min() < 0.05
        assert poses.f1(each.target, each.target) == 1


@pytest.mark.parametrize(
    "box, margin, size, square",
    [
        ((40, 40, 20, 40), 0.0, (200, 100), (30, 40, 70, 80)),
        ((40, 40, 20, 40), 0.25, (200, 100), (20, 30, 80, 90)),
        ((0, 40, 20, 40), 0.0, (200, 100), (0, 40, 40, 80)),  # moved into the image
        ((180, 60, 20, 40), 0.0, (200, 100), (160, 60, 200, 100)),
        ((40, 5, 20, 90), 0.5, (200, 100), (0, 0, 100, 100)),  # less margin
        ((10, 40, 150, 20), 0.5, (200, 100), (10, -25, 160, 125)),  # beyond the image
        ((-20, -20, 1000, 1000), 0.0, (200, 100), (0, -50, 200, 150)),
    ],
)
def test_square_crop(box, margin, size, square):
    assert square_crop(box, margin, *size) == square


def test_which_people_are_taken(tmp_path):
    _, content = raw(tmp_path, count=2)
    first, second, third, fourth = content["annotations"]
    first["iscrowd"], first["keypoints"] = 1, []
    second["keypoints"] = [0] * 51
    third["keypoints"] = third["keypoints"][: 3 * 9] + [0] * (3 * 8)  # nose, shoulders, elbows
    write_annotations(tmp_path, "train", content)
    every = {"min_keypoints": 1, "min_side": 0}
    assert keys(source(tmp_path, **every), "train", "pose") == [
        "000000000002-3", "000000000002-4",
    ]  # fmt: skip
    assert keys(source(tmp_path), "train", "pose") == ["000000000002-4"]
    assert keys(source(tmp_path, whole_image=True), "train", "poses") == ["000000000002"]
    size = max(fourth["bbox"][2:])
    with pytest.raises(UserError, match="nobody with min_keypoints=8 and min_side"):
        source(tmp_path, min_side=int(size) + 1).chunks("train")
    assert not rejects(source(tmp_path, **every), "train", "pose")


def test_whole_image_needs_a_person_in_its_center(tmp_path):
    aside, middle = person(3, 0, 60), person(4, 120, 60)
    items = {"a.jpg": (smooth(WIDE, HIGH), [aside]), "b.jpg": (smooth(WIDE, HIGH), [middle])}
    write_coco(tmp_path, "train", items)
    assert keys(source(tmp_path, whole_image=True), "train", "poses") == ["b"]
    assert len(keys(source(tmp_path), "train", "pose")) == 2


def test_image_size_differs_from_annotations(tmp_path):
    _, content = raw(tmp_path, count=2)
    content["images"][1]["width"] += 1
    write_annotations(tmp_path, "train", content)
    found = rejects(source(tmp_path), "train", "pose")
    assert found == {"train2017/000000000002.jpg": "of (280, 160) pixels, annotated as (281, 160)"}


def test_splits_disjoint(tmp_path):
    raw(tmp_path, "train", 30)
    raw(tmp_path, "val", 2)
    reader = source(tmp_path, val_fraction=0.3, min_side=0)
    found = {split: {key[:12] for key in keys(reader, split, "pose")}
             for split in ("train", "val")}  # fmt: skip
    assert all(found.values()) and not found["train"] & found["val"]
    assert len(found["train"] | found["val"]) == 30
    assert len(keys(reader, "test", "pose")) == 4
    assert same(*(read_all(source(tmp_path, val_fraction=0.3), "val")["pose"] for _ in range(2)))


@pytest.mark.parametrize("whole_image", [False, True])
def test_prepare(tmp_path, whole_image):
    raw(tmp_path / "raw", "train", 8)
    raw(tmp_path / "raw", "val", 2)
    made = prepared(
        source(tmp_path / "raw", val_fraction=0.3, whole_image=whole_image), tmp_path / "out"
    )
    task = "poses" if whole_image else "pose"
    assert made.keys() == {(split, task) for split in ("train", "val", "test")}
    assert sum(manifest.count for manifest in made.values()) == (10 if whole_image else 20)


def test_annotations_read_once(tmp_path, monkeypatch):
    raw(tmp_path, "train", 3)
    coco.read_annotations.cache_clear()
    read = []
    loads = json.loads
    monkeypatch.setattr(coco.json, "loads", lambda text: read.append(1) or loads(text))
    for reader in (source(tmp_path), source(tmp_path, whole_image=True)):
        read_all(reader, "train")
        read_all(reader, "val")
    assert len(read) == 1


def test_broken_items_rejected_others_read(tmp_path):
    _, content = raw(tmp_path, count=5)
    images, notes = content["images"], content["annotations"]
    (tmp_path / "train2017" / images[0]["file_name"]).unlink()
    bad_files.truncated_jpeg(tmp_path / "train2017" / images[1]["file_name"])
    notes[4]["keypoints"] = notes[4]["keypoints"][:-1]
    notes[5]["bbox"] = [1e9, 0, 1, 1]
    notes[6]["bbox"] = [-500, -500, 100, 100]
    notes[7]["keypoints"][0] = float("nan")
    notes[8]["keypoints"] = "many"
    extra = [7, {"id": 99}, {**notes[9], "id": 50, "image_id": 123}, dict(notes[9])]
    images += [{**images[0], "id": 70, "file_name": "../x.jpg"}, {"id": "a"}, dict(images[4])]
    content["annotations"] = notes + extra
    write_annotations(tmp_path, "train", content)
    reader = source(tmp_path, min_side=0)
    assert keys(reader, "train", "pose") == ["000000000005-10"]
    found = rejects(reader, "train", "pose")
    file = "person_keypoints_train2017.json"
    expected = {
        "train2017/000000000001.jpg": "image not found",
        "train2017/000000000002.jpg": "truncated",
        "train2017/000000000004.jpg": "is outside its 280 x 160",
        f"{file} annotation 4": "51 keypoint values",
        f"{file} annotation 5": "far outside any image",
        f"{file} annotation 7": "far outside any image",
        f"{file} annotation 8": "not numbers",
        f"{file} annotation 10": "cannot be read",
        f"{file} annotation 11": "cannot be read",
        f"{file} annotation 12": "of image 123, which is not listed",
        f"{file} annotation 13": "duplicate id 10",
        f"{file} image 5": "its path leads out",
        f"{file} image 6": "without id, file_name, width and height",
        f"{file} image 7": "duplicate id",
    }
    assert found.keys() == expected.keys()
    for key, message in expected.items():
        assert message in found[key], key


def test_annotations_without_images(tmp_path, capsys, monkeypatch):
    """The annotations of train and val come in one archive, their images in two."""
    for split in ("train", "val"):
        raw(tmp_path, split)
    shutil.rmtree(tmp_path / "train2017")
    reads = []
    read = coco.read_annotations
    monkeypatch.setattr(coco_pose, "read_annotations", lambda *a: reads.append(a[0]) or read(*a))
    assert not source(tmp_path).chunks("train")["pose"]
    assert len(keys(source(tmp_path), "test", "pose")) == 6
    assert not rejects(source(tmp_path), "test", "pose")
    assert "has no train2017, so its people are left out" in capsys.readouterr().err
    assert {path.name for path in reads} == {"person_keypoints_val2017.json"}
    shutil.rmtree(tmp_path / "val2017")
    with pytest.raises(UserError, match="has no train2017: set source.path to the directory"):
        source(tmp_path).chunks("train")


def test_coco_errors(tmp_path):
    with pytest.raises(UserError, match="has no annotations/person_keypoints_train2017.json"):
        source(tmp_path).chunks("train")
    path = tmp_path / "annotations/person_keypoints_train2017.json"
    path.parent.mkdir()
    (tmp_path / "train2017").mkdir()
    for text, message in (
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ("[]", "not an object with lists"),
        ('{"images": 1, "annotations": []}', "not an object with lists"),
    ):
        path.write_text(text)
        coco.read_annotations.cache_clear()
        with pytest.raises(UserError, match=message):
            source(tmp_path).chunks("train")
    for change, message in (
        ({"min_keypoints": 0}, "source.min_keypoints=0 is not in 1..17"),
        ({"margin": -1}, "source.margin=-1 is not in"),
    ):
        with pytest.raises(UserError, match=message):
            source(tmp_path, **change).chunks("train")
