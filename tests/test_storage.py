"""Remote paths: same files and same behavior as in a local directory."""

import itertools
import pickle
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from delvm.data.datasets.images import ImageDataset, ImagesConfig
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.encode.encode import encode
from delvm.data.encode.executors.processes import Processes
from delvm.data.prepare.chunks import read_rejects
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.codebook import read_codebook
from delvm.data.shards.manifest import load_manifests
from delvm.data.shards.reader import read_examples, read_tokens
from delvm.errors import UserError
from delvm.evaluation.shard_inspection import inspect_shards
from delvm.storage import (
    RemotePath,
    as_path,
    atomic_path,
    local_copy,
    read_json,
    write_json,
    write_text,
)
from tests.data.corpus_makers import FakeFactory, FakeSource, FakeTokenizer, contents
from tests.data.prepare.test_prepare import Damaged

_names = itertools.count()


@pytest.fixture
def store(monkeypatch, tmp_path):
    """A new directory in memory, and a cache of its own."""
    monkeypatch.setenv("DELVM_CACHE", str(tmp_path / "cache"))
    return RemotePath(f"memory://store{next(_names)}")


def stored(root):
    """{path below: bytes} of a root in memory."""
    fs, path = fsspec.core.url_to_fs(root.url)
    return {name.removeprefix(f"{path}/"): fs.cat_file(name) for name in sorted(fs.find(path))}


# ---------------------------------------------------------------- paths


def test_as_path_separates_local_paths_from_urls():
    assert as_path("outputs/a:b") == Path("outputs/a:b")
    assert as_path("file:///a/b") == Path("/a/b") and as_path(Path("x")) == Path("x")
    far = as_path("s3://bucket//a/")
    assert isinstance(far, RemotePath) and str(far) == "s3://bucket/a" and as_path(far) is far
    assert isinstance(as_path("simplecache::s3://bucket/a"), RemotePath)
    assert (str(far / "b.tar"), (far / "b.tar").name, (far / "b.tar").stem) == (
        "s3://bucket/a/b.tar",
        "b.tar",
        "b",
    )
    assert pickle.loads(pickle.dumps(far)) == far == far.resolve()


def test_remote_path_has_the_methods_of_a_local_path(store):
    assert not store.exists() and not store.is_dir() and [*store.iterdir()] == []
    write_text(store / "a/b.json", "{}")
    write_json(store / "a/.c.part.json", {"x": 1})
    assert (store / "a").is_dir() and (store / "a/b.json").exists()
    assert not (store / "a/b.json").is_dir()
    assert [path.name for path in (store / "a").iterdir()] == [".c.part.json", "b.json"]
    assert [*(store / "a").glob(".*.part*")] == [store / "a/.c.part.json"]
    assert read_json(store / "a/.c.part.json", "x") == {"x": 1}
    (store / "a/b.json").unlink()
    (store / "a/b.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (store / "a/b.json").unlink()
    with pytest.raises(UserError, match=r"x not found: memory://store\d+/a/b.json"):
        read_json(store / "a/b.json", "x")
    store.remove_tree()
    store.remove_tree()
    assert not store.exists()


def test_failed_write_leaves_the_old_file(store):
    write_text(store / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(store / "a.txt") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert (store / "a.txt").read_text() == "old" and not part.exists()
    assert stored(store).keys() == {"a.txt"}


@pytest.mark.parametrize("fails", [False, True])
def test_non_atomic_stores_get_a_temporary_file_that_is_moved(store, monkeypatch, fails):
    monkeypatch.setattr("delvm.storage._ATOMIC_STORES", set())
    write_text(store / "a.txt", "old")
    put, seen = MemoryFileSystem.put_file, []

    def half(self, here, there, **options):
        put(self, here, there, **options)
        seen.append((there.rpartition("/")[2], (store / "a.txt").read_text()))
        if fails:
            raise OSError("gone")

    monkeypatch.setattr(MemoryFileSystem, "put_file", half)
    if fails:
        with pytest.raises(OSError, match="gone"):
            write_text(store / "a.txt", "new")
    else:
        write_text(store / "a.txt", "new")
    assert seen == [(".a.txt.part", "old")]
    assert stored(store) == {"a.txt": b"old" if fails else b"new"}


def test_local_copy_is_downloaded_again_only_after_a_change(store, monkeypatch):
    fetched, get = [], MemoryFileSystem.get_file
    monkeypatch.setattr(
        MemoryFileSystem,
        "get_file",
        lambda *args, **kw: fetched.append(args[1]) or get(*args, **kw),
    )
    for text in ("one", "two"):
        write_text(store / "a.txt", text)
        assert [local_copy(store / "a.txt").read_text() for _ in range(2)] == [text] * 2
    assert len(fetched) == 2
    assert local_copy(Path("x")) == Path("x")
    with pytest.raises(FileNotFoundError):
        local_copy(store / "b.txt")


def test_unreachable_stores_are_reported_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="what://x cannot be reached: Protocol not known"):
        as_path("what://x").exists()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(UserError, match="s3://x/.* cannot be reached: Install s3fs"):
        prepare(FakeSource(), as_path("s3://x"))

    def refuse(self, path, **options):
        raise RuntimeError("no\ncredentials")

    monkeypatch.setattr(MemoryFileSystem, "exists", refuse)
    with pytest.raises(UserError, match="memory://x cannot be reached: no credentials"):
        as_path("memory://x").exists()


# ---------------------------------------------------------------- complete verbs


def test_prepare_and_encode_write_the_same_bytes_to_a_store(store, tmp_path):
    prepare(FakeSource(), tmp_path / "pairs", shard_size=4)
    encode(tmp_path / "pairs", tmp_path / "tokens", FakeTokenizer(), "abc")
    prepare(FakeSource(), store / "pairs", shard_size=4)
    encode(store / "pairs", store / "tokens", FakeTokenizer(), "abc")
    assert stored(store / "pairs") == contents(tmp_path / "pairs")
    assert stored(store / "tokens") == contents(tmp_path / "tokens")
    far, near = (list(read_examples(root, "val", "pose")) for root in (store / "pairs",
                 tmp_path / "pairs"))  # fmt: skip
    assert [np.array_equal(a.input, b.input) for a, b in zip(far, near, strict=True)] == [True] * 2
    ids = [np.concatenate(list(read_tokens(root / "tokens", "train", "derain")))
           for root in (store, tmp_path)]  # fmt: skip
    assert np.array_equal(*ids)
    assert load_manifests(store / "tokens", "val", "tokens").keys() == {"derain", "edges", "pose"}
    assert read_codebook(store / "tokens")[1] == "abc"


def test_killed_jobs_continue_in_a_store(store, tmp_path, capsys):
    settings = {"shard_size": 4, "max_reject_fraction": 0.5}
    prepare(Damaged(), tmp_path / "pairs", ["train"], **settings)
    with pytest.raises(KeyboardInterrupt):
        prepare(Damaged(fail_at=5), store / "pairs", ["train"], **settings)
    prepare(Damaged(), store / "pairs", ["train"], **settings)
    assert stored(store / "pairs") == contents(tmp_path / "pairs")
    assert len(read_rejects(store / "pairs/train/derain")) == 2
    encode(tmp_path / "pairs", tmp_path / "tokens", FakeTokenizer(), "abc", splits=["train"])
    with pytest.raises(KeyboardInterrupt):
        encode(store / "pairs", store / "tokens", FakeTokenizer(fail_at=1), "abc", splits=["train"])
    tokenizer = FakeTokenizer()
    encode(store / "pairs", store / "tokens", tokenizer, "abc", splits=["train"])
    assert len(tokenizer.batches) == 1 and "kept" not in capsys.readouterr().out
    assert stored(store / "tokens") == contents(tmp_path / "tokens")
    with pytest.raises(UserError, match="fingerprint=abc, requested is fingerprint=def"):
        encode(store / "pairs", store / "tokens", FakeTokenizer(), "def", splits=["train"])


def test_file_url_is_a_local_directory(tmp_path):
    prepare(FakeSource(), as_path(f"file://{tmp_path}/pairs"), ["val"], shard_size=4)
    encode(f"file://{tmp_path}/pairs", f"file://{tmp_path}/t", FakeTokenizer(), "abc",
           splits=["val"])  # fmt: skip
    assert load_manifests(tmp_path / "t", "val", "tokens")["edges"].count == 2


def test_memory_store_is_refused_for_several_processes(store):
    prepare(FakeSource(), store / "pairs", ["val"])
    with pytest.raises(UserError, match=r"memory://.* in the memory of one process: set executor"):
        encode(store / "pairs", store / "t", FakeTokenizer(), "abc", splits=["val"],
               executor=Processes(workers=1), factory=FakeFactory())  # fmt: skip


@pytest.mark.slow
def test_the_verbs_take_urls(store, capsys):
    from delvm import cli

    small = ["source.num_val=2", "source.num_test=2", "splits=[val]", f"output_dir={store}/pairs"]
    assert cli.main(["prepare", *small, "source.size=64"]) == 0
    words = ["encode", f"input_dir={store}/pairs", f"output_dir={store}/t", "splits=[val]"]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert cli.main(["encode", f"input_dir={store}/none", f"output_dir={store}/t"]) == 2
    assert "not found: run `delvm prepare output_dir=memory://" in capsys.readouterr().err
    assert cli.main(["encode", f"input_dir={store}/t", f"output_dir={store}//t/"]) == 2
    assert "input_dir and output_dir are both" in capsys.readouterr().err


def test_datasets_and_inspection_read_the_same_from_a_store(store, tmp_path):
    for root in (tmp_path, store):
        prepare(FakeSource(), root / "pairs", shard_size=4)
        encode(root / "pairs", root / "tokens", FakeTokenizer(), "abc")
    numbers = np.arange(12)
    sentences, images = [], []
    for root in map(str, (tmp_path, store)):
        config = SentencesConfig(path=f"{root}/tokens", pairs_per_sentence=2)
        sentences.append(SentenceDataset(config, seed=0)[numbers]["input_ids"])
        images.append(ImageDataset(ImagesConfig(path=f"{root}/pairs"), seed=0)[numbers]["pixels"])
    assert torch.equal(*sentences) and torch.equal(*images)
    reports = [inspect_shards(root / "pairs", None, output_dir=tmp_path / f"look{n}", num_images=2)
             for n, root in enumerate((tmp_path, store))]  # fmt: skip
    near, far = ({k: v for k, v in report.items() if k != "root"} for report in reports)
    assert near["splits"] == far["splits"] and near["kind"] == "images"
