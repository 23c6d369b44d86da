"""`delvm prepare` with a source from outside of the package: used, or refused in one line."""

import sys
from pathlib import Path

import pytest

from delvm.commands import app

SOURCE = """
import numpy as np
from delvm.data.types import Example, SourceChunk

class Squares:
    seed = 0

    def __init__(self, size, count=3):
        self.size, self.count = size, count

    def settings(self, split, task):
        return {"count": self.count}

    def chunks(self, split):
        return {"squares": [SourceChunk("all", self.count)]}

    def read(self, split, task, chunk):
        for number in range(self.count):
            image = np.full((self.size, self.size, 3), number, np.uint8)
            yield Example(f"{number}", task, (image, image))
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config directory of its own, next to a module that its option names."""
    (tmp_path / "conf/source").mkdir(parents=True)
    (tmp_path / "squares.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "squares", raising=False)
    return tmp_path / "conf/source/mine.yaml"


def test_a_foreign_source_needs_only_a_target(delvm, mine):
    mine.write_text("# squares of one color\n_target_: squares.Squares\nsize: 16\ncount: 5\n")
    words = ("prepare", "--config-dir", "conf", "source=mine", "splits=[test]", "output_dir=out")
    code, out, err = delvm(*words, "source.count=4")
    assert (code, out.splitlines()[0]) == (0, "test: squares 4 examples"), err
    assert "squares of one color" in delvm("prepare", "-cd", "conf", "--help")[1]


def test_from_python_its_directory_is_an_override(mine, tmp_path):
    mine.write_text("_target_: squares.Squares\nsize: 16\n")
    words = [f"hydra.searchpath=[{tmp_path}/conf]", "source=mine", "splits=[test]"]
    app.run("prepare", [*words, "output_dir=out"])
    assert (tmp_path / "out/test/squares/manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "text, message",
    [
        ("_target_: nowhere.Squares", "nowhere"),
        ("_target_: squares.Squares\nsides: 4", "source: "),
        ("_target_: builtins.dict\nsize: 3", "cannot be a source: it has no "),
        ("size: 3", "source"),
    ],
)
def test_what_cannot_be_a_source_is_one_line(delvm, mine, tmp_path, text, message):
    mine.write_text(text + "\n")
    code, out, err = delvm("prepare", "-cd", "conf", "source=mine", "output_dir=out")
    assert (code, out, err.count("\n")) == (2, "", 1) and message in err, err
    assert not (tmp_path / "out").exists()
