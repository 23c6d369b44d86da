"""Reading shards from front to back gives what was written."""

import numpy as np
import pytest
import webdataset

from delvm.data.shards.reader import read_examples, read_tokens
from delvm.errors import UserError
from tests.data.shard_makers import make_ids, make_pairs, token_plan, write, write_ids


def test_images_round_trip_exactly_and_in_order(tmp_path):
    manifest = write(tmp_path)
    assert [shard["count"] for shard in manifest.shards] == [2, 2, 1]
    found = list(read_examples(tmp_path, "train", "derain"))
    for pair, expected in zip(found, make_pairs(5), strict=True):
        assert (pair.key, pair.task) == (expected.key, expected.task)
        assert np.array_equal(pair.input, expected.input)
        assert np.array_equal(pair.target, expected.target)
    for start in range(6):
        keys = [pair.key for pair in read_examples(tmp_path, "train", "derain", start)]
        assert keys == [pair.key for pair in found[start:]]


def test_webdataset_reads_the_shards(tmp_path):
    write(tmp_path)
    files = sorted(str(path) for path in (tmp_path / "train/derain").glob("*.tar"))
    records = list(webdataset.WebDataset(files, shardshuffle=False).decode("rgb8"))
    for record, expected in zip(records, make_pairs(5), strict=True):
        assert record["__key__"] == expected.key
        assert np.array_equal(record["input.png"], expected.input)
        assert np.array_equal(record["target.png"], expected.target)


@pytest.mark.parametrize("step", [1, 3, 64, 1000])
def test_tokens_round_trip_for_any_batch_size(tmp_path, monkeypatch, step):
    monkeypatch.setattr("delvm.data.shards.manifest.TOKENS_PER_RECORD", 64)
    plan = token_plan(300)  # 8 pairs per record, 128 per shard
    assert [shard["count"] for shard in plan.shards] == [128, 128, 44]
    write_ids(tmp_path, plan, step)
    records = list(read_tokens(tmp_path, "train", "derain"))
    assert all(record.dtype == np.uint16 for record in records)
    assert [len(record) for record in records] == [8] * 37 + [4]
    assert np.array_equal(np.concatenate(records), make_ids(plan))


def test_first_and_last_code_round_trip(tmp_path):
    plan = token_plan(2, vocab=65536)
    ids = np.array([[[0] * 4, [65535] * 4]] * 2)
    write_ids(tmp_path, plan, ids=ids)
    assert np.array_equal(next(read_tokens(tmp_path, "train", "derain")), ids)
    with pytest.raises(UserError, match="vocab_size 65537"):
        token_plan(2, vocab=65537)
