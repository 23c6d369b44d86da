"""Directories written by earlier versions are continued: prepare and encode keep their bytes."""

import json
import shutil
import tarfile

import pytest

from delvm.data.augment import BalanceConfig, BalanceMode
from delvm.data.encode.encode import encode
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.former_tasks import rename_former_task
from delvm.data.shards.manifest import Manifest
from delvm.data.sources import Derived, Shapes
from delvm.errors import UserError
from delvm.interop.load import load_tokenizer
from delvm.storage import as_path, write_json
from tests.data.corpus_makers import FakeSource, contents
from tests.data.sources.bad_files import save, smooth

COUNTS = {"segmentation": 12, "derain": 8, "pose": 4, "deblur": 4}
SPLITS = ["train", "val"]


@pytest.fixture
def legacy(root):
    return root / "tests/data/legacy"


def source():
    return Shapes(size=16, train=COUNTS, num_val=4, num_test=6, held_out=["colorization"])


def members(root):
    """SPLIT/TASK/FILE.tar -> (name, content) of each member."""
    found = {}
    for path in root.rglob("*.tar"):
        name = path.relative_to(root).as_posix().replace("colourisation", "colorization")
        with tarfile.open(path) as tar:
            found[name] = [(info.name, tar.extractfile(info).read()) for info in tar]
    return found


def test_shapes_of_this_version_equal_former_shards(legacy, tmp_path):
    prepare(source(), tmp_path, SPLITS)
    assert members(tmp_path) == members(legacy / "pairs")


def test_prepare_and_encode_keep_former_directories(legacy, tmp_path, capsys):
    for name in ("pairs", "tokens"):
        shutil.copytree(legacy / name, tmp_path / name)
    prepare(source(), tmp_path / "pairs", SPLITS)
    tokenizer, balance = load_tokenizer(legacy / "tokenizer"), BalanceConfig(BalanceMode.augment)
    fingerprint = "44af42a1dc622142"
    encode(tmp_path / "pairs", tmp_path / "tokens", tokenizer, fingerprint, balance=balance,
           splits=SPLITS)  # fmt: skip
    for name in ("pairs", "tokens"):
        assert members(tmp_path / name) == members(legacy / name)
        assert sorted(path.name for path in (tmp_path / name / "val").iterdir()) == [
            "colorization", "deblur", "derain", "pose", "segmentation",
        ]  # fmt: skip
    err = capsys.readouterr().err
    assert err.count("finished with the same settings: ") == 2 and "continuing" not in err


def test_encode_of_this_version_equals_former_shards(legacy, tmp_path):
    tokenizer, balance = load_tokenizer(legacy / "tokenizer"), BalanceConfig(BalanceMode.augment)
    encode(legacy / "pairs", tmp_path, tokenizer, "44af42a1dc622142", balance=balance,
           splits=SPLITS)  # fmt: skip
    assert members(tmp_path) == members(legacy / "tokens")


def as_written_before(folder, settings):
    """Rewrite a manifest with the keys of earlier versions."""
    file = folder / "manifest.json"
    values = json.loads(file.read_text())
    values |= {
        "kind": "pairs",
        "pictures": values.pop("images_per_example"),
        "parts": values.pop("chunks"),
        "fast": values.pop("bf16"),
        "settings": settings,
    }
    file.write_text(json.dumps(values))


def test_former_source_settings_are_the_same_settings(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for number in range(3):
        save(raw / f"{number}.png", smooth(seed=number))
    settings = {"path": str(raw), "size": 16, "val_fraction": 0, "test_fraction": 0}
    settings["resize"] = "rounded"  # what it was before it was a setting
    tasks = {"tasks": ["colorization"], "annotations": ["grayscale", "edges"]}
    prepare(Derived(**settings, **tasks), out, ["train"])
    former = {
        "shard_size": 1000, "path": str(raw), "val": 0, "test": 0, "tars": False,
        "tasks": ["colourisation"], "hole": [0.3, 0.5], "tuples": ["grey", "edges"],
    }  # fmt: skip
    for task in ("colorization", "tuple"):
        as_written_before(out / "train" / task, former)
    before = contents(out)
    prepare(Derived(**settings, **tasks), out, ["train"])
    assert contents(out) == before
    with pytest.raises(UserError, match=r"annotations=.*requested.*: set overwrite=true"):
        prepare(Derived(**settings, tasks=["colorization"], annotations=["edges", "grayscale"]),
                out, ["train"])  # fmt: skip


def test_settings_of_other_sources_are_not_renamed(tmp_path):
    class Own(FakeSource):
        def settings(self, split, task):
            return {"crops": 3, "val": 1}

    prepare(Own(), tmp_path, ["val"])
    assert Manifest.load(tmp_path / "val/pose/manifest.json").settings["crops"] == 3
    prepare(Own(), tmp_path, ["val"])


def test_killed_prepare_of_a_former_version_is_continued(tmp_path):
    prepare(FakeSource(), tmp_path / "expected", ["train"], shard_size=2)
    killed = FakeSource(fail_at=5)
    with pytest.raises(KeyboardInterrupt):
        prepare(killed, tmp_path / "killed", ["train"], shard_size=2)
    folder = tmp_path / "killed/train/derain"
    (folder / "chunks").rename(folder / "parts")
    result = json.loads((folder / "parts/000000.json").read_text())
    result["pictures"] = result.pop("images_per_example")
    (folder / "parts/000000.json").write_text(json.dumps(result))
    again = FakeSource()
    prepare(again, tmp_path / "killed", ["train"], shard_size=2)
    assert again.read_items[0] == ("train", "derain", 4)
    assert contents(tmp_path / "killed") == contents(tmp_path / "expected")


def test_former_task_in_an_object_store_is_refused():
    root = as_path("memory://former")
    write_json(root / "val/colourisation/manifest.json", {})
    with pytest.raises(UserError, match="is a former name of task 'colorization': move it to"):
        rename_former_task(root, "val", "colorization")
