"""An output that cannot be written is reported before the work, by every verb that has one."""

from pathlib import Path

import pytest

from delvm.commands.output_check import check_output_dir, check_output_file
from delvm.errors import UserError


def test_a_directory_that_can_be_written_is_left_as_it_was(tmp_path):
    check_output_dir(str(tmp_path / "a" / "b"), "output_dir")
    assert not [*tmp_path.iterdir()]
    (tmp_path / "kept").mkdir()
    check_output_dir(str(tmp_path / "kept"), "output_dir")
    assert [each.name for each in tmp_path.iterdir()] == ["kept"]
    check_output_dir("memory://bucket/nothing", "output_dir")


def test_a_directory_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"output_dir=.*/file/report cannot be written: Not a dir"):
        check_output_dir(f"{tmp_path}/file/report", "output_dir")
    with pytest.raises(UserError, match=r"/file cannot be written: .*: set output_dir to another"):
        check_output_dir(f"{tmp_path}/file", "output_dir")
    with pytest.raises(UserError, match="is a directory: set output to a file"):
        check_output_file(str(tmp_path), "output")


@pytest.mark.parametrize(
    "verb, words, key",
    [
        ("evaluate", ["input_dir=pairs", "tokenizer=none"], "output_dir"),
        ("inspect", ["input_dir=pairs", "tokenizer=none"], "output_dir"),
        ("convert", ["input=none", "tokenizer=none"], "output_dir"),
        ("runs", ["input_dir=pairs"], "output"),
        ("export", ["checkpoint=none", "format=llama"], "output_dir"),
        ("generate", ["prompt=pairs", "query=query.png", "tokenizer=none"], "output"),
    ],
)
@pytest.mark.slow
def test_every_verb_reports_its_output_first(delvm, verb, words, key):
    """Nothing is loaded or read: the models do not even exist here."""
    Path("pairs/test/derain").mkdir(parents=True)
    for name in ("file", "query.png"):
        Path(name).touch()
    output = "file/report/a.csv" if verb == "runs" else "file/report/out"
    code, out, err = delvm(verb, *words, f"{key}={output}")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert f"{key}=" in err and "cannot be written: Not a directory" in err
