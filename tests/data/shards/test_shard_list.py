"""The shards that are streamed: of a root, or a pattern of other URLs."""

import json
from pathlib import Path

import pytest

from delvm.data.shards.fetch import ShardCommand
from delvm.data.shards.shard_list import list_shards
from delvm.errors import UserError
from delvm.storage import RemotePath, as_path
from tests.data.datasets.streams import write_corpus


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_corpus(tmp_path, monkeypatch)


def test_shards_of_a_root(root):
    shards = list_shards(root, "tokens", {})
    assert sorted(shards) == ["derain", "video"] and len(shards["derain"].paths) == 12
    assert all(path.exists() for each in shards.values() for path in each.paths)


@pytest.mark.parametrize("store", ["https://host/x", "s3://bucket/x", "gs://bucket/x"])
def test_pattern_is_expanded_to_urls(root, store):
    pattern = store + "/{000002..000004}.tar"
    manifest, paths = list_shards(root, "tokens", {"derain": pattern})["derain"]
    assert paths == [RemotePath(f"{store}/00000{n}.tar") for n in (2, 3, 4)]
    assert manifest.count == 6
    assert [each["file"] for each in manifest.shards] == [f"00000{n}.tar" for n in (2, 3, 4)]


def test_pattern_of_several_servers_and_local_paths(root):
    pattern = "{https://a/000001,/disk/000000}.tar"
    _, paths = list_shards(root, "tokens", {"derain": pattern})["derain"]
    assert paths == [Path("/disk/000000.tar"), RemotePath("https://a/000001.tar")]


def test_pattern_of_commands(root):
    """The shard is the last tar that a command names; braces without a choice stay as they are."""
    pattern = "pipe:curl -H 'A: ${B}' https://x.tar/{000001..000002}.tar?key=1 | cat -"
    manifest, paths = list_shards(root, "tokens", {"derain": pattern})["derain"]
    head = "curl -H 'A: ${B}' https://x.tar/"
    assert paths == [ShardCommand(f"{head}00000{n}.tar?key=1 | cat -") for n in (1, 2)]
    assert [each["file"] for each in manifest.shards] == ["000001.tar", "000002.tar"]


@pytest.mark.parametrize("file", ["pipe:touch x;.tar", "pipe:touch x/000000.tar"])
def test_manifest_cannot_name_a_command(root, file):
    path = root / "train" / "derain" / "manifest.json"
    values = json.loads(path.read_text())
    values["shards"][0]["file"] = file
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"is not NAME.tar"):
        list_shards(root, "tokens", {})


def test_path_of_the_data_cannot_be_a_command(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    with pytest.raises(UserError, match="no tokens in"):
        list_shards(as_path("pipe:touch x; cat /000000.tar"), "tokens", {})
    assert not Path("x").exists()


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("pipe:curl -s https://host/{000010..000013}.tar", "has no shard 000012.tar"),
        ("pipe:curl -s https://host/", "names no shard"),
        ("s3://x/{000000..000099}.tar", "has no shard 000012.tar, its last is 000011.tar"),
        ("s3://x/{000000000..999999999}.tar", "up to 1,000,000,000 shards, 'derain' has 12"),
        ("s3://{x" + "{a,b,c,d}" * 12 + ",y}/000000.tar", "up to 33,554,432 shards"),
        ("s3://x/{000000..000001.tar", "its braces do not match"),
        ("s3://{a,b}/000001.tar", "it names a shard twice"),
    ],
)
def test_bad_pattern_is_refused_in_one_line(root, pattern, reason):
    with pytest.raises(UserError, match=reason) as caught:
        list_shards(root, "tokens", {"derain": pattern})
    assert "\n" not in str(caught.value) and "data.shards.derain=" in str(caught.value)


def test_pattern_of_an_unknown_task_is_refused(root):
    with pytest.raises(UserError, match=r"data.shards.deraim: no such task; .*derain"):
        list_shards(root, "tokens", {"deraim": "s3://x/{000000..000001}.tar"})
