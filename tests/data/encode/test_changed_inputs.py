"""Files that change after they were prepared, and images that change after they were encoded."""

import os

import numpy as np
import pytest
from PIL import Image

from delvm.data.encode.encode import encode
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.manifest import Manifest
from delvm.data.shards.reader import read_examples
from delvm.data.sources.images import Images
from delvm.data.sources.paired_folders import Paired
from delvm.errors import UserError
from delvm.storage import read_json, write_json
from tests.data.corpus_makers import FakeTokenizer, contents, stored


def save(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (shade,) * 3).save(path)
    # As if it had been saved at another time, whatever the resolution of the file system's clock.
    os.utime(path, ns=(shade * 10**9, shade * 10**9))


def pairs(tmp_path):
    return Paired(
        path=str(tmp_path / "raw"), size=8, val_fraction=0, test_fraction=0, task="derain"
    )


@pytest.fixture
def raw(tmp_path):
    for number in range(4):
        for side in ("input", "target"):
            save(tmp_path / f"raw/{side}/{number}.png", 50 + number)
    return tmp_path / "raw"


def test_changed_targets_are_noticed_by_prepare_and_by_encode(raw, tmp_path):
    images, tokens = tmp_path / "images", tmp_path / "tokens"

    def both(overwrite_images=False, overwrite_tokens=False):
        prepare(pairs(tmp_path), images, ["train"], overwrite=overwrite_images)
        args = (images, tokens, FakeTokenizer(8), "abc")
        encode(*args, splits=["train"], overwrite=overwrite_tokens)

    both()
    before = contents(tmp_path)
    both()
    both(overwrite_images=True)  # to the same bytes: the tokens are kept
    assert contents(tmp_path) == before
    save(raw / "target/2.png", 200)
    with pytest.raises(UserError, match="000000 of 4 examples, whose files have changed since"):
        both()
    with pytest.raises(UserError, match=r"other images \(digest \w{16}.*now \(digest \w{16}"):
        both(overwrite_images=True)
    assert (stored(tokens, "train", "derain")[2, 1] == 52).all()
    both(overwrite_tokens=True)
    assert (stored(tokens, "train", "derain")[2, 1] == 200).all()


def test_folder_that_grew_in_front_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("delvm.data.sources.base.FILES_PER_CHUNK", 10)
    for number in range(10):
        save(tmp_path / f"raw/f{number}.png", number)

    def source():
        return Images(path=str(tmp_path / "raw"), size=8, val_fraction=0, test_fraction=0)

    prepare(source(), tmp_path / "out", ["train"])
    save(tmp_path / "raw/g.png", 10)  # behind: a chunk more
    (manifest,) = prepare(source(), tmp_path / "out", ["train"])
    assert manifest.count == 11
    save(tmp_path / "raw/a.png", 11)
    with pytest.raises(UserError, match="000000 of 10 examples, whose files have changed since"):
        prepare(source(), tmp_path / "out", ["train"])
    prepare(source(), tmp_path / "out", ["train"], overwrite=True)
    shades = [
        int(each.input[0, 0, 0]) for each in read_examples(tmp_path / "out", "train", "images")
    ]
    assert shades == [11, *range(11)]


def test_killed_job_reads_a_changed_chunk_again(raw, tmp_path, monkeypatch):
    monkeypatch.setattr("delvm.data.sources.base.FILES_PER_CHUNK", 2)

    class Killed(Paired):
        def read(self, split, task, chunk):
            if chunk.name == "000001":
                raise KeyboardInterrupt
            yield from super().read(split, task, chunk)

    source = pairs(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare(Killed(**vars(source)), tmp_path / "out", ["train"])
    save(raw / "input/0.png", 99)
    prepare(pairs(tmp_path), tmp_path / "out", ["train"])
    first = next(iter(read_examples(tmp_path / "out", "train", "derain")))
    assert np.all(first.input == 99)


def test_manifests_without_digests_load_and_are_kept(raw, tmp_path):
    prepare(pairs(tmp_path), tmp_path / "out", ["train"])
    path = tmp_path / "out/train/derain/manifest.json"
    values = read_json(path, "manifest")
    del values["images_digest"], values["chunks"][0]["inputs"], values["chunks"][0]["digest"]
    write_json(path, values)
    assert Manifest.load(path).digest is None
    save(raw / "input/0.png", 99)
    prepare(pairs(tmp_path), tmp_path / "out", ["train"])
    encode(tmp_path / "out", tmp_path / "t", FakeTokenizer(8), "abc", splits=["train"])
    assert Manifest.load(tmp_path / "t/train/derain/manifest.json").images_digest is None
