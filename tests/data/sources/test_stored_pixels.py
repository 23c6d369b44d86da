"""Annotations refer to stored pixels: an EXIF tag must not turn an image away from them."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from delvm.data.image_io import open_image
from delvm.data.sources.coco_pose import CocoPose
from delvm.data.sources.paired_folders import Paired
from delvm.data.sources.sa1b import SA1B
from delvm.tasks import pose
from experiments.sources.layouts import sa1b_json, write_coco, write_tar
from tests.data.sources.checks import read_all, rejects

SIZE = 32
ALL_IN_TRAIN = {"size": SIZE, "val_fraction": 0, "test_fraction": 0}


def save_turned(image, orientation, file, kind="PNG", **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(file, kind, exif=exif, **options)


def half_bright(width=96, height=64):
    """An image whose left half is bright, with a band at its top."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, : width // 2] = 230
    image[: height // 4] = 230
    return image


def overlap(one, other):
    return (one & other).sum() / (one | other).sum() if one.any() or other.any() else 1.0


@pytest.mark.parametrize("annotated", ["stored", "displayed"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 5, 6, 8])
def test_sa1b_masks_stay_on_what_they_mark(tmp_path, orientation, annotated):
    image = half_bright()
    buffer = io.BytesIO()
    save_turned(image, orientation, buffer, "JPEG", quality=95)
    mask = image[:, :, 0] > 0
    if annotated == "displayed":
        if orientation < 5:
            pytest.skip("of the same size: they cannot be distinguished")
        mask = np.asarray(open_image(buffer.getvalue()))[:, :, 0] > 128
    files = {"sa_1.jpg": buffer.getvalue()}
    files["sa_1.json"] = json.dumps(sa1b_json("sa_1", [mask])).encode()
    write_tar(tmp_path / "sa_000000.tar", files)
    for crops in (0, 6):
        source = SA1B(path=str(tmp_path), num_crops=crops, crop_side=48, **ALL_IN_TRAIN)
        made = read_all(source, "train")["masks"]
        assert made
        for each in made:
            assert overlap(each.input[:, :, 0] > 128, each.target.any(axis=2)) > 0.9


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_coco_keypoints_stay_on_what_they_mark(tmp_path, orientation):
    image = np.zeros((80, 120, 3), np.uint8)
    points = np.full((18, 2), np.nan)
    points[pose.KEYPOINTS.index("nose")] = 70, 20
    points[pose.KEYPOINTS.index("left_hip")] = 40, 60
    for x, y in points[~np.isnan(points[:, 0])].astype(int):
        image[y - 4 : y + 5, x - 4 : x + 5] = 255
    write_coco(tmp_path, "train", {"a.jpg": (image, [points])})
    save_turned(image, orientation, tmp_path / "train2017/a.jpg", "JPEG", quality=95)
    for whole in (False, True):
        source = CocoPose(
            path=str(tmp_path), whole_image=whole, min_keypoints=2, min_side=0, **ALL_IN_TRAIN
        )
        [example] = read_all(source, "train")["poses" if whole else "pose"]
        marks = example.input[:, :, 0] > 128
        figure = example.target.max(axis=2) > 80
        assert figure.any() and (figure & marks).sum() > 0.7 * figure.sum()


@pytest.mark.parametrize(
    ("of_input", "of_target", "upright"),
    [(6, 6, True), (3, 3, True), (1, 1, True), (6, 1, False), (3, 1, False), (1, 2, False)],
)
def test_both_images_of_a_pair_are_turned_or_neither(tmp_path, of_input, of_target, upright):
    image = half_bright()
    for side, orientation in (("input", of_input), ("target", of_target)):
        (tmp_path / side).mkdir()
        save_turned(image, orientation, tmp_path / side / "a.png")
    [pair] = read_all(Paired(path=str(tmp_path), task="copy", **ALL_IN_TRAIN), "train")["copy"]
    assert (pair.input == pair.target).all()
    stored = Paired(path="", task="copy", **ALL_IN_TRAIN).to_square(Image.fromarray(image))
    assert (pair.input == stored).all() == (not upright or of_input == 1)


def test_a_target_made_from_the_displayed_image_is_known_by_its_size(tmp_path):
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
    save_turned(half_bright(), 6, tmp_path / "input/a.png")
    open_image(tmp_path / "input/a.png").save(tmp_path / "target/a.png")
    [pair] = read_all(Paired(path=str(tmp_path), task="copy", **ALL_IN_TRAIN), "train")["copy"]
    assert (pair.input == pair.target).all()


def paired(root, target, **settings):
    for side in ("input", "target"):
        (root / side).mkdir(exist_ok=True)
    Image.fromarray(half_bright(130, 130)).save(root / "input/a.png")
    (root / "target/a.png").unlink(missing_ok=True)
    target.save(root / f"target/a.{'tif' if target.mode == 'I' else 'png'}")
    return Paired(**{"path": str(root), "task": "masks"} | ALL_IN_TRAIN | settings)


def colors(source, task="masks"):
    [pair] = read_all(source, "train")[task]
    return {tuple(color) for color in pair.target.reshape(-1, 3).tolist()}


def ids(low, high, dtype):
    values = np.zeros((130, 130), dtype)
    values[:, 65:], values[70:] = low, high
    return Image.fromarray(values)


def test_targets_of_label_tasks_are_not_smoothed(tmp_path):
    values = np.zeros((130, 130, 3), np.uint8)
    values[:, :65], values[:, 65:] = (85, 0, 0), (255, 0, 0)
    target = Image.fromarray(values)
    two = {(85, 0, 0), (255, 0, 0)}
    assert colors(paired(tmp_path, target)) == two
    assert colors(paired(tmp_path, target, num_crops=1, size=40)) <= two
    assert len(colors(paired(tmp_path, target, task="mine"), "mine")) > 2
    assert colors(paired(tmp_path, target, task="mine", label_targets=True), "mine") == two
    assert len(colors(paired(tmp_path, target, label_targets=False))) > 2
    palette = target.quantize(4)
    assert palette.mode == "P" and colors(paired(tmp_path, palette)) == two


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_ids_of_16_and_32_bits_become_colors(tmp_path, dtype):
    few = colors(paired(tmp_path, ids(1, 2, dtype)))
    assert few == {(0, 0, 0), (0, 0, 85), (0, 0, 170)}  # the palette of `masks` begins so
    assert colors(paired(tmp_path, ids(24001, 30000, dtype))) == few  # of instances, in order
    assert colors(paired(tmp_path, ids(1, 2, dtype), task="segmentation"), "segmentation") == {
        (0, 0, 0),
        (255, 0, 0),
        (0, 255, 0),
    }


def test_gray_of_8_bits_is_ids_or_black_and_white(tmp_path):
    assert colors(paired(tmp_path, ids(1, 2, np.uint8))) == {(0, 0, 0), (0, 0, 85), (0, 0, 170)}
    assert colors(paired(tmp_path, ids(100, 200, np.uint8))) == {
        (0, 0, 0),
        (0, 0, 85),
        (0, 0, 170),
    }
    assert colors(paired(tmp_path, ids(255, 0, np.uint8))) == {(0, 0, 0), (255, 255, 255)}
    smooth_edges = Image.linear_gradient("L").resize((130, 130))
    assert len(colors(paired(tmp_path, smooth_edges))) > 20


def test_labels_that_have_no_colors_are_rejected(tmp_path):
    many = Image.fromarray((np.arange(130 * 130) % 100).reshape(130, 130).astype(np.uint16))
    found = rejects(paired(tmp_path, many), "train", "masks")
    assert "99 labels, and the task has 63 colors" in found["target/a.png"]
    found = rejects(paired(tmp_path, ids(-1, 2, np.int32)), "train", "masks")
    assert "label -1 is negative" in found["target/a.tif"]
