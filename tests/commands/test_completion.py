"""What the Tab key offers: verbs and flags here, all else by Hydra's own completion."""

import os
import shutil
import subprocess
import sys

import pytest

from delvm.cli import SHELLS


@pytest.fixture
def complete(delvm, monkeypatch):
    def run(line, after=""):
        monkeypatch.setenv("COMP_LINE", line + after)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        code, out, err = delvm("-sc", "query=bash")
        assert (code, err) == (0, "")
        return out.split()

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    "line, words",
    [
        ("delvm tr", ["train"]),
        ("delvm --v", ["--version"]),
        ("delvm frobnicate ", []),
        ("delvm train --mu", ["--multirun"]),
        ("delvm train stu", ["student.", "student="]),
        ("delvm train student=t", ["student=tiny"]),
        ("delvm train experiment=teacher_s", ["experiment=teacher_shapes_64"]),
        ("delvm train student.", ["student.net."]),
        ("delvm train student.net.di", ["student.net.dim="]),
        ("delvm train module=distillation module.loss.kd", ["module.loss.kd_weight="]),
        ("delvm train module.loss.kd", []),
        ("delvm encode balance=o", ["balance=oversample"]),
        ("delvm encode tokenizer=nothing_is_called_so", []),
        ("delvm generate que", ["query="]),
        ("delvm generate tokenizer=./pro", ["tokenizer=./prompts"]),
        ("delvm prepare source=images source.si", ["source.size="]),
        ("delvm prepare a mistake source.si", []),
        ("delvm prepare sch", []),
    ],
)
def test_words(complete, line, words, tmp_path):
    (tmp_path / "prompts").mkdir()
    assert complete(line) == words


def test_the_first_word_is_a_verb(complete):
    assert {"prepare", "train", "--help"} <= set(complete("delvm "))


def test_words_end_at_the_cursor(complete):
    assert complete("delvm tr", "ain seed=1") == ["train"]


def test_unknown_shell(delvm):
    assert delvm("--completion", "bsh")[2] == (
        "delvm: no completion for shell 'bsh': did you mean 'bash'?\n"
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts_are_those_of_hydra(delvm, shell):
    code, out, err = delvm("--completion", shell)
    assert (code, err) == (0, "")
    assert "-sc query=" in out and "delvm" in out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_completion_in_bash(delvm, tmp_path, root):
    program = tmp_path / "bin/delvm"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m delvm "$@"\n')
    program.chmod(0o755)
    script = delvm("--completion", "bash")[1] + (
        "COMP_LINE='delvm train student='; COMP_POINT=${#COMP_LINE}; COMP_CWORD=2\n"
        'hydra_bash_completion; echo "${COMPREPLY[@]}"\n'
    )
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(root)}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env)
    assert {"student=tiny", "student=small"} <= set(done.stdout.split()), done.stderr
