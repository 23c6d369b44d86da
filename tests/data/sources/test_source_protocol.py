"""What a source must have: classes from outside of the package are checked, and work."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from delvm import cli
from delvm.data.prepare.prepare import prepare
from delvm.data.shards.manifest import load_manifests
from delvm.data.shards.reader import read_examples
from delvm.data.sources import SOURCES, Source, check_source
from delvm.data.types import Example, SourceChunk
from delvm.errors import UserError
from tests.data.corpus_makers import FakeSource


@dataclass
class Constant:
    """A source that knows nothing of this package's classes but the types of its examples."""

    value: int = 7
    size: int = 16
    seed: int = 0

    def settings(self, split, task):
        return {"value": self.value}

    def chunks(self, split):
        return {"brighten": [SourceChunk("all", 2)]} if split == "train" else {}

    def read(self, split, task, chunk):
        for number in range(chunk.count):
            image = np.full((self.size, self.size, 3), self.value + number, np.uint8)
            yield Example(str(number), task, (image, 2 * image))


@pytest.mark.parametrize("source", SOURCES)
def test_shipped_sources_have_the_protocol(source):
    generated = source in ("shapes", "stereo", "reasoning")
    made = SOURCES[source](**({} if generated else {"path": "x"}) | (
        {"task": "repair"} if source == "paired" else {}
    ))  # fmt: skip
    assert check_source(made) is made and isinstance(made, Source)
    assert made.validate() == [] and SOURCES[source].name == source


def test_check_source_names_what_is_missing():
    with pytest.raises(UserError, match=r"SimpleNamespace cannot be a source: it has no seed, "
                       r"chunks\(split\), read\(split, task, chunk\); add them"):  # fmt: skip
        check_source(SimpleNamespace(size=1, settings=print))
    with pytest.raises(UserError, match=r"int cannot be a source"):
        prepare(3, "x")


def test_source_of_another_class_without_a_name(tmp_path):
    (manifest,) = prepare(Constant(), tmp_path, ["train"])
    assert (manifest.source, manifest.settings["value"]) == ("constant", 7)
    with pytest.raises(UserError, match="value=7, requested is value=8: set overwrite=true"):
        prepare(Constant(value=8), tmp_path, ["train"])
    assert FakeSource.name == "fake"


@pytest.mark.slow
def test_source_by_target_on_the_command_line(tmp_path, capsys):
    folder = tmp_path / "my_conf"
    (folder / "source").mkdir(parents=True)
    path = f"{__name__}.Constant"
    (folder / "source/constant.yaml").write_text(f"_target_: {path}\nvalue: 3\n")
    output = tmp_path / "out"
    words = ["prepare", f"--config-dir={folder}", "splits=[train]", f"output_dir={output}"]
    assert cli.main([*words, "source=constant", "source.value=9"]) == 0
    assert load_manifests(output, "train", "images")["brighten"].count == 2
    (first, _) = read_examples(output, "train", "brighten")
    assert (first.input == 9).all() and (first.target == 18).all()
    assert "train: brighten 2 examples" in capsys.readouterr().out
    words += ["source=constant", "overwrite=true"]
    for target, message in ((f"{__name__}.Nothing", "Nothing"), ("builtins.dict", "cannot be a")):
        (folder / "source/constant.yaml").write_text(f"_target_: {target}\n")
        assert cli.main(words) == 2
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err
