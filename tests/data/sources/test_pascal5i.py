"""Pascal-5i in the layout of Pascal VOC 2012."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delvm.data.sources.pascal5i import Pascal5i
from delvm.errors import UserError
from delvm.tasks import foreground
from tests.data.sources.bad_files import save, smooth
from tests.data.sources.checks import keys, prepared, read_all, rejects

SIZE = 32
BIRD, CAT, SHEEP = (foreground.CLASSES.index(name) + 1 for name in ("bird", "cat", "sheep"))


def write_voc(root: Path, lists: dict[str, dict[str, dict[int, tuple]]], mode: str = "P") -> None:
    """List -> image -> class -> box (top, bottom, left, right) of a mask with a void border."""
    for part, images in lists.items():
        for name, objects in images.items():
            save(root / f"JPEGImages/{name}.jpg", smooth(60, 40, seed=len(name)))
            ids = np.zeros((40, 60), np.uint8)
            for number, (top, bottom, left, right) in objects.items():
                ids[top:bottom, left:right] = 255
                ids[top + 2 : bottom - 2, left + 2 : right - 2] = number
            mask = Image.fromarray(ids)
            if mode == "P":
                mask.putpalette(bytes(range(256)) * 3)
            path = root / f"SegmentationClass/{name}.png"
            path.parent.mkdir(exist_ok=True)
            mask.save(path)
        path = root / f"ImageSets/Segmentation/{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in images))


LISTS = {
    "train": {"2007_000001": {BIRD: (5, 30, 12, 30), CAT: (5, 30, 32, 48)}},
    "val": {
        "2007_000002": {BIRD: (0, 40, 10, 50)},
        "2007_000003": {BIRD: (5, 25, 15, 35), SHEEP: (26, 38, 15, 45)},
    },
}


def source(root: Path, **settings: Any) -> Pascal5i:
    return Pascal5i(path=str(root), size=SIZE, **settings)


def test_folds_hold_out_their_classes(tmp_path: Path) -> None:
    write_voc(tmp_path, LISTS)
    held_out = {"foreground_fold0": ["bird-2007_000002", "bird-2007_000003"]}
    held_out |= {"foreground_fold1": [], "foreground_fold2": []}
    held_out |= {"foreground_fold3": ["sheep-2007_000003"]}
    for split in ("val", "test"):
        found = {task: keys(source(tmp_path), split, task) for task in held_out}
        assert {task: sorted(each) for task, each in found.items()} == held_out
    train = {fold: keys(source(tmp_path), "train", f"foreground_fold{fold}") for fold in range(4)}
    both = ["bird-2007_000001", "cat-2007_000001"]
    assert train == {0: both[1:], 1: both[:1], 2: both, 3: both}
    assert list(source(tmp_path, folds=[2]).chunks("test")) == ["foreground_fold2"]


@pytest.mark.parametrize("mode", ["P", "L"])
def test_target_is_one_class_without_its_border(tmp_path: Path, mode: str) -> None:
    write_voc(tmp_path, LISTS, mode)
    examples = {e.key: e for e in read_all(source(tmp_path), "test")["foreground_fold0"]}
    mask = foreground.parse(examples["bird-2007_000003"].target)
    # 60 x 40 becomes 48 x 32, of which the middle is 32 wide: (7..23, 17..33) less 8 columns.
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert abs(rows[0] - 5.6) <= 1 and abs(rows[-1] - 17.4) <= 1
    assert abs(columns[0] - 5.6) <= 1 and abs(columns[-1] - 17.4) <= 1
    assert set(np.unique(examples["bird-2007_000003"].target)) == {0, 255}


def test_prepared_and_read_below_vocdevkit(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit/VOC2012", LISTS)
    manifests = prepared(source(tmp_path, folds=[0, 3]), tmp_path / "out")
    assert manifests["test", "foreground_fold0"].count == 2


def test_order_is_shuffled_by_the_seed(tmp_path: Path) -> None:
    images = {f"2007_{number:06d}": {BIRD: (5, 30, 12, 30)} for number in range(9)}
    write_voc(tmp_path, {"train": {}, "val": images})
    first, again, other = (
        keys(source(tmp_path, seed=seed), "test", "foreground_fold0") for seed in (0, 0, 1)
    )
    assert first == again != sorted(first) and sorted(first) == sorted(other) and first != other


def test_bad_masks_are_rejected_and_bad_layouts_refused(tmp_path: Path) -> None:
    write_voc(tmp_path, LISTS)
    Image.new("L", (60, 40), 77).save(tmp_path / "SegmentationClass/2007_000002.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "SegmentationClass/2007_000003.png")
    reasons = rejects(source(tmp_path), "test", "foreground_fold0")
    assert "77 is not the id of a class" in reasons["SegmentationClass/2007_000002.png"]
    assert "mode is RGB" in reasons["SegmentationClass/2007_000003.png"]
    (tmp_path / "ImageSets/Segmentation/val.txt").write_text("../../x\n")
    with pytest.raises(UserError, match="not the name of an image"):
        source(tmp_path).chunks("test")
    (tmp_path / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(UserError, match=r"list of images .*val\.txt"):
        source(tmp_path).chunks("test")
    with pytest.raises(UserError, match="set source.path to VOCdevkit/VOC2012"):
        source(tmp_path / "ImageSets").chunks("test")
    assert "folds=[4]" in source(tmp_path, folds=[4]).validate()[0]
    assert source(tmp_path, folds=[1, 1]).validate()
