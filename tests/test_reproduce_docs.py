"""What docs/reproduce.md states is so: its commands compose, and each reads what another wrote."""

import re
import shlex
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from delvm.commands.app import compose
from delvm.configs.validate import config_errors
from delvm.training.run import launch
from experiments.recipes.few_steps import CHANGES, overrides
from experiments.recipes.hours import encode_flops, table, token_flops

DOC = "docs/reproduce.md"
# Raw data and weights of others, which the page states where to get.
GIVEN = ("raw/", "weights/", "vq_token", "dataset.jsonl")


def commands(text: str) -> list[tuple[str, list[str]]]:
    """Each `delvm` command of a page: verb and overrides."""
    lines = re.findall(r"^    delvm (.*)$", text, re.MULTILINE)
    return [(verb, words) for verb, *words in map(shlex.split, lines)]


def reads_and_writes(verb: str, cfg: DictConfig) -> tuple[list[str], str]:
    """Paths that a command reads, and the one that it writes."""
    if verb == "prepare":
        return [cfg.source.path], cfg.output_dir
    if verb == "train":
        teacher = cfg.teacher.checkpoint
        return [cfg.data.path, *([teacher] if teacher else [])], cfg.output_dir
    if verb == "convert":
        return [cfg.input, cfg.tokenizer], cfg.output_dir
    if verb == "runs":
        return [cfg.input_dir], cfg.output
    students: Any = getattr(cfg, "students", {})
    return [cfg.input_dir, cfg.tokenizer, *students.values()], cfg.output_dir


@pytest.mark.slow
def test_each_command_composes_and_reads_what_an_earlier_one_wrote(root, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(launch, "has_native_bf16", lambda _: True)
    found = commands((root / DOC).read_text("utf-8"))
    verbs = [verb for verb, _ in found]
    assert {"prepare", "inspect", "encode", "convert", "train", "evaluate", "runs"} == set(verbs)
    written: list[str] = []
    for verb, words in found:
        cfg = compose(verb, words)
        read, output = reads_and_writes(verb, cfg)
        for path in read:
            earlier = any(each == path or each.startswith(f"{path}/") for each in written)
            assert earlier or path.startswith(GIVEN), f"delvm {verb} {words}: {path}"
        if verb == "train":
            errors = config_errors("train", cfg)
            missing = ("data.path=", "teacher.checkpoint=")
            assert [each for each in errors if not each.startswith(missing)] == [], words
            assert output not in written, f"{output} is the directory of two runs"
        written.append(output)


def test_each_recipe_is_in_a_command(root):
    text = (root / DOC).read_text("utf-8")
    used = {word for _, words in commands(text) for word in words}
    recipes = [*CHANGES, "lvm_7b"]
    assert {f"experiment={name}" for name in recipes} <= used
    assert all(f"| `{name}` |" in text for name in recipes)


@pytest.mark.slow
def test_hours_are_what_the_command_prints(root):
    lines = (root / DOC).read_text("utf-8").splitlines()
    made = list(table())
    start = lines.index(made[0])
    assert lines[start : start + len(made)] == made


@pytest.mark.slow
def test_hours_count_the_teacher_and_recomputed_blocks():
    student, teacher = token_flops("pretrain_300m"), token_flops("pretrain_1b")
    assert token_flops("kd_1b_to_300m") == pytest.approx(student + teacher / 3)
    # 6 per parameter, attention and a third again of the forward pass
    assert token_flops("lvm_7b") == pytest.approx(6 * 6.54e9 * 4 / 3, rel=0.1)
    assert encode_flops() == pytest.approx(138e9, rel=0.01)


@pytest.mark.parametrize("name", CHANGES)
def test_a_few_steps_compose(name, tmp_path):
    cfg = compose("train", overrides(name, tmp_path, 3))
    errors = config_errors("train", cfg)
    assert all(each.startswith(("data.path=", "teacher.checkpoint=")) for each in errors), errors
    assert cfg.trainer.max_steps == 3 and "checkpoint" not in cfg.callbacks
