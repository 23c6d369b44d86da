"""Shards of pairs and tokens: round trips, manifests, restarts, and tars that lie."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import webdataset

from delvm.data.shards.manifest import load_manifests, read_codebook, write_codebook
from delvm.data.shards.reader import read_examples, read_tokens
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

# ---------------------------------------------------------------- pairs


def test_pairs_come_back_in_order_and_exactly(tmp_path):
    manifest = write(tmp_path)
    assert [shard["count"] for shard in manifest.shards] == [2, 2, 1]
    found = list(read_examples(tmp_path, "train", "derain"))
    for pair, wanted in zip(found, make_pairs(5), strict=True):
        assert (pair.key, pair.task) == (wanted.key, wanted.task)
        assert np.array_equal(pair.input, wanted.input)
        assert np.array_equal(pair.target, wanted.target)
    for start in range(6):
        keys = [pair.key for pair in read_examples(tmp_path, "train", "derain", start)]
        assert keys == [pair.key for pair in found[start:]]


def test_webdataset_itself_reads_the_shards(tmp_path):
    write(tmp_path)
    files = sorted(str(path) for path in (tmp_path / "train/derain").glob("*.tar"))
    records = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8"))
    for record, wanted in zip(records, make_pairs(5), strict=True):
        assert record["__key__"] == wanted.key
        assert np.array_equal(record["input.png"], wanted.input)
        assert np.array_equal(record["target.png"], wanted.target)


def test_the_same_settings_give_the_same_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    assert len(tar_bytes(tmp_path / "a")) == 3
    assert tar_bytes(tmp_path / "a") == tar_bytes(tmp_path / "b")
    plan = token_plan(50)
    write_ids(tmp_path / "c", plan)
    write_ids(tmp_path / "d", plan, step=7)
    assert tar_bytes(tmp_path / "c") == tar_bytes(tmp_path / "d")


def test_pairs_that_do_not_fit_are_refused(tmp_path):
    good = make_pairs(1)[0]
    short = (good.input, good.target[:4])
    faults = {
        "is of task 'pose', not 'derain'": replace(good, task="pose"),
        r"uint8 \(4, 8, 3\), not uint8 \(8, 8, 3\)": replace(good, images=short),
        "float32": replace(good, images=(good.input.astype(np.float32), good.target)),
        "key '../a' ": replace(good, key="../a"),
        "key 'a.b' ": replace(good, key="a.b"),
    }
    for message, bad in faults.items():
        with pytest.raises(ValueError, match=message):
            write_examples(tmp_path, "train", "derain", [bad], **SETTINGS)
    with pytest.raises(ValueError, match="key '000000' .* not a new plain name"):
        write_examples(tmp_path, "train", "derain", [good, good], **SETTINGS)
    assert not list(tmp_path.rglob("*.tar")) and not list(tmp_path.rglob("manifest.json"))


# ---------------------------------------------------------------- finished and killed


def test_a_finished_folder_is_kept(tmp_path):
    first = write(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write(tmp_path) == first
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "was made with seed=0, requested is seed=1: set overwrite=true"),
        ({"source": "other"}, "source=fake, requested is source=other"),
        ({"count": 4}, "holds part 000002 of 1 examples, which is gone"),
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


def test_a_killed_job_continues_at_its_first_unfinished_shard(tmp_path):
    settings = SETTINGS | {"shard_size": 2}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    write(whole)
    with pytest.raises(KeyboardInterrupt):
        write_examples(killed, "train", "derain", Interrupted(make_pairs(5)), **settings)
    folder = killed / "train/derain"
    assert sorted(path.name for path in folder.iterdir()) == [
        "000000.tar",
        "parts",
        "unfinished.json",
    ]
    with pytest.raises(UserError, match=r"not finished: run `delvm prepare output=.*` again"):
        load_manifests(killed, "train", "images")
    (folder / ".000001.99.part.tar").write_bytes(b"left by a kill without warning")
    stamp = (folder / "000000.tar").stat().st_mtime_ns
    write(killed)
    assert (folder / "000000.tar").stat().st_mtime_ns == stamp
    names = [path.relative_to(whole) for path in sorted(whole.rglob("*"))]
    assert names == [path.relative_to(killed) for path in sorted(killed.rglob("*"))]
    assert tar_bytes(killed) == tar_bytes(whole)


def test_what_a_killed_job_left_is_not_used_for_other_settings(tmp_path):
    settings = SETTINGS | {"shard_size": 2}
    with pytest.raises(KeyboardInterrupt):
        write_examples(tmp_path, "train", "derain", Interrupted(make_pairs(5, seed=9)), **settings)
    write(tmp_path, seed=1)
    found = list(read_examples(tmp_path, "train", "derain"))
    assert np.array_equal(found[0].input, make_pairs(5)[0].input)


def test_a_lost_shard_is_made_again(tmp_path):
    write(tmp_path)
    before = tar_bytes(tmp_path)
    (tmp_path / "train/derain/000001.tar").unlink()
    with pytest.raises(UserError, match=r"shard not found: .*000001\.tar"):
        list(read_examples(tmp_path, "train", "derain"))
    write(tmp_path)
    assert tar_bytes(tmp_path) == before


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize("step", [1, 3, 64, 1000])
def test_tokens_come_back_exactly_whatever_the_batches(tmp_path, monkeypatch, step):
    monkeypatch.setattr("delvm.data.shards.manifest.TOKENS_PER_RECORD", 64)
    plan = token_plan(300)  # 8 pairs a record, 128 a shard
    assert [shard["count"] for shard in plan.shards] == [128, 128, 44]
    write_ids(tmp_path, plan, step)
    records = list(read_tokens(tmp_path, "train", "derain"))
    assert all(record.dtype == np.uint16 for record in records)
    assert [len(record) for record in records] == [8] * 37 + [4]
    assert np.array_equal(np.concatenate(records), make_ids(plan))


def test_a_killed_encode_asks_for_whole_shards_again(tmp_path, monkeypatch):
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
    write_ids(tmp_path / "whole", plan)
    assert tar_bytes(tmp_path / "killed") == tar_bytes(tmp_path / "whole")


def test_at_most_two_point_one_bytes_a_token(tmp_path):
    plan = token_plan(5000, tokens=64, vocab=1024)
    write_ids(tmp_path, plan, step=32)
    folder = tmp_path / "train/derain"
    size = sum(path.stat().st_size for path in folder.iterdir())  # the manifest too
    assert size / (plan.count * 2 * 64) <= 2.1


def test_the_first_and_last_code_survive(tmp_path):
    plan = token_plan(2, vocab=65536)
    ids = np.array([[[0] * 4, [65535] * 4]] * 2)
    write_ids(tmp_path, plan, ids=ids)
    assert np.array_equal(next(read_tokens(tmp_path, "train", "derain")), ids)
    with pytest.raises(UserError, match="vocab_size 65537"):
        token_plan(2, vocab=65537)


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
def test_wrong_ids_are_not_written(tmp_path, ids, message):
    with pytest.raises(ValueError, match=message):
        write_tokens(tmp_path, token_plan(5), lambda start, stop: [ids])
    assert not list(tmp_path.rglob("*.tar"))


# ---------------------------------------------------------------- manifests and codebook


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extra": 1}, r"unknown keys \['extra'\]"),
        ({"seed": None, "-": "seed"}, r"missing keys \['seed'\]"),
        ({"count": 4}, "count 4 is not the sum"),
        ({"count": "5"}, "count is '5', not of type int"),
        ({"kind": "clips"}, "kind is 'clips'"),
        ({"kind": "tokens"}, "tokens_per_image is None"),
        ({"shards": [{"file": "../../a.tar", "count": 5}]}, r"'../../a.tar' is not NAME.tar"),
        ({"shards": [{"file": "pipe:touch x.tar", "count": 5}]}, "is not NAME.tar"),
        ({"shards": [{"file": "a.tar", "count": -5}]}, "-5 is not a number of examples"),
        ({"shards": [{"file": "a.tar"}]}, "is not {file, count}"),
    ],
)
def test_a_wrong_manifest_is_refused(tmp_path, change, message):
    values = asdict(write(tmp_path)) | change
    values.pop(values.pop("-", None), None)
    (tmp_path / "train/derain/manifest.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        load_manifests(tmp_path, "train", "images")


def test_missing_or_other_shards_say_what_to_run(tmp_path):
    with pytest.raises(UserError, match=r"no images in .*run `delvm prepare output="):
        load_manifests(tmp_path, "train", "images")
    with pytest.raises(UserError, match=r"no tokens in .*run `delvm encode output="):
        load_manifests(tmp_path, "train", "tokens")
    write(tmp_path)
    with pytest.raises(UserError, match="holds images, not tokens: give the directory"):
        load_manifests(tmp_path, "train", "tokens")
    with pytest.raises(UserError, match=r"no task 'pose' in .*, only \['derain'\]"):
        list(read_examples(tmp_path, "train", "pose"))
    (tmp_path / "train/derain").rename(tmp_path / "train/deblur")
    with pytest.raises(UserError, match="deblur holds train/derain"):
        load_manifests(tmp_path, "train", "images")


def test_tasks_of_two_tokenizers_do_not_mix(tmp_path):
    write_ids(tmp_path, token_plan(3))
    write_ids(tmp_path, replace(token_plan(3, task="pose"), fingerprint="abc", vocab_size=50))
    with pytest.raises(UserError, match="vocab_size differs between tasks"):
        load_manifests(tmp_path, "train", "tokens")


def test_codebook_round_trip_and_another_tokenizer(tmp_path):
    codes = torch.randn(10, 3, dtype=torch.float64)
    write_codebook(tmp_path, codes, "abc")
    found, fingerprint = read_codebook(tmp_path)
    assert fingerprint == "abc" and torch.equal(found, codes.float())
    with pytest.raises(UserError, match="tokenizer abc, this one is def: set overwrite=true"):
        write_codebook(tmp_path, codes, "def")
    assert read_codebook(tmp_path)[1] == "abc"
    write_codebook(tmp_path, codes, "def", overwrite=True)
    assert read_codebook(tmp_path)[1] == "def"
    write_ids(tmp_path / "b", token_plan(3))
    write_codebook(tmp_path / "b", codes, "def", overwrite=True)
    with pytest.raises(UserError, match="encoded by tokenizer abc, .* the codebook of def"):
        load_manifests(tmp_path / "b", "train", "tokens")
    (tmp_path / "codebook.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="codebook .* cannot be read"):
        read_codebook(tmp_path)
    with pytest.raises(UserError, match="codebook not found: .*run `delvm encode"):
        read_codebook(tmp_path / "c")
