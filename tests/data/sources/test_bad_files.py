"""Bad input never stops a job: it is rejected with its reason, and the rest is read right."""

from pathlib import Path

import numpy as np
import pytest

from delvm.data.prepare.chunks import read_rejects
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.reader import read_examples
from delvm.data.sources.images import Images
from delvm.data.sources.laion import Laion
from delvm.data.sources.paired_folders import Paired
from delvm.errors import CheckFailed
from tests.data.sources import bad_files
from tests.data.sources.bad_files import BAD, GOOD, encoded, smooth

SIZE = 24


def run(source, output, limit=1.0):
    (manifest,) = prepare(source, output, ["train"], max_reject_fraction=limit)
    folder = output / "train" / manifest.task
    rejects = {each.key: each.reason for each in read_rejects(folder)}
    assert manifest.rejected == len(read_rejects(folder)) == len(rejects)
    examples = {each.key: each for each in read_examples(output, "train", manifest.task)}
    assert len(examples) == manifest.count
    return examples, rejects


def check_reasons(rejects, prefix):
    for name, (_, message) in BAD.items():
        reason = rejects.pop(f"{prefix}{name}")
        assert message in reason and name not in reason and "\n" not in reason


def near(image, truth):
    distance = np.abs(image.astype(int) - truth)
    return distance.mean() < 3 and distance.max() < 50  # JPEG, its corners


def test_images(tmp_path):
    bad_files.write_bad(tmp_path / "raw" / "bad")
    truths = bad_files.write_good(tmp_path / "raw" / "good")
    source = Images(path=str(tmp_path / "raw"), size=SIZE, val_fraction=0, test_fraction=0)
    examples, rejects = run(source, tmp_path / "out")
    assert examples.keys() == {f"good-{stem}" for stem in truths}
    for stem, truth in truths.items():
        assert near(examples[f"good-{stem}"].input, truth), stem
    check_reasons(rejects, "bad/")
    assert not rejects


def test_paired(tmp_path):
    root = tmp_path / "raw"
    bad_files.write_bad(root / "input")
    for name in BAD:
        bad_files.save(root / "target" / f"{Path(name).stem}.png", smooth())
    truths = bad_files.write_good(root / "input")
    for name in GOOD:
        GOOD[name](root / "target" / name)
    bad_files.save(root / "input" / "fine.png", smooth())
    bad_files.zero_bytes(root / "target" / "fine.png")
    lonely, unlike = bad_files.missing_target(root), bad_files.other_size(root)
    bad_files.save(root / "target" / "late.png", smooth())
    source = Paired(path=str(root), task="repair", size=SIZE, val_fraction=0, test_fraction=0)
    examples, rejects = run(source, tmp_path / "out")
    assert examples.keys() == truths.keys()
    for stem, truth in truths.items():
        pair = examples[stem]
        assert near(pair.input, truth) and (pair.input == pair.target).all()
    check_reasons(rejects, "input/")
    assert rejects == {
        lonely: "missing target",
        unlike: "images of one example have different sizes: 24 x 24 and 24 x 32 pixels",
        "target/late.png": "missing input",
        "target/fine.png": "cannot be read as an image: not an image",
    }


def test_laion(tmp_path):
    root, files = tmp_path / "raw", tmp_path / "files"
    bad_files.write_bad(files)
    truths = bad_files.write_good(files)
    files_in_tar = {name: (files / name).read_bytes() for name in (*BAD, *GOOD)}
    sidecars = {"cmyk.json": b"{}", "cmyk.txt": b"a red square", "strange.exe": b"MZ"}
    bad_files.write_members(root / "00000.tar", files_in_tar | sidecars)
    images = {f"{n:09d}.jpg": encoded(smooth(seed=n), "jpg") for n in range(3)}
    bad_files.truncated_tar(root / "00001.tar", images)
    climbing = bad_files.climbing_member(root / "00002.tar")
    link = bad_files.symlink_member(root / "00003.tar")
    bad_files.html(root / "00004.tar")
    bad_files.zero_bytes(root / "00005.tar")
    source = Laion(path=str(root), size=SIZE, val_fraction=0, test_fraction=0)
    examples, rejects = run(source, tmp_path / "out")
    for stem, truth in truths.items():
        assert near(examples.pop(f"00000-{stem}").input, truth), stem
    check_reasons(rejects, "00000.tar/")
    assert sorted(examples) == [
        "00001-000000000", "00001-000000001", "00002-000000000", "00003-000000000",
    ]  # fmt: skip
    assert rejects.pop("00000.tar/strange.exe") == "neither an image nor one of .json, .txt"
    assert rejects.pop(f"00002.tar/{climbing}") == "its path leads out of the tar"
    assert rejects.pop(f"00003.tar/{link}") == "is a link"
    assert rejects.keys() == {"00001.tar", "00004.tar", "00005.tar"}
    assert all("truncated or damaged" in reason for reason in rejects.values())
    written = {path.name for path in tmp_path.rglob("*.jpg")}
    assert "x.jpg" not in written  # nothing is unpacked


@pytest.mark.parametrize("cut", ["at a member's end", "in a header", "header spoilt"])
def test_silently_truncated_tar_rejected(tmp_path, cut):
    images = {f"{n}.jpg": encoded(smooth(seed=n), "jpg") for n in range(3)}
    path = tmp_path / "00000.tar"
    bad_files.write_members(path, images)
    import tarfile

    with tarfile.open(path) as tar:
        start = tar.getmembers()[2].offset
    data = path.read_bytes()
    if cut == "header spoilt":
        path.write_bytes(data[:start] + b"\x07" * 512 + data[start + 512 :])
    else:
        path.write_bytes(data[: start + (100 if cut == "in a header" else 0)])
    source = Laion(path=str(tmp_path), size=SIZE, val_fraction=0, test_fraction=0)
    (part,) = source.chunks("train")["images"]
    found = list(source.read("train", "images", part))
    assert [getattr(each, "key", "") for each in found] == ["00000-0", "00000-1", "00000.tar"]
    assert "truncated or damaged" in found[-1].reason


def test_too_many_rejects_raise_check_failed_and_keep_shards(tmp_path):
    bad_files.write_bad(tmp_path / "raw")
    truths = bad_files.write_good(tmp_path / "raw")
    source = Images(path=str(tmp_path / "raw"), size=SIZE, val_fraction=0, test_fraction=0)
    with pytest.raises(CheckFailed, match="4 of 9 raw items rejected .44.4%") as caught:
        prepare(source, tmp_path / "out", ["train"], max_reject_fraction=0.4)
    assert caught.value.exit_code == 3
    examples = list(read_examples(tmp_path / "out", "train", "images"))
    assert len(examples) == len(truths)
    assert len(read_rejects(tmp_path / "out" / "train" / "images")) == len(BAD)
    run(source, tmp_path / "out", limit=0.45)  # nothing is written again
