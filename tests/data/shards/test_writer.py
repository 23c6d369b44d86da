"""Writing shards: same bytes for the same input, invalid input, and killed jobs."""

import tarfile
from dataclasses import replace

import numpy as np
import pytest

from delvm.data.shards.manifest import load_manifests
from delvm.data.shards.reader import read_examples
from delvm.data.shards.writer import write_tokens
from delvm.errors import UserError
from tests.data.shard_makers import (
    SETTINGS,
    make_ids,
    make_pairs,
    tar_bytes,
    token_plan,
    write,
    write_examples,
    write_ids,
)


def test_same_settings_give_same_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert len(tar_bytes(tmp_path / "a")) == 3
    assert tar_bytes(tmp_path / "a") == tar_bytes(tmp_path / "b")
    plan = token_plan(50)
    write_ids(tmp_path / "c", plan)
    write_ids(tmp_path / "d", plan, step=7)
    assert tar_bytes(tmp_path / "c") == tar_bytes(tmp_path / "d")


def test_tar_members_name_no_owner_and_no_time(tmp_path):
    manifest = write(tmp_path)
    with tarfile.open(tmp_path / "train/derain" / manifest.shards[0]["file"]) as tar:
        members = tar.getmembers()
    assert [info.name for info in members] == [
        f"{key}.{name}.png" for key in ("000000", "000001") for name in ("input", "target")
    ]
    for info in members:
        assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
        assert info.mode == 0o644 and info.isreg()


def test_invalid_examples_are_refused(tmp_path):
    good = make_pairs(1)[0]
    short = (good.input, good.target[:4])
    errors = {
        "has task 'pose', not 'derain'": replace(good, task="pose"),
        r"uint8 \(4, 8, 3\), not uint8 \(8, 8, 3\)": replace(good, images=short),
        "float32": replace(good, images=(good.input.astype(np.float32), good.target)),
        "key '../a' ": replace(good, key="../a"),
        "key 'a.b' ": replace(good, key="a.b"),
    }
    for message, bad in errors.items():
        with pytest.raises(ValueError, match=message):
            write_examples(tmp_path, "train", "derain", [bad], **SETTINGS)
    with pytest.raises(ValueError, match="key '000000' .* is a duplicate"):
        write_examples(tmp_path, "train", "derain", [good, good], **SETTINGS)
    assert not list(tmp_path.rglob("*.tar")) and not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.full((5, 2, 4), 100), r"id 100 is outside \[0, 100\)"),
        (np.full((5, 2, 4), -1), "id -1 is outside"),
        (np.zeros((5, 2, 3), int), r"shape \(5, 2, 3\) is not \(n, 2, 4\)"),
        (np.zeros((5, 2, 4)), "float64 is not an integer"),
        (np.zeros((4, 2, 4), int), "got 4 examples where 5 were planned"),
        (np.zeros((6, 2, 4), int), "got 6 examples where 5 were planned"),
    ],
)
def test_invalid_ids_are_not_written(tmp_path, ids, message):
    with pytest.raises(ValueError, match=message):
        write_tokens(tmp_path, token_plan(5), lambda start, stop: [ids])
    assert not list(tmp_path.rglob("*.tar"))


def test_size_is_at_most_2_1_bytes_per_token(tmp_path):
    plan = token_plan(5000, tokens=64, vocab=1024)
    write_ids(tmp_path, plan, step=32)
    folder = tmp_path / "train/derain"
    size = sum(path.stat().st_size for path in folder.iterdir())  # the manifest too
    assert size / (plan.count * 2 * 64) <= 2.1


def test_killed_encode_rewrites_complete_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("delvm.data.shards.manifest.TOKENS_PER_RECORD", 64)
    plan, asked = token_plan(300), []
    ids = make_ids(plan)

    def chunks(start, stop):
        asked.append((start, stop))
        yield ids[start : start + 20]
        if len(asked) == 2:
            raise KeyboardInterrupt
        yield ids[start + 20 : stop]

    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "killed", plan, chunks)
    write_tokens(tmp_path / "killed", plan, chunks)
    assert asked == [(0, 128), (128, 256), (128, 256), (256, 300)]
    write_ids(tmp_path / "full", plan)
    assert tar_bytes(tmp_path / "killed") == tar_bytes(tmp_path / "full")


def test_finished_directory_is_kept(tmp_path):
    first = write(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write(tmp_path) == first
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "was made with seed=0, requested is seed=1: set overwrite=true"),
        ({"source": "other"}, "source=fake, requested is source=other"),
        ({"count": 4}, "has chunk 000002 of 1 examples, which is missing now"),
        ({"shard_size": 3}, "shard_size=2, requested is shard_size=3"),
    ],
)
def test_other_settings_are_refused_unless_overwritten(tmp_path, options, message):
    write(tmp_path)
    before = tar_bytes(tmp_path)
    with pytest.raises(UserError, match=message):
        write(tmp_path, **options)
    assert tar_bytes(tmp_path) == before
    manifest = write(tmp_path, overwrite=True, **options)
    assert load_manifests(tmp_path, "train", "images") == {"derain": manifest}
    assert len(list(read_examples(tmp_path, "train", "derain"))) == manifest.count
    assert len(tar_bytes(tmp_path)) == len(manifest.shards)


class Interrupted(list):
    """Pairs whose fourth one is never made."""

    def __getitem__(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_killed_job_continues_at_its_first_missing_shard(tmp_path):
    settings = SETTINGS | {"shard_size": 2}
    full, killed = tmp_path / "full", tmp_path / "killed"
    write(full)
    with pytest.raises(KeyboardInterrupt):
        write_examples(killed, "train", "derain", Interrupted(make_pairs(5)), **settings)
    folder = killed / "train/derain"
    assert sorted(path.name for path in folder.iterdir()) == [
        "000000.tar",
        "chunks",
        "unfinished.json",
    ]
    with pytest.raises(UserError, match=r"not finished: run `delvm prepare output_dir=.*` again"):
        load_manifests(killed, "train", "images")
    (folder / ".000001.99.part.tar").write_bytes(b"left by a kill without warning")
    stamp = (folder / "000000.tar").stat().st_mtime_ns
    write(killed)
    assert (folder / "000000.tar").stat().st_mtime_ns == stamp
    names = [path.relative_to(full) for path in sorted(full.rglob("*"))]
    assert names == [path.relative_to(killed) for path in sorted(killed.rglob("*"))]
    assert tar_bytes(killed) == tar_bytes(full)


def test_shards_of_a_killed_job_are_not_used_for_other_settings(tmp_path):
    settings = SETTINGS | {"shard_size": 2}
    with pytest.raises(KeyboardInterrupt):
        write_examples(tmp_path, "train", "derain", Interrupted(make_pairs(5, seed=9)), **settings)
    write(tmp_path, seed=1)
    found = list(read_examples(tmp_path, "train", "derain"))
    assert np.array_equal(found[0].input, make_pairs(5)[0].input)


def test_lost_shard_is_written_again(tmp_path):
    write(tmp_path)
    before = tar_bytes(tmp_path)
    (tmp_path / "train/derain/000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard not found: .*000001\.tar"):
        list(read_examples(tmp_path, "train", "derain"))
    write(tmp_path)
    assert tar_bytes(tmp_path) == before
