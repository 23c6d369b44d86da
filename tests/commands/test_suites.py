"""`delvm evaluate suite=NAME`: each suite composes, and one-shot runs on domains of one's own."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delvm import tasks
from delvm.commands.app import compose
from delvm.data.sources.derived import TASKS
from delvm.data.sources.paired_folders import Paired
from delvm.data.types import Example
from tests.data.sources.bad_files import save, smooth


@pytest.fixture
def section(root: Path) -> str:
    """What the docs state about one-shot evaluation."""
    text = (root / "docs/evaluation.md").read_text("utf-8")
    return text.split("### One-shot on many domains\n")[1].split("\n### ")[0]


def test_layouts_of_the_docs_are_read(section: str, tmp_path: Path) -> None:
    """Masks of every data set are white on black, whether JPEG, PNG or GIF."""
    layouts = re.findall(r"source\.inputs=(.+?)'? '?source\.targets=(.+?)['` ;]", section)
    assert len(layouts) == 5
    for number, (inputs, targets) in enumerate(layouts):
        root = tmp_path / str(number)
        for name in ("21", "22", "ISIC_0000000"):
            image, mask = (
                root / (path.replace("{id}", name) if "{id}" in path else f"{path}/{name}.png")
                for path in (inputs, targets)
            )
            for path in (image, mask):
                path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(smooth(24, 24)).save(image)
            Image.fromarray(np.array([[0] * 12 + [255] * 12] * 24, np.uint8)).save(mask)
        source = Paired(path=str(root), task="foreground", inputs=inputs, targets=targets, size=16,
                        val_fraction=0, test_fraction=0)  # fmt: skip
        [chunk] = source.chunks("train")["foreground"]
        found = list(source.read("train", "foreground", chunk))
        assert len(found) == 3
        for each in found:
            assert isinstance(each, Example) and (each.target[:, 8:] == 255).all()
            assert not each.target[:, :8].any()


@pytest.mark.slow
def test_commands_of_the_docs_compose(section: str) -> None:
    commands = [line.split() for line in re.findall(r"^    delvm (.*)$", section, re.MULTILINE)]
    assert len(commands) == 4
    for verb, *words in commands:
        given = [word.strip("'") for word in words if word != "-m" and ",outputs" not in word]
        compose(verb, given)
    listed = re.findall(r"source\.tasks=\[(.*?)\]", section)
    assert listed == [",".join(TASKS)]
    for word in re.findall(r"source\.task=(\w+)", section):
        assert word in tasks.all_names()


def write_domain(root: Path, count: int = 12) -> None:
    """Photographs with masks of one class, which are JPEG as in some medical data sets."""
    for number in range(count):
        save(root / f"images/{number}.jpg", smooth(24, 24, seed=number))
        mask = np.zeros((24, 24), np.uint8)
        mask[4 : 10 + number, 6:18] = 255
        path = root / f"masks/{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(path)


@pytest.mark.slow
def test_one_shot_on_domains_of_ones_own(delvm, weights, section, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for domain in ("a", "b"):
        write_domain(tmp_path / "raw" / domain)
        common = (f"output_dir=pairs/{domain}", "splits=[val,test]", "source.size=16",
                  "source.val_fraction=0.5", "source.test_fraction=0.5")  # fmt: skip
        path = f"source.path=raw/{domain}"
        assert delvm("prepare", "source=paired", path, "source.task=foreground",
                     "source.inputs=images", "source.targets=masks", *common)[0] == 0  # fmt: skip
        assert delvm("prepare", "source=derived", f"{path}/images", *common,
                     "source.tasks=[denoise,mirror]")[0] == 0  # fmt: skip
    code, out, err = delvm(
        "evaluate", "-m", "suite=one_shot", "input_dir=pairs/a,pairs/b",
        "output_dir=outputs/one_shot", "num_queries=2", f"tokenizer={weights / 'tokenizer'}",
        f"students.mine={weights / 'student'}",
    )  # fmt: skip
    assert code == 0, err
    found = sorted(tmp_path.glob("outputs/one_shot/*/metrics.json"))
    assert [path.parent.name for path in found] == ["input_dir=pairs-a", "input_dir=pairs-b"]
    for path in found:
        metrics = json.loads(path.read_text("utf-8"))
        assert sorted(metrics["tasks"]) == ["denoise", "foreground", "mirror"]
        assert (metrics["settings"]["num_shots"], metrics["settings"]["num_draws"]) == (1, 5)
    [code] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    capsys.readouterr()
    exec(code, {})
    table = capsys.readouterr().out
    assert "input_dir=pairs-a" in table and "fb_iou" in table and "low_light" not in table
