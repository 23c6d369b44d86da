"""Encoding a small corpus from a fake source with a fake tokenizer."""

import numpy as np
import pytest
import torch

from delvm.data.augment import BalanceConfig, BalanceMode, Geometry, augment
from delvm.data.encode.encode import encode
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.codebook import read_codebook
from delvm.data.shards.manifest import load_manifests
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from tests.data.corpus_makers import FakeSource, FakeTokenizer, contents, stored, tokens_of

AUGMENT = BalanceConfig(BalanceMode.augment)


@pytest.fixture
def pairs(tmp_path):
    prepare(FakeSource(), tmp_path / "pairs", shard_size=4)
    return tmp_path / "pairs"


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_encode_stores_tokens_of_every_example_in_order(pairs, tmp_path, batch_size):
    tokenizer = FakeTokenizer()
    manifests = encode(pairs, tmp_path / "t", tokenizer, "abc", batch_size=batch_size)
    assert max(tokenizer.batches) <= 2 * batch_size
    assert len(manifests) == 8
    for manifest in manifests:
        expected = tokens_of(read_examples(pairs, manifest.split, manifest.task))
        assert np.array_equal(stored(tmp_path / "t", manifest.split, manifest.task), expected)
        assert (manifest.fingerprint, manifest.vocab_size) == ("abc", 256)
        assert (manifest.source, manifest.seed, manifest.balance) == ("fake", 0, None)
    codebook, fingerprint = read_codebook(tmp_path / "t")
    assert torch.equal(codebook, tokenizer.codebook) and fingerprint == "abc"


def test_oversample_repeats_rare_task_in_train_only(pairs, tmp_path):
    encode(
        pairs, tmp_path / "t", FakeTokenizer(), "abc", balance=BalanceConfig(BalanceMode.oversample)
    )
    once = tokens_of(read_examples(pairs, "train", "pose"))
    assert np.array_equal(stored(tmp_path / "t", "train", "pose"), once[[0, 1, 2, 0, 1, 2, 0]])
    assert len(stored(tmp_path / "t", "train", "derain")) == 7
    assert len(stored(tmp_path / "t", "test", "pose")) == 2
    assert load_manifests(tmp_path / "t", "test", "tokens")["pose"].balance is None


@pytest.mark.parametrize(("task", "flip"), [("pose", False), ("derain", True)])
def test_augment_item_depends_on_example_and_copy(pairs, tmp_path, task, flip):
    balance = BalanceConfig(BalanceMode.augment, examples_per_task=17)
    encode(pairs, tmp_path / "t", FakeTokenizer(), "abc", balance=balance, seed=5, batch_size=4)
    originals = list(read_examples(pairs, "train", task))
    count = len(originals)
    items = [
        augment(originals[i % count], 5, i // count, geometry=Geometry(hflip=flip))
        for i in range(17)
    ]
    expected = tokens_of(items)
    assert np.array_equal(stored(tmp_path / "t", "train", task), expected)
    assert len(np.unique(expected.reshape(17, -1), axis=0)) == 17


def test_task_above_target_keeps_all_examples(pairs, tmp_path, capsys):
    balance = BalanceConfig(BalanceMode.augment, examples_per_task=5)
    encode(pairs, tmp_path / "t", FakeTokenizer(), "abc", balance=balance)
    counts = load_manifests(tmp_path / "t", "train", "tokens")
    assert {task: manifest.count for task, manifest in counts.items()} == {"derain": 7, "pose": 5}
    assert "train/derain keeps its 7 examples, above 5" in capsys.readouterr().err


def test_encode_resume_after_kill_same_bytes(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("delvm.data.shards.manifest.TOKENS_PER_RECORD", 8)
    monkeypatch.setattr("delvm.data.shards.manifest.RECORDS_PER_SHARD", 2)  # so 2 pairs a shard
    settings = {"balance": AUGMENT, "batch_size": 8}
    encode(pairs, tmp_path / "expected", FakeTokenizer(), "abc", **settings)
    with pytest.raises(KeyboardInterrupt):
        encode(pairs, tmp_path / "killed", FakeTokenizer(fail_at=6), "abc", **settings)
    tokenizer = FakeTokenizer()
    encode(pairs, tmp_path / "killed", tokenizer, "abc", **settings)
    assert len(tokenizer.batches) == 8 + 6 - 6  # shards of train and of the rest, less those done
    assert contents(tmp_path / "killed") == contents(tmp_path / "expected")


def test_encode_again_keeps_shards_and_refuses_other_settings(pairs, tmp_path):
    encode(pairs, tmp_path / "t", FakeTokenizer(), "abc", balance=AUGMENT)
    before, tokenizer = contents(tmp_path / "t"), FakeTokenizer()
    encode(pairs, tmp_path / "t", tokenizer, "abc", balance=AUGMENT)
    with pytest.raises(UserError, match="fingerprint=abc, requested is fingerprint=def"):
        encode(pairs, tmp_path / "t", tokenizer, "def", balance=AUGMENT)
    with pytest.raises(UserError, match="balance={'mode': 'augment'.*, requested is .*None"):
        encode(pairs, tmp_path / "t", tokenizer, "abc")
    assert tokenizer.batches == [] and contents(tmp_path / "t") == before
    encode(pairs, tmp_path / "t", tokenizer, "def", overwrite=True)
    assert read_codebook(tmp_path / "t")[1] == "def"
    assert load_manifests(tmp_path / "t", "val", "tokens")["edges"].fingerprint == "def"


def test_encode_mismatches_found_before_any_work(pairs, tmp_path, caplog):
    out = tmp_path / "t"
    with pytest.raises(UserError, match=r"image size 16 .* != resolution 32 .*source.size=32"):
        encode(pairs, out, FakeTokenizer(32), "abc")
    with pytest.raises(UserError, match="no images in .*run `delvm prepare"):
        encode(tmp_path / "nothing", out, FakeTokenizer(), "abc")
    assert not caplog.records  # nothing besides the error
    with pytest.raises(UserError, match="input_dir and output_dir are both"):
        encode(pairs, pairs, FakeTokenizer(), "abc", overwrite=True)
    with pytest.raises(UserError, match="batch_size=0 is below 1"):
        encode(pairs, out, FakeTokenizer(), "abc", batch_size=0)
    assert not out.exists()
