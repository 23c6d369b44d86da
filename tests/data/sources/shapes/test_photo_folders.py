"""Photographs of a user's own as textures and backgrounds of the procedural corpus."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from delvm import cli
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.manifest import load_manifests
from delvm.data.shards.reader import read_examples
from delvm.data.sources.shapes import photo_folders
from delvm.data.sources.shapes.photo_folders import PhotoFolders
from delvm.data.sources.shapes.source import Shapes
from delvm.errors import UserError
from tests.data.sources.bad_files import save, smooth, truncated_jpeg, write_bad

COUNTS = {"train": {"segmentation": 6, "derain": 3}, "num_val": 2, "num_test": 3, "held_out": []}


def write_photographs(folder, count, first=0):
    """Photographs of several sizes and kinds, in nested folders."""
    for number in range(first, first + count):
        name = f"{'abc'[number % 3]}/{number % 2}/{number}.{('jpg', 'png')[number % 2]}"
        save(folder / name, smooth(40 + 7 * number, 60, seed=number))


@pytest.fixture
def folder(tmp_path):
    write_photographs(tmp_path / "photographs", 24)
    return tmp_path / "photographs"


def names(folder, held_out, fraction=0.3):
    photos = PhotoFolders([str(folder)], fraction).photos(held_out)
    return {photo.file.below for photo in photos}


def same_pairs(one, other, split="train"):
    return all(
        np.array_equal(a, b)
        for index in range(2)
        for a, b in zip(
            one.pair(split, "derain", index).images,
            other.pair(split, "derain", index).images,
            strict=True,
        )
    )


def test_split_has_each_photograph_once_and_follows_the_fraction(folder):
    train, held_out = names(folder, False), names(folder, True)
    assert not train & held_out and len(train | held_out) == 24
    assert 2 <= len(held_out) < len(train)
    assert names(folder, True, 0.6) > held_out


def test_more_photographs_move_no_other_one(folder):
    train, held_out = names(folder, False), names(folder, True)
    write_photographs(folder, 30, first=24)
    assert names(folder, False) > train and names(folder, True) > held_out


def test_copies_and_renamed_photographs_stay_on_their_side(folder):
    train, held_out = names(folder, False), names(folder, True)
    for name in train | held_out:
        shutil.copy(folder / name, folder / f"copy of {name.replace('/', '-')}")
    for side, before in ((False, train), (True, held_out)):
        copies = {f"copy of {name.replace('/', '-')}" for name in before}
        assert names(folder, side) == before | copies


def test_opened_files_of_a_split_are_its_own(folder, monkeypatch):
    source = Shapes(size=16, photographs=str(folder), **COUNTS)
    held_out = {folder / name for name in names(folder, True, 0.2)}
    opened, open_image = set(), photo_folders.open_image

    def spy(path, *rest):
        opened.add(path)
        return open_image(path, *rest)

    monkeypatch.setattr(photo_folders, "open_image", spy)
    for split in ("train", "test"):
        opened.clear()
        source._folders._decoded.clear()
        for task in ("segmentation", "derain"):
            for index in range(3):
                source.pair(split, task, index)
        assert opened and (opened <= held_out if split == "test" else not opened & held_out)


def test_pairs_do_not_depend_on_what_was_read_before(folder):
    one, other = (Shapes(size=16, photographs=str(folder), **COUNTS) for _ in range(2))
    for index in range(3):
        other.pair("train", "segmentation", index)
    assert same_pairs(one, other) and same_pairs(one, other, "test")
    assert not same_pairs(one, Shapes(size=16, **COUNTS))


def test_pairs_are_the_same_where_the_directory_moves(folder, tmp_path):
    source = Shapes(size=16, photographs=str(folder), **COUNTS)
    before = [source.pair("train", "derain", index).input for index in range(3)]
    digest = source.chunks("train")["derain"][0].inputs
    folder.rename(tmp_path / "moved")
    moved = Shapes(size=16, photographs=str(tmp_path / "moved"), **COUNTS)
    assert digest == moved.chunks("train")["derain"][0].inputs
    after = [moved.pair("train", "derain", index).input for index in range(3)]
    assert all(map(np.array_equal, before, after))


@pytest.mark.slow
def test_unreadable_photographs_are_listed_and_not_fatal(folder, tmp_path, capfd):
    write_bad(folder / "bad")
    truncated_jpeg(folder / "second.jpg")
    save(folder / "thin.png", smooth(200, 8))
    os.mkfifo(folder / "pipe.jpg")
    (folder / "link.jpg").symlink_to("nowhere.jpg")
    words = ["prepare", "source=shapes", f"source.photographs={folder}", "source.size=16"]
    small = ["source.num_val=2", "source.num_test=2", f"output_dir={tmp_path}/out"]
    counts = ["source.train.segmentation=0", "source.train.pose=0", "source.train.deblur=0"]
    counts += ["source.train.derain=150", "source.held_out=[]"]
    assert cli.main([*words, *small, *counts]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out/photographs.jsonl").open()]
    assert len(rows) == 24 + 4 + 1 + 1 + 1 + 1
    reasons = {row["file"].removeprefix(f"{folder}/"): row.get("reason", "") for row in rows}
    for name, reason in {
        "bad/truncated.jpg": "truncated",
        "second.jpg": "truncated",
        "bad/empty.jpg": "not an image",
        "bad/page.jpg": "not an image",
        "bad/bomb.png": "too large",
        "thin.png": "200 x 8 pixels, a side below 16",
        "pipe.jpg": "not a file",
        "link.jpg": "No such file",
    }.items():
        assert reason in reasons.pop(name)
    assert not any(reasons.values())
    assert {row["split"] for row in rows if "split" in row} == {"train", "held_out"}
    error = capfd.readouterr().err
    assert "6 other files that cannot be used" in error
    assert f"{folder}/second.jpg cannot be read" in error and "another one is sampled" in error
    assert len([*read_examples(tmp_path / "out", "train", "derain")]) == 150


def test_unreadable_photographs_of_a_killed_run_stay_listed(folder, tmp_path):
    truncated_jpeg(folder / "second.jpg")
    source = Shapes(size=16, photographs=str(folder), **COUNTS)
    source.write_record(tmp_path)
    (damaged,) = (file for file in source._folders._files if file.below == "second.jpg")
    assert source._folders.load(damaged) is None
    source.write_record(tmp_path)
    Shapes(size=16, photographs=str(folder), **COUNTS).write_record(tmp_path)
    rows = map(json.loads, (tmp_path / "photographs.jsonl").read_text().splitlines())
    (row,) = (row for row in rows if "reason" in row)
    assert row["file"] == f"{folder}/second.jpg" and row["split"] in ("train", "held_out")


def test_all_photographs_unreadable_is_an_error(tmp_path):
    (tmp_path / "all").mkdir()
    for number in range(30):
        path = tmp_path / "all" / f"{number}.jpg"
        truncated_jpeg(path)
        path.write_bytes(path.read_bytes() + bytes([number]))  # not a copy
    source = Shapes(size=16, photographs=str(tmp_path / "all"), **COUNTS)
    with pytest.raises(UserError, match="100 photographs sampled one after the other"):
        source.pair("train", "derain", 0)


def test_list_adds_to_the_packages(folder):
    source = Shapes(size=16, photographs=["packages", str(folder)], **COUNTS)
    packaged = [p for p in source._pool("train").photos if hasattr(p, "name")]
    assert len(packaged) == 12
    assert len(source._pool("train").photos) == 12 + len(names(folder, False, 0.2))
    assert len(source._pool("val").photos) == 6 + len(names(folder, True, 0.2))


def test_two_directories(folder, tmp_path):
    write_photographs(tmp_path / "more", 6, first=24)
    source = Shapes(size=16, photographs=[str(folder), str(tmp_path / "more")], **COUNTS)
    assert len(source._pool("train").photos) + len(source._pool("test").photos) == 30


def test_default_settings_and_manifests_are_as_before(tmp_path):
    source = Shapes(size=16, **COUNTS)
    assert source.settings("train", "derain") == {}
    assert {chunk.inputs for chunk in source.chunks("train")["derain"]} == {""}
    prepare(source, tmp_path / "out", ["val"])
    assert not (tmp_path / "out/photographs.jsonl").exists()
    assert set(load_manifests(tmp_path / "out", "val", "images")["derain"].settings) == {
        "shard_size"
    }


def test_manifest_names_the_photographs_and_changed_ones_are_refused(folder, tmp_path):
    def run(**rest):
        source = Shapes(size=16, photographs=str(folder), **COUNTS)
        return prepare(source, tmp_path / "out", **rest)

    run()
    settings = load_manifests(tmp_path / "out", "train", "images")["derain"].settings
    assert settings["photographs"] == [str(folder)] and settings["held_out_photographs"] == 0.2
    run()
    write_photographs(folder, 12, first=24)
    with pytest.raises(UserError, match="whose files have changed since: set overwrite=true"):
        run()
    run(overwrite=True)
    rows = (tmp_path / "out/photographs.jsonl").read_text().splitlines()
    assert len(rows) == 36


@pytest.mark.parametrize(
    ("count", "arguments", "message"),
    [
        (0, {}, "contains no images"),
        (3, {}, "has 3 photographs that can be read and 0 files that cannot, at least 4 are"),
        (24, {"held_out_photographs": 1e-6}, "has 24 photographs of training and 0 held out by "),
        (24, {"held_out_photographs": 0.9999}, "has 0 photographs of training and 24 held out"),
        (24, {"held_out_photographs": 0}, "source.held_out_photographs=0.2"),
        (24, {"photographs": 3}, "photographs=3 is neither a directory nor a list"),
        (24, {"photographs": []}, "neither a directory nor a list"),
        (24, {"photographs": "missing"}, "source.photographs=missing is not a directory"),
    ],
)
def test_photograph_settings_error(count, arguments, message, tmp_path):
    (tmp_path / "some").mkdir()
    write_photographs(tmp_path / "some", count)
    settings = {"photographs": str(tmp_path / "some")} | arguments
    with pytest.raises(UserError, match=message) as error:
        Shapes(size=16, **settings, **COUNTS).chunks("train")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("fraction", [1e-6, 0.9999])
def test_fraction_that_the_error_names_is_enough(folder, fraction):
    with pytest.raises(UserError) as error:
        PhotoFolders([str(folder)], fraction).photos(True)
    named = float(str(error.value).rpartition("=")[2])
    count = 2 if fraction < 0.5 else 22
    assert len(PhotoFolders([str(folder)], named).photos(True)) == count


def test_memory_of_decoded_photographs_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(photo_folders, "CACHE_BYTES", 5 * 3 * 64 * 64)
    for number in range(20):
        save(tmp_path / "some" / f"{number}.png", smooth(64, 64, seed=number))
    folders = PhotoFolders([str(tmp_path / "some")], 0.3)
    for photo in folders.photos(False) * 2:
        assert photo.load() is not None
        assert len(folders._decoded) <= 5
        assert folders._bytes == sum(map(photo_folders._size, folders._decoded.values()))


def test_large_photographs_are_shrunk(tmp_path):
    for number in range(6):
        save(tmp_path / "some" / f"{number}.jpg", smooth(1600, 1200, seed=number))
    photos = PhotoFolders([str(tmp_path / "some")], 0.5)
    loaded = [photos.load(file) for file in photos._files]
    assert all(photo.image.size == (683, 512) for photo in loaded)
    with Image.open(tmp_path / "some/0.jpg") as image:
        truth = np.asarray(image.resize((683, 512), Image.Resampling.LANCZOS), np.float64)
    error = np.abs(np.asarray(loaded[0].image, np.float64) - truth).mean()
    assert error < 1
