"""Encoding images that are on a server: nothing is kept of them, and what fails is tried again."""

import itertools
import json
import pickle

import pytest

from delvm.data.augment import BalanceConfig, BalanceMode
from delvm.data.encode.encode import encode
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.fetch import FetchError
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
@pytest.mark.slow
def test_same_bytes_as_from_disk_though_the_server_fails(pairs, tmp_path, monkeypatch, failure):
    monkeypatch.setattr("delvm.data.shards.reader.READ_TIMEOUT_S", 0.5)
    failures = {SHARDS[0]: iter([failure]), SHARDS[1]: iter([failure, failure])}
    with serve(pairs, failures) as (url, requests):
        assert tokens(url, tmp_path / "remote") == tokens(pairs, tmp_path / "local")
    assert requests[SHARDS[1]] >= 3
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def two_pairs_per_shard(monkeypatch):
    monkeypatch.setattr("delvm.data.shards.manifest.TOKENS_PER_RECORD", 1)
    monkeypatch.setattr("delvm.data.shards.manifest.RECORDS_PER_SHARD", 2)


@pytest.mark.slow
def test_shard_that_keeps_failing_is_listed_and_others_are_encoded(
    pairs, tmp_path, two_pairs_per_shard
):
    """No example is left out: the tokens are complete when the same command has run again."""
    with (
        serve(pairs, {SHARDS[1]: itertools.repeat("500")}) as (url, _),
        pytest.raises(UserError, match=r"not written: 2; .* be read: 1, .*500") as caught,
    ):
        tokens(url, tmp_path / "remote")
    assert "\n" not in str(caught.value)
    lines = (tmp_path / "remote" / "rejected_shards.jsonl").read_text().splitlines()
    assert [json.loads(line)["tokens"] for line in lines] == [
        f"train/derain/{number:06d}.tar" for number in (2, 3)
    ]
    assert {json.loads(line)["shard"] for line in lines} == {url + SHARDS[1]}
    assert (tmp_path / "remote/train/pose/manifest.json").exists()
    assert not (tmp_path / "remote/train/derain/manifest.json").exists()
    with serve(pairs, {}) as (url, requests):
        assert tokens(url, tmp_path / "remote") == tokens(pairs, tmp_path / "local")
    assert requests["/train/pose/000000.tar"] == 0


@pytest.mark.slow
def test_lost_store_stops_the_job(pairs, tmp_path, monkeypatch, two_pairs_per_shard):
    monkeypatch.setattr("delvm.data.encode.rejected_shards.MAX_SHARDS_IN_A_ROW", 2)
    failures = dict.fromkeys(SHARDS, itertools.repeat("500"))
    with (
        serve(pairs, failures) as (url, requests),
        pytest.raises(UserError, match="not written: 2;"),
    ):
        tokens(url, tmp_path / "remote")
    assert not requests["/train/pose/000000.tar"]


def test_error_of_a_worker_process_has_its_shard():
    error = pickle.loads(pickle.dumps(FetchError("damaged", "https://x/0.tar", 4)))
    assert (str(error), error.path, error.attempts) == ("damaged", "https://x/0.tar", 4)


@pytest.mark.slow
def test_only_shards_of_a_range_are_fetched(pairs):
    with serve(pairs, {}) as (url, requests):
        found = [each().key for each in iter_lazy(as_path(url), "train", "derain", 1, None, 4)]
        assert requests[SHARDS[0]] == 1 and requests[SHARDS[1]] == 0
        assert len([*iter_lazy(as_path(url), "train", "derain", 3, None, 5)]) == 2
        assert requests[SHARDS[0]] == 2 and requests[SHARDS[1]] == 1
    local = [each().key for each in iter_lazy(pairs, "train", "derain")]
    assert found == local[1:4]
