"""What docs/prompting.md states is so: its commands are valid, and its example files work."""

import re
import shlex

import numpy as np
import pytest

from delvm import cli
from delvm.commands.app import compose
from delvm.data.image_io import open_image
from delvm.inference import read_prompt


@pytest.mark.slow
def test_commands_are_valid(root):
    text = (root / "docs" / "prompting.md").read_text("utf-8")
    commands = re.findall(r"^    delvm generate (.*)$", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        words = shlex.split(command)
        config = compose("generate", words)
        assert config.validate() == [], command
    assert compose("generate", shlex.split(commands[2])).query == "photos/[ab]*.jpg"


def test_settings_and_options_exist(root):
    text = (root / "docs" / "prompting.md").read_text("utf-8")
    known = vars(compose("generate", ["prompt=a", "query=b"])) | vars(compose("evaluate", []))
    named = set(re.findall(r"`([a-z_]+)=[^`]*`", text)) - {"preset"}
    assert len(named) > 8 and named <= set(known)


@pytest.mark.slow
def test_example_files_are_answered(root, tmp_path):
    examples = root / "examples"
    output = tmp_path / "answers"
    assert cli.main(["generate", f"prompt={examples}/tasks.jsonl", f"output={output}"]) == 0
    tasks = {"deblur", "derain", "pose", "segmentation"}
    assert {path.stem for path in output.glob("*.png")} == tasks | {"grid"}
    assert read_prompt(examples / "derain.json") == read_prompt(examples / "derain")[:2]
    query = f"query={examples}/derain_query.png"
    words = ["generate", f"prompt={examples}/derain", query, f"output={tmp_path}/alone.png"]
    assert cli.main(words) == 0
    alone, line = (
        np.asarray(open_image(path)).astype(int)
        for path in (tmp_path / "alone.png", output / "derain.png")
    )
    assert np.abs(alone - line).max() <= 1  # sizes of batches change the last bits
