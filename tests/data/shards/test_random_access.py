"""Random access into shards gives what reading them from the front gives."""

import os

import numpy as np
import pytest
import torch

from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, reader, writer
from delvm.data.shards.random_access import ImageShardReader, TokenShardReader
from delvm.data.types import Example
from delvm.errors import UserError
from tests.data.shard_makers import write_examples


@pytest.fixture
def tokens(tmp_path):
    """5,000 clips of three images in records of 1,985, in shards of at most two records."""
    codebooks.write_codebook(tmp_path, torch.randn(500, 2), "f" * 16)
    plan = manifest.plan_tokens(
        manifest.plan_images("train", "video", source="s", seed=0, image_size=8),
        5000,
        tokens_per_image=11,
        vocab_size=500,
        fingerprint="f" * 16,
    )
    plan.images_per_example = 3
    per_record = manifest.examples_per_record(33)
    plan.shards = [
        {"file": "a.tar", "count": 2 * per_record},
        {"file": "b.tar", "count": 5000 - 2 * per_record},
    ]

    def ids(start, stop):
        yield np.random.default_rng(start).integers(0, 500, (stop - start, 3, 11))

    writer.write_tokens(tmp_path, plan, ids)
    return tmp_path, plan


def test_token_random_access_matches_sequential_reading(tokens):
    root, plan = tokens
    in_order = np.concatenate(list(reader.read_tokens(root, "train", "video"))).reshape(5000, 33)
    numbers = np.random.default_rng(0).permutation(5000)
    first = plan.shards[0]["count"]
    shard = (numbers >= first).astype(np.int64)
    out = np.empty((5000, 33), np.uint16)
    TokenShardReader(root, plan).read(shard, numbers - first * shard, out)
    assert (out == in_order[numbers]).all()


def test_number_of_open_files_is_bounded(tokens):
    root, plan = tokens
    reader, out = TokenShardReader(root, plan, max_open=1), np.empty((4, 33), np.uint16)
    before = len(os.listdir("/proc/self/fd"))
    reader.read(np.array([0, 1, 0, 1]), np.array([5, 5, 6, 6]), out)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_damaged_token_shards_are_refused(tokens):
    root, plan = tokens
    out = np.empty((1, 33), np.uint16)
    one = np.array([0])
    folder = root / "train" / "video"
    with pytest.raises(UserError, match=r"a.tar: id \d+ is outside \[0, 100\)"):
        small = TokenShardReader(root, plan)
        small.vocab_size = 100
        small.read(np.zeros(50, np.int64), np.arange(50), np.empty((50, 33), np.uint16))
    reader, last = TokenShardReader(root, plan), one + plan.shards[0]["count"] - 1
    reader.read(one, last, out)
    os.truncate(folder / "a.tar", 200_000)
    with pytest.raises(UserError, match="ends before its example"):
        reader.read(one, last, out)
    with pytest.raises(UserError, match="a.tar is damaged"):
        TokenShardReader(root, plan).read(one, one, out)
    (folder / "a.tar").write_bytes((folder / "b.tar").read_bytes())
    with pytest.raises(UserError, match="its manifest lists"):
        TokenShardReader(root, plan).read(one, one, out)
    (folder / "a.tar").unlink()
    with pytest.raises(UserError, match="shard not found"):
        TokenShardReader(root, plan).read(one, one, out)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3, 11), np.int64), "int64"),
        (np.zeros((4, 2, 11), np.uint16), r"\(4, 2, 11\)"),
        (np.asfortranarray(np.zeros((4, 3, 11), np.uint16)), "is not <u2"),
    ],
)
def test_records_of_another_type_are_refused(tokens, array, message):
    root, plan = tokens
    np.save(root / "x.npy", array)
    content = (root / "x.npy").read_bytes()
    writer.write_records(root / "train" / "video" / "a.tar", [{"__key__": "0", "ids.npy": content}])
    with pytest.raises(UserError, match=message):
        TokenShardReader(root, plan).read(
            np.array([0]), np.array([0]), np.empty((1, 33), np.uint16)
        )


def test_image_random_access_matches_sequential_reading(tmp_path):
    rng = np.random.default_rng(0)
    made = [
        Example(f"k{i}", "derain", tuple(rng.integers(0, 256, (2, 8, 8, 3), np.uint8)))
        for i in range(7)
    ]
    write_examples(tmp_path, "train", "derain", made, source="s", seed=0, image_size=8)
    plan = manifest.load_manifests(tmp_path, "train", "images")["derain"]
    reader = ImageShardReader(tmp_path, plan)
    for number in (6, 0, 3):
        for image in (1, 0):
            key, pixels = reader.read(0, number, image)
            assert key == f"k{number}"
            assert (pixels == made[number].images[image]).all()
    plan.image_size = 16
    with pytest.raises(UserError, match=r"k0.input.png is \(8, 8, 3\)"):
        reader.read(0, 0, 0)
