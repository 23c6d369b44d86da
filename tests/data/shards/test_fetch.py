"""Fetching shards: what is tried again, and commands in place of files."""

import time

import pytest

from delvm.data.shards import fetch
from delvm.data.shards.fetch import FetchError, Rejects, ShardCommand, ShardFetcher
from delvm.errors import UserError


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that were waited between attempts; none are."""
    found = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def test_waits_double(tmp_path, waits):
    (tmp_path / "0.tar").write_bytes(b"x")

    def decode(contents):
        raise UserError("damaged")

    with pytest.raises(FetchError, match="damaged") as caught:
        fetch.fetch(tmp_path / "0.tar", decode, 3, 60)
    assert caught.value.attempts == 4 and waits == [0.5, 1.0, 2.0]


def test_missing_file_is_not_tried_again(tmp_path, waits):
    with pytest.raises(FetchError, match="shard not found"):
        fetch.fetch(tmp_path / "0.tar", bytes, 3, 60)
    assert not waits


def test_command_gives_what_it_writes():
    assert fetch.fetch(ShardCommand("printf abc | cat -"), bytes, 0, 60) == b"abc"


def test_failed_command_is_reported(capsys):
    fetcher = ShardFetcher(Rejects("derain", "shard", None, 16), retries=1, timeout_s=60)
    assert fetcher(ShardCommand("echo a >&2; echo no such bucket >&2; exit 3"), bytes, 0) is None
    message = capsys.readouterr().err
    assert "2 attempts" in message and "exit code 3: no such bucket" in message


def test_slow_command_is_killed_with_what_it_started():
    """A child that outlives the shell would hold the output open."""
    command = ShardCommand("sleep 30 & sleep 30")
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"took more than 0.2 s"):
        command.read(0.2)
    assert time.monotonic() - start < 10
