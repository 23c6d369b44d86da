"""`delvm convert` and `delvm export`, killed before each of their changes to the disk."""

import shutil
from pathlib import Path

import pytest

from delvm.commands import convert, export
from delvm.configs.verbs import ConvertConfig, ExportConfig, TokenFormat
from delvm.interop.load import load_student
from tests.commands.test_convert import GOLDEN
from tests.commands.test_convert import tokenizer as tokenizer  # a fixture
from tests.data.corpus_makers import contents
from tests.kill_points import kill_points


@pytest.fixture
def token_files(tmp_path):
    """Two tasks of two lines each."""
    lines = (GOLDEN / "derain/train.bin").read_bytes().splitlines(keepends=True)
    for number, task in enumerate(("derain", "pose")):
        (tmp_path / "in" / task).mkdir(parents=True)
        (tmp_path / "in" / task / "train.bin").write_bytes(b"".join(lines[number:][:2]))
    return tmp_path / "in"


@pytest.mark.slow
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("target", TokenFormat)
def test_killed_convert_can_be_run_again(target, overwrite, token_files, tokenizer, tmp_path):
    path = tokenizer.removeprefix("tokenizer=")
    root, old = tmp_path / "root", tmp_path / "old"

    def config(output, overwrite, **more):
        return ConvertConfig(
            str(token_files), str(output), target, tokenizer=path, overwrite=overwrite, **more
        )

    if target == "internlm_bin":  # not the format of the input
        convert.run(ConvertConfig(str(token_files), str(tmp_path / "jsonl"), TokenFormat.lvm_jsonl))
        token_files = tmp_path / "jsonl"
    convert.run(config(tmp_path / "new", False))
    new = contents(tmp_path / "new")
    old.mkdir()
    if overwrite:
        convert.run(config(old, False))

    def reset():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(old, root)

    count = 0
    for _ in kill_points(lambda: convert.run(config(root, overwrite)), reset):
        count += 1
        convert.run(config(root, overwrite))
        assert contents(root) == new
    assert count > 10 and contents(root) == new


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.slow
def test_killed_export_can_be_run_again(again, weights, tmp_path):
    config = ExportConfig(str(weights / "student"), "llama", str(tmp_path / "out"))
    export.run(config)
    new = contents(tmp_path / "out")

    def reset():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        if again:
            export.run(config)

    for _ in kill_points(lambda: export.run(config), reset):
        if again:
            load_student(tmp_path / "out")
        export.run(config)
        assert contents(tmp_path) == {f"out/{name}": data for name, data in new.items()}
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["out"]
