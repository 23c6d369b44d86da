"""What the Tab key offers."""

import os
import shutil
import subprocess

import pytest

from delvm.commands.completion import SCRIPTS, complete


@pytest.mark.parametrize(
    "line, words",
    [
        ("delvm tr", ["train"]),
        ("delvm --v", ["--version"]),
        ("delvm frobnicate ", []),
        ("delvm train --mu", ["--multirun"]),
        ("delvm train stu", ["student.", "student="]),
        ("delvm train student=t", ["student=tiny"]),
        ("delvm train experiment=student_s", ["experiment=student_shapes_64"]),
        ("delvm train student.", ["student.net."]),
        ("delvm train student.net.di", ["student.net.dim="]),
        ("delvm train module=distillation module.kd", ["module.kd_weight="]),
        ("delvm train module.kd", []),
        ("delvm train trainer.compile=", ["trainer.compile=true", "trainer.compile=false"]),
        (
            "delvm train student.net.init=",
            [f"student.net.init={i}" for i in ("reference", "gpt2")],
        ),
        ("delvm encode balance=o", ["balance=oversample"]),
        ("delvm encode tokenizer=nothing_is_called_so", []),
        ("delvm generate device=c", ["device=cpu", "device=cuda"]),
        ("delvm generate --cfg job que", ["query="]),
        ("delvm prepare a mistake source.si", ["source.size="]),
    ],
)
def test_words(line, words):
    assert complete(line) == words


def test_the_first_word_is_a_verb():
    assert {"prepare", "train", "--help"} <= set(complete("delvm "))


def test_values_may_be_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    (tmp_path / "picture.png").touch()
    assert complete("delvm generate prompt=p") == ["prompt=picture.png", "prompt=prompts/"]


def test_unknown_shell(delvm):
    assert delvm("--completion", "bsh")[2] == (
        "delvm: no completion for shell 'bsh': did you mean 'bash'?\n"
    )


@pytest.mark.parametrize("shell", SCRIPTS)
def test_scripts_are_printed(delvm, shell):
    code, out, _ = delvm("--completion", shell)
    assert code == 0 and "--complete" in out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_bash_script_completes_in_bash(delvm, tmp_path):
    """A stand-in for delvm answers; the script must strip what bash already holds."""
    fake = tmp_path / "delvm"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --complete ] && printf "%s\\n" student=tiny student=small\n'
    )
    fake.chmod(0o755)
    script = delvm("--completion", "bash")[1] + (
        "COMP_LINE='delvm train student='; COMP_POINT=${#COMP_LINE}; _delvm delvm\n"
        'echo "${COMPREPLY[@]}"\n'
        "COMP_WORDBREAKS=' '; _delvm delvm\n"
        'echo "${COMPREPLY[@]}"\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=os.environ | {"PATH": path}
    )
    assert (done.stdout, done.stderr) == ("tiny small\nstudent=tiny student=small\n", "")
