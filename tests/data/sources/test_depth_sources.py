"""Depth in the layout of NYU Depth v2, and of the stereo pair inside scikit-image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delvm.data.sources.nyu_depth import NyuDepth
from delvm.data.sources.stereo import Stereo
from delvm.errors import UserError
from delvm.tasks import depth
from tests.data.sources.bad_files import save, smooth
from tests.data.sources.checks import keys, prepared, read_all, rejects, same


def write_scene(root: Path, folder: str, numbers: range, distance: float = 2.0) -> None:
    for number in numbers:
        save(root / folder / f"rgb_{number:05d}.jpg", smooth(48, 32, seed=number))
        values = np.full((32, 48), 1000 * distance).astype(np.uint16)
        values[:4] = 0
        Image.fromarray(values).save(root / folder / f"sync_depth_{number:05d}.png")


def test_nyu_layout(tmp_path: Path) -> None:
    write_scene(tmp_path, "official_splits/train/kitchen_0001", range(2))
    write_scene(tmp_path, "sync/office_0001a", range(3))
    write_scene(tmp_path, "official_splits/test/bathroom", range(45, 47), distance=4.0)
    source = NyuDepth(path=str(tmp_path), size=32, val_fraction=0)
    assert keys(source, "test", "depth") == [
        f"official_splits-test-bathroom-000{number}" for number in (45, 46)
    ]
    assert len(keys(source, "train", "depth")) == 5
    for split, distance in (("train", 2.0), ("test", 4.0)):
        found = depth.parse(read_all(source, split)["depth"][0].target)
        assert np.isnan(found[:3]).all()  # never mixed with unknown pixels
        assert np.nanmin(found) == np.nanmax(found) == pytest.approx(distance, rel=0.02)


def test_nyu_scenes_stay_together_and_bad_files_are_rejected(tmp_path: Path) -> None:
    for scene in range(8):
        write_scene(tmp_path, f"sync/room_{scene}", range(3))
    (tmp_path / "sync/room_0/sync_depth_00001.png").unlink()
    source = NyuDepth(path=str(tmp_path), size=16, val_fraction=0.5)
    scenes = [{key.rsplit("-", 1)[0] for key in keys(source, s, "depth")} for s in ("train", "val")]
    assert not scenes[0] & scenes[1] and len(scenes[0] | scenes[1]) == 8
    lost = rejects(source, "train", "depth") | rejects(source, "val", "depth")
    assert list(lost) == ["sync/room_0/sync_depth_00001.png"]
    with pytest.raises(UserError, match="directory that contains official_splits"):
        NyuDepth(path=str(tmp_path / "sync/room_1")).chunks("test")


def test_nyu_depth_without_photograph_is_rejected_and_other_images_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scene(tmp_path, "official_splits/test/bathroom", range(3))
    (tmp_path / "official_splits/test/bathroom/rgb_00001.jpg").unlink()
    save(tmp_path / "official_splits/test/bathroom/thumbnail.jpg", smooth(48, 32, seed=0))
    source = NyuDepth(path=str(tmp_path), size=16)
    assert len(keys(source, "test", "depth")) == 2
    assert rejects(source, "test", "depth") == {
        "official_splits/test/bathroom/sync_depth_00001.png": "missing rgb"
    }
    assert "1 images in" in capsys.readouterr().err


def test_stereo_pair_without_a_download(tmp_path: Path) -> None:
    source = Stereo(size=32, num_train=6, num_val=4, num_test=4)
    manifests = prepared(source, tmp_path)
    assert {split: m.count for (split, _), m in manifests.items()} == {
        "train": 6, "val": 4, "test": 4,
    }  # fmt: skip
    one, again, other = (
        read_all(Stereo(size=32, num_test=4, seed=seed), "test")["depth"] for seed in (0, 0, 1)
    )
    assert same(one, again) and not same(one, other)
    assert all((~np.isnan(depth.parse(each.target))).mean() > 0.5 for each in one)
    with pytest.raises(UserError, match="source.num_val=0 is below 1"):
        Stereo(num_val=0).chunks("val")
