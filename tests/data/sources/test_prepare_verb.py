"""The readers through `delvm prepare` and `delvm encode`, as a user runs them."""

import pytest

from delvm.commands import cli
from delvm.data.shards import read_examples
from tests.data.sources import bad_files
from tests.data.sources.bad_files import save, smooth


@pytest.fixture
def raw(tmp_path):
    for side in ("input", "target"):
        for number in range(6):
            save(tmp_path / "raw" / side / f"{number}.png", smooth(seed=number))
    return tmp_path / "raw"


def test_a_source_is_chosen_and_set_on_the_command_line(raw, tmp_path, capsys):
    words = [
        "prepare", "source=paired", f"source.path={raw}", "source.task=dehaze", "source.size=16",
        "source.val=0.3", "source.test=0", f"output={tmp_path}/out",
    ]  # fmt: skip
    assert cli.main(words) == 0
    assert "train: dehaze" in capsys.readouterr().out
    assert list(read_examples(tmp_path / "out", "train", "dehaze"))
    patterns = ["source.inputs='input/{id}.png'", "source.targets='target/{id}.png'"]
    assert cli.main([*words[:-1], f"output={tmp_path}/other", *patterns]) == 0
    one, other = (
        [each.key for each in read_examples(tmp_path / name, "train", "dehaze")]
        for name in ("out", "other")
    )
    assert one == other


def test_too_many_rejects_are_exit_code_3(raw, tmp_path, capsys):
    bad_files.write_bad(raw / "input")
    words = ["prepare", "source=images", f"source.path={raw}/input", "source.size=16"]
    nothing = ["source.val=0", "source.test=0", f"output={tmp_path}/out"]
    assert cli.main([*words, *nothing]) == 3
    assert "4 of 10 raw items rejected" in capsys.readouterr().err
    assert len(list(read_examples(tmp_path / "out", "train", "images"))) == 6


def test_a_missing_path_is_told(capsys):
    assert cli.main(["prepare", "source=laion"]) == 2
    assert "source.path" in capsys.readouterr().err
