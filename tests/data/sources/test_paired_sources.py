from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from delvm.data.prepare import prepare as corpus
from delvm.data.prepare.prepare import prepare
from delvm.data.resizing import resize_center_crop
from delvm.data.sources.gopro import GoPro
from delvm.data.sources.paired_folders import Paired
from delvm.data.sources.rain13k import Rain13K, store_keys
from delvm.errors import UserError
from tests.data.sources.bad_files import encoded, save, smooth
from tests.data.sources.checks import files_below, keys, prepared, read_all, rejects, same

SIZE = 16


def fitted(image):
    return np.asarray(resize_center_crop(Image.fromarray(image), SIZE))


def pair(number, side):
    return smooth(24, 18, seed=2 * number + (side in ("sharp", "target")))


def raw_gopro(root, scenes=12, frames=2):
    for split, count in (("train", scenes), ("test", 1)):
        for scene in range(count):
            for side in ("blur", "sharp", "blur_gamma"):
                for frame in range(frames):
                    folder = root / split / f"GOPR{scene:04d}_{split}" / side / f"{frame:06d}.png"
                    save(folder, pair(10 * scene + frame, side))
    return root


def flat(root, folder, count):
    for side in ("input", "target"):
        for number in range(count):
            save(root / folder / side / f"{number}.png", pair(number, side))


@pytest.fixture
def gopro(tmp_path):
    return GoPro(path=str(raw_gopro(tmp_path / "raw")), size=SIZE, val_fraction=0.3)


def test_gopro_raw(gopro, tmp_path):
    (first, *_) = read_all(gopro, "test")["deblur"]
    assert first.key == "GOPR0000_test-000000"
    assert (first.input == fitted(pair(0, "blur"))).all()
    assert (first.target == fitted(pair(0, "sharp"))).all()
    assert len(keys(gopro, "test", "deblur")) == 2
    scenes = [
        {key.partition("-")[0] for key in keys(gopro, split, "deblur")}
        for split in ("train", "val")
    ]
    assert all(scenes) and not scenes[0] & scenes[1] and len(scenes[0] | scenes[1]) == 12
    prepared(gopro, tmp_path / "out")


def test_gopro_directories_without_both_sides_are_listed(gopro, capsys):
    (Path(gopro.path) / "train/notes").mkdir()
    assert len(keys(gopro, "train", "deblur")) + len(keys(gopro, "val", "deblur")) == 24
    err = capsys.readouterr().err
    assert "train, without blur and sharp: notes" in err and "GOPR" not in err


def test_gopro_val_scenes_depend_on_seed(gopro):
    again = GoPro(path=gopro.path, size=SIZE, val_fraction=0.3)
    other = GoPro(path=gopro.path, size=SIZE, val_fraction=0.3, seed=1)
    assert keys(again, "val", "deblur") == keys(gopro, "val", "deblur")
    assert keys(other, "val", "deblur") != keys(gopro, "val", "deblur")


def test_gopro_reject_key_has_scene(gopro, tmp_path):
    scene = keys(gopro, "val", "deblur")[0].partition("-")[0]
    (tmp_path / "raw/train" / scene / "sharp/000001.png").unlink()
    fresh = GoPro(path=gopro.path, size=SIZE, val_fraction=0.3)
    message = {f"train/{scene}/blur/000001.png": "missing target"}
    assert rejects(fresh, "val", "deblur") == message and not rejects(fresh, "train", "deblur")


def test_gopro_flat(tmp_path):
    flat(tmp_path, "train", 20)
    flat(tmp_path, "test", 2)
    source = GoPro(path=str(tmp_path), size=SIZE, val_fraction=0.3)
    found = {split: keys(source, split, "deblur") for split in ("train", "val", "test")}
    assert found["test"] == ["0", "1"] and found["train"] and found["val"]
    assert sorted(found["train"] + found["val"], key=int) == [str(n) for n in range(20)]


def test_crops_same_square_of_input_and_target(tmp_path):
    for side in ("input", "target"):
        image = smooth(40, 30)
        image = 255 - image if side == "target" else image
        save(tmp_path / "test" / side / "a.png", image)
        save(tmp_path / "test" / side / "small.png", image[:8, :12])
    source = GoPro(path=str(tmp_path), size=SIZE, num_crops=3)
    (part,) = source.chunks("test")["deblur"]
    examples = list(source.read("test", "deblur", part))
    assert part.count == 6 == len(examples)
    assert [e.key for e in examples][:3] == ["a-c0", "a-c1", "a-c2"]
    full = smooth(40, 30)
    corners = [
        (top, left)
        for each in examples[:3]
        for top in range(15)
        for left in range(25)
        if (full[top : top + SIZE, left : left + SIZE] == each.input).all()
    ]
    assert len(corners) == 3 == len(set(corners))
    for each in examples[:3]:
        assert (each.input == 255 - each.target).all()
    assert examples[3].input.shape == (SIZE, SIZE, 3)  # of an 8-pixel square
    again = GoPro(path=str(tmp_path), size=SIZE, num_crops=3)
    assert same(list(again.read("test", "deblur", part)), examples)


def test_chunk_size(tmp_path, monkeypatch):
    flat(tmp_path, "test", 7)
    full = read_all(GoPro(path=str(tmp_path), size=SIZE, num_crops=2), "test")["deblur"]
    monkeypatch.setattr("delvm.data.sources.base.FILES_PER_CHUNK", 3)
    source = GoPro(path=str(tmp_path), size=SIZE, num_crops=2)
    assert [part.count for part in source.chunks("test")["deblur"]] == [6, 6, 2]
    assert same(read_all(source, "test")["deblur"], full)


def test_resume_after_kill_same_bytes(gopro, tmp_path, monkeypatch):
    monkeypatch.setattr("delvm.data.sources.base.FILES_PER_CHUNK", 3)
    prepare(gopro, tmp_path / "expected")
    write, written = corpus.write_chunk, []

    def dies(*args):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(args)
        return write(*args)

    monkeypatch.setattr(corpus, "write_chunk", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(gopro, tmp_path / "killed")
    monkeypatch.setattr(corpus, "write_chunk", write)
    prepare(GoPro(path=gopro.path, size=SIZE, val_fraction=0.3), tmp_path / "killed")
    assert files_below(tmp_path / "killed") == files_below(tmp_path / "expected")


def test_other_layouts_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        GoPro(path=str(tmp_path / "none")).chunks("train")
    with pytest.raises(UserError, match="no directory train or test"):
        GoPro(path=str(tmp_path)).chunks("train")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="neither input and target nor SCENE/blur"):
        GoPro(path=str(tmp_path)).chunks("train")
    with pytest.raises(UserError, match="train/Rain13K/input"):
        Rain13K(path=str(tmp_path)).chunks("train")
    (tmp_path / "train" / "target").mkdir()
    with pytest.raises(UserError, match="has only one side, and neither input nor input.lmdb"):
        Rain13K(path=str(tmp_path)).chunks("train")


def test_gopro_scene_without_blurred_frames_rejected(tmp_path):
    save(tmp_path / "train/A/blur/0.png", pair(0, "blur"))
    save(tmp_path / "train/A/sharp/0.png", pair(0, "sharp"))
    save(tmp_path / "train/B/sharp/0.png", pair(0, "sharp"))
    source = GoPro(path=str(tmp_path), val_fraction=0)
    assert rejects(source, "train", "deblur") == {"train/B/sharp/0.png": "missing input"}


def test_lmdb_not_installed_error(tmp_path, monkeypatch):
    for side in ("input", "target"):
        write_store(tmp_path / "train" / f"{side}.lmdb", {"0": encoded(pair(0, side), "png")})
    monkeypatch.setattr("delvm.data.sources.rain13k.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package lmdb: run `pip install delvm\[data\]`"):
        Rain13K(path=str(tmp_path)).chunks("train")


# ------------------------------------------------------------ Rain13K


def write_store(store, images, listed=None):
    store.mkdir(parents=True)
    with lmdb.open(str(store), map_size=1 << 22) as env, env.begin(write=True) as change:
        for name, image in images.items():
            change.put(name.encode(), image)
    names = [*images, *(listed or [])]
    lines = "".join(f"{name}.png (18,24,3) 1\n" for name in names)
    (store / "meta_info.txt").write_text(lines)


def test_rain13k_folders(tmp_path):
    flat(tmp_path / "raw", "train/Rain13K", 20)
    flat(tmp_path / "raw", "test/Rain100H", 2)
    flat(tmp_path / "raw", "test/Test100", 1)
    source = Rain13K(path=str(tmp_path / "raw"), size=SIZE, val_fraction=0.3)
    assert keys(source, "test", "derain") == ["Rain100H-0", "Rain100H-1", "Test100-0"]
    train, val = (keys(source, split, "derain") for split in ("train", "val"))
    assert val and len({*train, *val}) == 20 == len(train) + len(val)
    (first, *_) = read_all(source, "test")["derain"]
    assert (first.target == fitted(pair(0, "target"))).all()
    prepared(source, tmp_path / "out")


def test_rain13k_lmdb_equals_folders(tmp_path):
    flat(tmp_path / "folders", "train", 12)
    for side in ("input", "target"):
        images = {f"{n}": encoded(pair(n, side), "png") for n in range(12)}
        write_store(tmp_path / "stores" / "train" / f"{side}.lmdb", images)
    sources = [
        Rain13K(path=str(tmp_path / kind), size=SIZE, val_fraction=0.3)
        for kind in ("folders", "stores")
    ]
    for split in ("train", "val"):
        files, stored = (read_all(source, split)["derain"] for source in sources)
        assert files and same(files, stored)
    before = files_below(tmp_path / "stores")
    prepared(sources[1], tmp_path / "out")
    assert files_below(tmp_path / "stores") == before  # read-only


def test_rain13k_damaged_lmdb(tmp_path):
    good = encoded(pair(0, "input"), "png")
    store = tmp_path / "train" / "input.lmdb"
    write_store(store, {"0": good, "1": good, "2": b"<html>"}, ["3", "/etc/passwd"])
    other = dict.fromkeys(("0", "2", "3", "/etc/passwd"), good)
    write_store(tmp_path / "train" / "target.lmdb", other)
    source = Rain13K(path=str(tmp_path), size=SIZE, val_fraction=0)
    assert keys(source, "train", "derain") == ["0"]
    absent = "listed in meta_info.txt, but not in the store"
    assert rejects(source, "train", "derain") == {
        "train/input.lmdb/1": "missing target",
        "train/input.lmdb/2": "cannot be read as an image: not an image",
        "train/input.lmdb/3": absent,
        "train/input.lmdb//etc/passwd": absent,
    }
    data = (store / "data.mdb").read_bytes()
    for share in (0.5, 0.7, 0.95):
        (store / "data.mdb").write_bytes(data[: int(share * len(data))])
        assert "is truncated" in rejects(source, "train", "derain")["train/input.lmdb/2"]
    (store / "data.mdb").write_bytes(b"nothing")
    assert rejects(source, "train", "derain")["train/input.lmdb/2"] == (
        "its store cannot be read: MDB_INVALID: File is not an LMDB file"
    )
    (store / "meta_info.txt").write_text("0.png (18,24,3) 1\n0001.png 18x24\n")
    with pytest.raises(UserError, match=r"line 2 is '0001.png 18x24', not like"):
        store_keys(store)
    (store / "meta_info.txt").unlink()
    with pytest.raises(UserError, match="the list of images"):
        Rain13K(path=str(tmp_path)).chunks("train")


# ------------------------------------------------------------ paired


def test_paired_folders(tmp_path):
    for number in range(6):
        save(tmp_path / "raw/hazy/sub dir" / f"{number}.jpg", pair(number, "input"))
        save(tmp_path / "raw/clear/sub dir" / f"{number}.png", pair(number, "target"))
    source = Paired(
        path=str(tmp_path / "raw"), task="dehaze", inputs="hazy", targets="clear", size=SIZE,
        val_fraction=0.2, test_fraction=0.2,
    )  # fmt: skip
    made = prepared(source, tmp_path / "out", ["train", "val"])
    assert {task for _, task in made} == {"dehaze"}
    found = [key for split in ("train", "val", "test") for key in keys(source, split, "dehaze")]
    assert sorted(found) == [f"sub_dir-{n}" for n in range(6)]


def test_paired_patterns(tmp_path):
    for number in range(3):
        save(tmp_path / f"s{number}" / "x.png", pair(number, "input"))
        save(tmp_path / f"s{number}" / "x_gt.png", pair(number, "target"))
    source = Paired(
        path=str(tmp_path), task="repair", inputs="{id}.png", targets="{id}_gt.png", size=SIZE,
        val_fraction=0, test_fraction=0,
    )  # fmt: skip
    examples = read_all(source, "train")["repair"]
    assert [each.key for each in examples] == ["s0-x", "s1-x", "s2-x"]
    for number, each in enumerate(examples):
        assert (each.input == fitted(pair(number, "input"))).all()
        assert (each.target == fitted(pair(number, "target"))).all()


def test_equal_keys_get_a_digest(tmp_path):
    for side in ("input", "target"):
        for name in ("a b.png", "a_b.png", "c.png"):
            save(tmp_path / side / name, pair(0, side))
    save(tmp_path / "input" / "c.jpg", pair(0, "input"))
    source = Paired(path=str(tmp_path), task="repair", size=SIZE, val_fraction=0, test_fraction=0)
    found = keys(source, "train", "repair")
    assert len(set(found)) == 3 and "c" in found
    assert rejects(source, "train", "repair") == {"input/c.png": "its name is that of input/c.jpg"}


def test_paired_settings_errors(tmp_path):
    flat(tmp_path, ".", 1)
    settings = {"path": str(tmp_path), "task": "repair"}
    for change, message in (
        ({"task": "../x"}, "invalid task name '../x'"),
        ({"inputs": "inputs"}, "source.inputs=inputs is not a directory"),
        ({"targets": "{id}_gt.png"}, "source.targets={id}_gt.png matches no image"),
        ({"targets": "input"}, "are the same"),
        ({"num_crops": -1}, "source.num_crops=-1 is below 0"),
    ):
        with pytest.raises(UserError, match=message):
            Paired(**settings | change).chunks("train")
