"""The directories as DeLVM's README names them (data_generation/README.md of ggjy/DeLVM)."""

import json

import pytest

from delvm.data.sources.gopro import GoPro
from delvm.data.sources.hdvila import HdVila, read_video_list
from delvm.data.sources.paired_folders import Paired
from delvm.data.sources.rain13k import Rain13K
from delvm.errors import UserError
from tests.data.sources.bad_files import encoded, save, smooth
from tests.data.sources.checks import keys, read_all, rejects
from tests.data.sources.test_paired_sources import write_store

SMALL = {"size": 16, "val_fraction": 0, "test_fraction": 0}


def pairs(folder, count=3):
    for side in ("input", "target"):
        for number in range(count):
            save(folder / side / f"{number}.png", smooth(24, 18, seed=number))


@pytest.mark.parametrize("path", [".", "GoPro_train"])
def test_gopro_train(tmp_path, path):
    pairs(tmp_path / "GoPro_train")
    source = GoPro(path=str(tmp_path / path), **SMALL)
    assert keys(source, "train", "deblur") == ["0", "1", "2"]
    split = GoPro(path=str(tmp_path / path), **(SMALL | {"test_fraction": 1.0}))
    assert len(keys(split, "test", "deblur")) == 3


@pytest.mark.parametrize("names", [("GoPro_train", "GoPro_test"), ("train/GoPro", "test/GoPro")])
def test_gopro_train_and_test(tmp_path, names):
    for name, count in zip(names, (3, 2), strict=True):
        pairs(tmp_path / name, count)
    source = GoPro(path=str(tmp_path), **(SMALL | {"test_fraction": 1.0}))
    assert len(keys(source, "train", "deblur")) == 3 and len(keys(source, "test", "deblur")) == 2
    alone = GoPro(path=str(tmp_path / "GoPro_test"), **SMALL)
    if names[1] == "GoPro_test":
        assert len(keys(alone, "test", "deblur")) == 2


@pytest.mark.parametrize("path", [".", "Rain13K_lmdb"])
def test_rain13k_lmdb(tmp_path, path):
    images = {f"{n:06d}": encoded(smooth(24, 18, seed=n), "png") for n in range(3)}
    for side in ("input", "target"):
        write_store(tmp_path / "Rain13K_lmdb" / f"{side}.lmdb", images)
    source = Rain13K(path=str(tmp_path / path), **SMALL)
    assert len(keys(source, "train", "derain")) == 3
    split = Rain13K(path=str(tmp_path / path), **(SMALL | {"val_fraction": 1.0}))
    assert len(keys(split, "val", "derain")) == 3


def hdvila(root, *lines):
    for video, clip in (("abc", "abc.0"), ("abc", "abc.1"), ("def", "def.0"), ("ghi", "ghi.0")):
        for number in range(4):
            save(root / "video_clips_imgs" / video / clip / f"{number}.jpg", smooth(seed=number))
    path = root / "cut_video_results/cut_part0.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def clips(root, **settings):
    plain = SMALL | {"clip_length": 2, "stride": 1, "scene_cut_threshold": 0}
    return HdVila(path=str(root), **(plain | settings))


@pytest.mark.parametrize("path", [".", "video_clips_imgs"])
def test_hdvila_frames_with_their_list(tmp_path, path, capsys):
    hdvila(tmp_path, "abc.mp4", "ghi.mp4", "missing.mp4")
    source = clips(tmp_path / path)
    found = keys(source, "train", "video")
    assert {key.rpartition("-")[0] for key in found} == {"abc-abc_0", "abc-abc_1", "ghi-ghi_0"}
    assert len(found) == 6
    assert rejects(source, "train", "video") == {"missing": "listed, but without files"}
    assert "1 cuts of videos that are not listed" in capsys.readouterr().err


def test_hdvila_frames_without_a_list_and_with_another(tmp_path):
    hdvila(tmp_path)
    (tmp_path / "cut_video_results/cut_part0.jsonl").unlink()
    assert len(keys(clips(tmp_path), "train", "video")) == 8
    (tmp_path / "some.jsonl").write_text('"def"\n')
    assert len(keys(clips(tmp_path, video_list="some.jsonl"), "train", "video")) == 2
    with pytest.raises(UserError, match=r"video_list=none.jsonl is not a file"):
        read_all(clips(tmp_path, video_list="none.jsonl"), "train")


def test_hdvila_cuts_of_a_video_stay_together(tmp_path):
    hdvila(tmp_path, "abc.mp4", "def.mp4", "ghi.mp4")
    for seed in range(6):
        source = clips(tmp_path, seed=seed, val_fraction=0.5)
        groups = [
            {key.split("-")[0] for key in keys(source, split, "video")}
            for split in ("train", "val")
        ]
        assert not groups[0] & groups[1]


def test_a_broken_list_of_videos_is_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('"abc.mp4"\n{"id": 3}\n')
    with pytest.raises(UserError, match=r"a.jsonl line 2"):
        read_video_list(path)


def test_keypoint_images_as_pairs(tmp_path):
    for side in ("images", "keypoints"):
        save(tmp_path / side / "000000000009.jpg", smooth(24, 18))
    source = Paired(path=str(tmp_path), task="pose", inputs="images", targets="keypoints", **SMALL)
    assert keys(source, "train", "pose") == ["000000000009"]


def test_rain13k_test_sets_one_by_one(tmp_path):
    pairs(tmp_path / "train/Rain13K", 12)
    for name, count in (("Rain100L", 2), ("Test2800", 3)):
        pairs(tmp_path / "test" / name, count)
    source = Rain13K(path=str(tmp_path), size=16)
    assert len(keys(source, "test", "derain")) == 5
    assert "test_sets" not in source.settings("test", "derain")
    one = Rain13K(path=str(tmp_path), size=16, test_sets=["Rain100L"])
    assert [key.split("-")[0] for key in keys(one, "test", "derain")] == ["Rain100L"] * 2
    assert keys(one, "train", "derain") == keys(source, "train", "derain")
    assert one.settings("test", "derain")["test_sets"] == ["Rain100L"]
    with pytest.raises(UserError, match="'Rain100', .*did you mean 'Rain100L'"):
        Rain13K(path=str(tmp_path), test_sets=["Rain100"]).chunks("test")
