"""Encoding images that are on a server: nothing is kept of them, and what fails is tried again."""

import itertools

import pytest

from delvm.data.augment import BalanceConfig, BalanceMode
from delvm.data.encode.encode import encode
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.reader import iter_lazy
from delvm.errors import UserError
from delvm.storage import as_path
from tests.data.corpus_makers import FakeSource, FakeTokenizer, contents
from tests.data.http_server import serve

SHARDS = [f"/train/derain/{number:06d}.tar" for number in range(2)]


@pytest.fixture
def pairs(tmp_path, monkeypatch):
    monkeypatch.setattr("delvm.data.shards.fetch.FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("DELVM_CACHE", str(tmp_path / "cache"))
    prepare(FakeSource(), tmp_path / "pairs", shard_size=4)
    assert all((tmp_path / f"pairs{shard}").exists() for shard in SHARDS)
    return tmp_path / "pairs"


def tokens(input_dir, output_dir):
    """The token shards of the training split, two pairs each, every task with nine of them."""
    encode(
        input_dir,
        output_dir,
        FakeTokenizer(),
        "abc",
        balance=BalanceConfig(BalanceMode.augment, examples_per_task=9),
        splits=["train"],
    )
    return contents(output_dir)


@pytest.mark.parametrize("failure", ["500", "cut", "stall"])
def test_same_bytes_as_from_disk_though_the_server_fails(pairs, tmp_path, monkeypatch, failure):
    monkeypatch.setattr("delvm.data.shards.reader.READ_TIMEOUT_S", 0.5)
    failures = {SHARDS[0]: iter([failure]), SHARDS[1]: iter([failure, failure])}
    with serve(pairs, failures) as (url, requests):
        assert tokens(url, tmp_path / "remote") == tokens(pairs, tmp_path / "local")
    assert requests[SHARDS[1]] >= 3
    assert not (tmp_path / "cache").exists()


def test_shard_that_keeps_failing_stops_the_job_which_can_continue(pairs, tmp_path, monkeypatch):
    """No example is left out: the manifest of the tokens lists all."""
    monkeypatch.setattr("delvm.data.shards.manifest.TOKENS_PER_RECORD", 1)
    monkeypatch.setattr("delvm.data.shards.manifest.RECORDS_PER_SHARD", 2)
    failures = {SHARDS[1]: itertools.repeat("500")}
    with serve(pairs, failures) as (url, _), pytest.raises(UserError, match="500") as caught:
        tokens(url, tmp_path / "remote")
    assert "\n" not in str(caught.value)
    with serve(pairs, {}) as (url, requests):
        assert tokens(url, tmp_path / "remote") == tokens(pairs, tmp_path / "local")
    assert requests[SHARDS[0]] == 2  # of the copies; the tokens of the originals are there


def test_only_shards_of_a_range_are_fetched(pairs):
    with serve(pairs, {}) as (url, requests):
        found = [each().key for each in iter_lazy(as_path(url), "train", "derain", 1, None, 4)]
        assert requests[SHARDS[0]] == 1 and requests[SHARDS[1]] == 0
        assert len([*iter_lazy(as_path(url), "train", "derain", 3, None, 5)]) == 2
        assert requests[SHARDS[0]] == 2 and requests[SHARDS[1]] == 1
    local = [each().key for each in iter_lazy(pairs, "train", "derain")]
    assert found == local[1:4]
