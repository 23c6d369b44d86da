"""Which files sources find: links, suffixes, and files of other kinds than their names promise."""

import gzip
import os

import numpy as np
import pytest
from PIL import Image, features

from delvm.data.prepare.prepare import prepare
from delvm.data.sources._io.walk import walk
from delvm.data.sources.derived import Derived
from delvm.data.sources.images import Images
from delvm.data.sources.laion import Laion
from delvm.data.sources.sa1b import SA1B
from delvm.data.sources.video import Video
from delvm.errors import UserError
from experiments.sources.layouts import jpeg, write_annotations, write_tar
from tests.data.sources.bad_files import save, smooth
from tests.data.sources.checks import keys, read_all, rejects

ALL_IN_TRAIN = {"size": 16, "val_fraction": 0, "test_fraction": 0}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def source(kind, root, **settings):
    return kind(**{"path": str(root)} | ALL_IN_TRAIN | settings)


def test_classes_that_are_links_are_followed(tmp_path):
    for name in "abc":
        for number in range(4):
            save(tmp_path / "store" / name / f"{number}.png", smooth(seed=number))
    (tmp_path / "data").mkdir()
    (tmp_path / "store/c").rename(tmp_path / "data/c")
    for name in "ab":
        (tmp_path / "data" / name).symlink_to(tmp_path / "store" / name)
    made = source(Images, tmp_path / "data", categories=True, group_size=4)
    assert sorted(keys(made, "train", "categories")) == ["a-00000", "b-00000", "c-00000"]


def test_videos_and_tars_behind_links_are_found(tmp_path):
    (tmp_path / "data").mkdir()
    save(tmp_path / "store/clip/0.png", smooth())
    write_tar(tmp_path / "store/0.tar", {"1.jpg": jpeg(smooth())})
    (tmp_path / "data/link").symlink_to(tmp_path / "store")
    videos = source(Video, tmp_path / "data").videos()
    assert [video.path for video in videos] == ["link/clip"]
    assert len(keys(source(Laion, tmp_path / "data"), "train", "images")) == 1


def test_links_in_circles_and_to_nothing_are_reported(tmp_path, capsys):
    save(tmp_path / "a/0.png", smooth())
    (tmp_path / "a/up").symlink_to(tmp_path)
    (tmp_path / "b").symlink_to(tmp_path / "missing")
    assert [path.name for path in walk(tmp_path) if path.suffix] == ["0.png"]
    err = capsys.readouterr().err
    assert "a/up is a link to a directory that contains it" in err
    assert "b is a link that leads nowhere" in err


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_directory_is_an_error(tmp_path):
    (tmp_path / "a").mkdir(mode=0)
    with pytest.raises(UserError, match=r"a cannot be read: Permission denied"):
        list(walk(tmp_path))


def test_images_of_every_suffix_are_read_or_rejected(tmp_path, capsys):
    image = Image.fromarray(smooth(seed=1))
    image.save(tmp_path / "a.jfif", "JPEG")
    image.save(tmp_path / "b.jp2") if features.check("jpg_2000") else None
    image.save(tmp_path / "c.avif") if features.check("avif") else None
    (tmp_path / "d.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    (tmp_path / "e.psd").write_bytes(b"8BPS")
    made = source(Images, tmp_path)
    assert set(keys(made, "train", "images")) >= {"a"}
    assert len(read_all(made, "train")["images"]) == len(list(tmp_path.iterdir())) - 1
    assert "HEIC" in rejects(made, "train", "images")["d.heic"]
    assert "1 .psd" in capsys.readouterr().err


def test_git_lfs_pointers_are_named(tmp_path):
    for name in ("image/a.jpg", "video/a.mp4", "laion/a.tar", "sa1b/a.tar"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(POINTER)
    for kind, folder, task in (
        (Images, "image", "images"),
        (Video, "video", "video"),
        (Laion, "laion", "images"),
        (SA1B, "sa1b", "masks"),
    ):
        (reason,) = rejects(source(kind, tmp_path / folder), "train", task).values()
        assert "git-lfs pointer" in reason, folder


def test_compressed_tars_are_named(tmp_path):
    write_tar(tmp_path / "plain.tar", {"1.jpg": jpeg(smooth())})
    packed = gzip.compress((tmp_path / "plain.tar").read_bytes())
    (tmp_path / "plain.tar").unlink()
    for name in ("a.tar", "b.tar.gz", "c.tgz"):
        (tmp_path / name).write_bytes(packed)
    for kind, task in ((Laion, "images"), (SA1B, "masks")):
        found = rejects(source(kind, tmp_path), "train", task)
        assert set(found) == {"a.tar", "b.tar.gz", "c.tgz"}
        assert all("compressed with gzip" in reason for reason in found.values())
    write_tar(tmp_path / "c.tar", {"1.jpg": jpeg(smooth())})  # unpacked next to c.tgz
    found = read_all(source(Laion, tmp_path), "train")["images"]
    assert [each.key for each in found] == ["a.tar", "b.tar.gz", "c-1", "c.tgz"]


def test_gray_images_are_rejected_for_colorization(tmp_path):
    save(tmp_path / "color.png", smooth(seed=2))
    save(tmp_path / "gray.png", np.repeat(smooth(seed=2)[:, :, :1], 3, axis=2))
    made = source(Derived, tmp_path, tasks=["colorization", "edges"])
    assert keys(made, "train", "colorization") == ["color"]
    assert rejects(made, "train", "colorization") == {
        "gray": "gray: its colorization equals the input"
    }
    assert len(keys(made, "train", "edges")) == 2


def test_annotations_that_are_pointers_are_named(tmp_path):
    from delvm.data.sources.coco_pose import CocoPose

    write_annotations(tmp_path, "train", {})
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations/person_keypoints_train2017.json").write_bytes(POINTER)
    with pytest.raises(UserError, match="git-lfs pointer"):
        read_all(source(CocoPose, tmp_path), "train")


@pytest.mark.parametrize("kind", [Laion, Images])
def test_shards_of_an_earlier_run_are_not_raw_data(tmp_path, capsys, kind):
    """Where the output is inside the data set, a second run finds its own shards and overview."""
    for number in range(3):
        save(tmp_path / f"train/cats/{number}.png", smooth(seed=number))
    write_tar(tmp_path / "00000.tar", {f"{n}.jpg": jpeg(smooth(seed=n)) for n in range(3)})
    (tmp_path / "train/cats/manifest.json").write_text("[]")  # not of delvm
    for _ in range(2):
        (made,) = prepare(source(kind, tmp_path), tmp_path / "out", ["train"])
        assert made.count == 3
    assert "train/images contains shards that delvm has written" in capsys.readouterr().err
