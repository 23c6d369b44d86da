"""Preparing a small corpus from a fake source."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from delvm.data.encode.encode import encode
from delvm.data.image_io import to_tensor
from delvm.data.prepare.chunks import read_rejects
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.reader import read_examples
from delvm.data.types import RejectedItem, SourceChunk
from delvm.errors import CheckFailed, UserError
from tests.data.corpus_makers import FakeSource, FakeTokenizer, contents, stored


@pytest.fixture
def pairs(tmp_path):
    prepare(FakeSource(), tmp_path / "pairs", shard_size=4)
    return tmp_path / "pairs"


# ---------------------------------------------------------------- prepare


def test_prepare_writes_every_pair_of_every_split(tmp_path):
    source = FakeSource()
    manifests = prepare(source, tmp_path, shard_size=4)
    assert [(m.split, m.task, m.count) for m in manifests] == [
        ("train", "derain", 7),
        ("train", "pose", 3),
        *(("val", task, 2) for task in ("derain", "pose", "edges")),
        *(("test", task, 2) for task in ("derain", "pose", "edges")),
    ]
    assert len(source.read_items) == len(set(source.read_items)) == 22
    for manifest in manifests:
        found = list(read_examples(tmp_path, manifest.split, manifest.task))
        assert len(found) == manifest.count
        for index, pair in enumerate(found):
            expected = FakeSource().pair(manifest.split, manifest.task, index)
            assert np.array_equal(pair.input, expected.input)
            assert np.array_equal(pair.target, expected.target)


def test_contact_sheet_shows_every_task(pairs):
    sheet = Image.open(pairs / "contact_sheet.png")
    assert sheet.width > 4 * 128 and sheet.height > 3 * 128


def test_other_tasks_of_another_size_are_refused_before_anything_is_written(pairs):
    class Other(FakeSource):
        def chunks(self, split):
            return {f"other_{task}": chunks for task, chunks in super().chunks(split).items()}

    before = contents(pairs)
    with pytest.raises(UserError, match="images of 16 pixels, .* 32: set source.size=16, or"):
        prepare(Other(size=32), pairs, overwrite=True)
    assert contents(pairs) == before


def test_prepare_again_keeps_existing_shards(tmp_path, capsys):
    prepare(FakeSource(), tmp_path)
    before, source = contents(tmp_path), FakeSource()
    prepare(source, tmp_path)
    assert source.read_items == [] and contents(tmp_path) == before
    assert "kept in" in capsys.readouterr().err


def test_prepare_resume_after_kill_same_bytes(tmp_path, capsys):
    prepare(FakeSource(), tmp_path / "expected", shard_size=2)
    with pytest.raises(KeyboardInterrupt):
        prepare(FakeSource(fail_at=5), tmp_path / "killed", shard_size=2)
    source = FakeSource()
    prepare(source, tmp_path / "killed", shard_size=2)
    assert source.read_items[0] == ("train", "derain", 4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "expected")
    assert "train/derain, 1 of 2 chunks exist already" in capsys.readouterr().err


def test_grown_source_adds_new_chunks(tmp_path, capsys):
    class Smaller(FakeSource):
        def chunks(self, split):
            return {task: parts[:1] for task, parts in super().chunks(split).items()}

    prepare(FakeSource(), tmp_path / "expected", ["train"], shard_size=4)
    prepare(Smaller(), tmp_path / "grown", ["train"], shard_size=4)
    source = FakeSource()
    prepare(source, tmp_path / "grown", ["train"], shard_size=4)
    assert source.read_items == [("train", "derain", index) for index in (4, 5, 6)]
    assert contents(tmp_path / "grown") == contents(tmp_path / "expected")
    with pytest.raises(UserError, match="has chunk 000001 of 3 examples, which is missing now"):
        prepare(Smaller(), tmp_path / "grown", ["train"], shard_size=4)


def test_changed_chunk_is_read_again_after_kill(tmp_path):
    class Smaller(FakeSource):
        def chunks(self, split):
            return {"derain": [SourceChunk("000000", 3), SourceChunk("000001", 4)]}

    with pytest.raises(KeyboardInterrupt):
        prepare(Smaller(fail_at=5), tmp_path, ["train"], shard_size=4)
    assert (tmp_path / "train/derain/chunks/000000.json").exists()
    prepare(FakeSource(), tmp_path, ["train"], shard_size=4)
    assert len(list(read_examples(tmp_path, "train", "derain"))) == 7


@dataclass
class Damaged(FakeSource):
    """One in three items cannot be read."""

    def read(self, split, task, part):
        for example in super().read(split, task, part):
            broken = int(example.key) % 3 == 1
            yield RejectedItem(f"raw/{example.key}.jpg", "truncated") if broken else example


def test_rejects_listed_and_counted(tmp_path, capsys):
    expected_dir = tmp_path / "expected"
    manifests = prepare(Damaged(), expected_dir, ["train"], shard_size=4, max_reject_fraction=0.5)
    assert [(m.task, m.count, m.rejected) for m in manifests] == [("derain", 5, 2), ("pose", 2, 1)]
    rejects = read_rejects(expected_dir / "train/derain")
    assert rejects == [RejectedItem(f"raw/00000{n}.jpg", "truncated") for n in (1, 4)]
    assert "train/derain: 2 of 7 raw items rejected (28.6%)" in capsys.readouterr().err
    assert len(list(read_examples(expected_dir, "train", "derain"))) == 5
    with pytest.raises(KeyboardInterrupt):
        prepare(
            Damaged(fail_at=5),
            tmp_path / "killed",
            ["train"],
            shard_size=4,
            max_reject_fraction=0.5,
        )
    prepare(Damaged(), tmp_path / "killed", ["train"], shard_size=4, max_reject_fraction=0.5)
    assert contents(tmp_path / "killed") == contents(expected_dir)


def test_grown_source_whose_list_of_rejects_is_missing(tmp_path):
    class Smaller(Damaged):
        def chunks(self, split):
            return {task: parts[:1] for task, parts in super().chunks(split).items()}

    limit = {"shard_size": 4, "max_reject_fraction": 0.5}
    prepare(Smaller(), tmp_path, ["train"], **limit)
    (tmp_path / "train/derain/rejects.jsonl").unlink()
    with pytest.raises(UserError, match=r"rejects.jsonl lists 0 items, and .*: restore it, or set"):
        prepare(Damaged(), tmp_path, ["train"], **limit)
    manifests = prepare(Damaged(), tmp_path, ["train"], **limit, overwrite=True)
    assert [manifest.rejected for manifest in manifests] == [2, 1]


def test_too_many_rejects_stop_the_job(tmp_path):
    with pytest.raises(CheckFailed, match=r"2 of 7 raw .* more than max_reject_fraction=0.1"):
        prepare(Damaged(), tmp_path, ["train"], max_reject_fraction=0.1)
    assert CheckFailed.exit_code == 3
    assert len(list(read_examples(tmp_path, "train", "derain"))) == 5


@dataclass
class Clips(FakeSource):
    """Examples of three images."""

    def pair(self, split, task, index):
        example = super().pair(split, task, index)
        return replace(example, images=(*example.images, example.input // 2))


def test_examples_of_three_images(tmp_path):
    (derain, _) = prepare(Clips(), tmp_path / "clips", ["train"])
    assert derain.images_per_example == 3
    found = list(read_examples(tmp_path / "clips", "train", "derain"))
    expected = Clips().pair("train", "derain", 6)
    assert all(map(np.array_equal, found[6].images, expected.images))
    encode(tmp_path / "clips", tmp_path / "t", FakeTokenizer(), "abc", splits=["train"])
    ids = stored(tmp_path / "t", "train", "derain")
    assert ids.shape == (7, 3, 4)
    with torch.inference_mode():
        tokens = FakeTokenizer().encode(to_tensor(list(expected.images)))
    assert np.array_equal(ids[6], tokens)


def test_prepare_with_other_settings_refused(pairs):
    before, source = contents(pairs), FakeSource(seed=1)
    with pytest.raises(UserError, match="seed=0, requested is seed=1: set overwrite=true"):
        prepare(source, pairs, shard_size=4)
    assert source.read_items == [] and contents(pairs) == before
    prepare(source, pairs, shard_size=4, overwrite=True)
    assert len(source.read_items) == 22


def test_files_of_others_are_kept_in_a_replaced_directory(pairs):
    (pairs / "train/pose/notes").mkdir()
    (pairs / "train/pose/notes/a.txt").write_text("mine")
    (pairs / "train/pose/b.txt").write_text("mine too")
    prepare(FakeSource(seed=1), pairs, shard_size=2, overwrite=True)
    found = contents(pairs / "train/pose")
    assert sorted(found) == ["000000.1.tar", "000000.tar", "b.txt", "manifest.json", "notes/a.txt"]


def test_unknown_split_and_shard_size_errors(tmp_path):
    with pytest.raises(UserError, match="unknown split 'tset': did you mean 'test'"):
        prepare(FakeSource(), tmp_path, ["tset"])
    with pytest.raises(UserError, match="no splits given: set splits="):
        prepare(FakeSource(), tmp_path, [])
    with pytest.raises(UserError, match="shard_size=0 is below 1"):
        prepare(FakeSource(), tmp_path, shard_size=0)
