"""The console script: pages, verbs, exit codes."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import delvm as package
from delvm.commands import VERBS, app, help, prepare
from delvm.commands.help import about
from delvm.configs import config_dir, config_root
from delvm.configs.verbs import groups
from delvm.errors import UserError


def process(
    *words: str, cwd: Path | None = None, root: Path = Path(package.__file__).parent.parent
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "delvm", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(root)},
        timeout=120,
    )


def test_help_lists_every_verb(delvm):
    code, out, _ = delvm("--help")
    assert code == 0
    for verb in VERBS:
        assert f"  {verb} " in out


def test_every_listed_verb_can_run():
    from importlib import import_module

    for verb in VERBS:
        assert callable(import_module(f"delvm.commands.{verb}").main)
        assert (config_root(verb) / f"{verb}.yaml").is_file()


def test_version(delvm):
    assert delvm("--version") == (0, f"delvm {package.__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb(delvm, verb):
    code, out, _ = delvm(verb, "--help")
    assert code == 0
    assert "keys (key=value" in out and "examples:" in out and "--multirun" in out


def test_help_of_a_verb_shows_groups_and_defaults(delvm):
    _, out, _ = delvm("train", "--help")
    assert "* small" in out and "  tiny" in out
    assert "/schema" not in out and "override" not in out.split("keys")[1].split("flags")[0]


def test_help_lists_only_options_that_the_verb_takes(delvm):
    _, out, _ = delvm("evaluate", "--help")
    assert set(help.options("evaluate", "executor")) == set(groups("evaluate")["executor"])
    assert set(help.options("encode", "executor")) == set(groups("encode")["executor"])
    assert "submitit" not in out


@pytest.mark.parametrize("verb", ["encode", "convert"])
def test_long_comments_do_not_push_the_columns_of_the_help(delvm, verb):
    _, out, _ = delvm(verb, "--help")
    keys = out.split("keys (key=value")[1].split("\n\n")[0].splitlines()
    assert max(line.count(" " * 40) for line in keys) == 0


@pytest.mark.slow
def test_the_examples_of_the_help_compose():
    for verb in VERBS:
        _, examples = about(verb)
        assert examples
        for example in examples:
            words = shlex.split(example)
            assert words[:2] == ["delvm", verb]
            # A run's checkpoints are in OUTPUT_DIR/checkpoints.
            assert "/checkpoints/last.ckpt" in example or "last.ckpt" not in example
            if "-m" not in words:
                app.compose(verb, words[2:])


def test_help_lists_the_options_of_a_users_own_directory(delvm, tmp_path):
    (tmp_path / "mine/source").mkdir(parents=True)
    (tmp_path / "mine/source/stripes.yaml").write_text("# stripes of one color\n_target_: a.B\n")
    for words in (("prepare", "--config-dir", "mine", "--help"), ("prepare", "-h", "-cd=mine")):
        code, out, _ = delvm(*words)
        assert code == 0 and re.search("stripes +stripes of one color", out) and "* shapes" in out
    assert delvm("prepare", "-cd", "none", "--help") == (
        2,
        "",
        "delvm: config directory not found: none (set --config-dir)\n",
    )


def test_unknown_verb(delvm):
    code, _, err = delvm("trian")
    assert code == 2
    assert err == "delvm: unknown verb 'trian': did you mean 'train'?\n"
    assert delvm("gather")[2] == "delvm: unknown verb 'gather': it is now called runs\n"


def test_unknown_flags(delvm):
    assert "did you mean '--help'?" in delvm("--hlep")[2]
    code, _, err = delvm("prepare", "--multrun")
    assert code == 2
    assert err == "delvm: unknown flag '--multrun': did you mean '--multirun'?\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom delvm.cli import main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'numpy', 'PIL', 'lightning', 'yaml'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    root = str(Path(package.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert done.stderr == "[]\n"


@pytest.mark.slow
def test_a_mistake_ends_a_process_with_one_line_and_2(tmp_path):
    done = process("generate", "promt=x", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "delvm: unknown key 'promt': did you mean 'prompt'?\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_success_ends_a_process_with_0(tmp_path):
    done = process("generate", "--cfg", "job", "prompt=a", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\nprompt: a\nquery: null\n" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_info(tmp_path):
    done = process("prepare", "--info", "defaults", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "source/shapes" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_is_130(delvm, monkeypatch, tmp_path):
    def interrupted(cfg):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "run", interrupted)
    assert delvm("prepare") == (130, "", "delvm: interrupted\n")


@pytest.mark.slow
def test_ctrl_c_inside_lightning_is_130(delvm, monkeypatch, tmp_path):
    from delvm.commands import app
    from delvm.training.student import StudentModule
    from tests.training.runs import write_ids

    def interrupted(self, batch, batch_idx):
        raise KeyboardInterrupt

    write_ids(tmp_path / "tokens")
    monkeypatch.setattr(StudentModule, "training_step", interrupted)
    monkeypatch.setattr(app, "check", lambda verb, cfg: None)
    words = ("data.path=tokens", "data.pairs_per_sentence=2", "tokenizer.net.num_embeddings=16")
    code, out, err = delvm("train", "output_dir=run", *words)
    assert (code, out) == (130, "") and err.endswith("delvm: interrupted\n")


def test_a_bug_keeps_its_traceback(delvm, monkeypatch, tmp_path):
    def buggy(cfg):
        raise ZeroDivisionError("a bug")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "run", buggy)
    with pytest.raises(ZeroDivisionError) as caught:
        delvm("prepare")
    assert caught.traceback[-1].name == "buggy"


def test_a_users_mistake_found_late_is_2(delvm, monkeypatch, tmp_path):
    def mistaken(cfg):
        raise UserError("the folder is not there")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prepare, "run", mistaken)
    assert delvm("prepare") == (2, "", "delvm: the folder is not there\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_path_that_cannot_be_written_is_2(delvm, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    small = ["source.size=16", "splits=[val]", "source.num_val=1"]
    code, _, err = delvm("prepare", "output_dir=file/below", *small)
    assert code == 2
    assert err.splitlines()[-1].startswith("delvm: Not a directory: file/below")


@pytest.mark.slow
def test_a_package_that_carries_its_own_configs(tmp_path):
    """As a wheel lays it out: no checkout around it, run in an empty folder."""
    installed, empty = tmp_path / "site-packages", tmp_path / "empty"
    source = Path(package.__file__).parent
    ignored = shutil.ignore_patterns("__pycache__", "weights")
    shutil.copytree(source, installed / "delvm", ignore=ignored)
    shutil.copytree(config_dir(), installed / "delvm" / "conf")
    empty.mkdir()
    done = process("encode", "--info", "searchpath", cwd=empty, root=installed)
    assert done.returncode == 0, done.stderr
    assert str(installed / "delvm" / "conf") in done.stdout
    assert str(source.parent / "conf") not in done.stdout
    words = ("encode", "tokenizer=t", "balance=augment", "--cfg", "job")
    done = process(*words, cwd=empty, root=installed)
    assert (done.returncode, done.stderr) == (0, "")
    assert "mode: augment" in done.stdout
    assert list(empty.iterdir()) == []


def test_config_dir_of_an_installed_package(monkeypatch, tmp_path):
    (tmp_path / "delvm").mkdir()
    (tmp_path / "delvm" / "__init__.py").touch()
    monkeypatch.setattr(package, "__file__", str(tmp_path / "delvm" / "__init__.py"))
    assert config_dir() == tmp_path / "delvm" / "conf"
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "train.yaml").touch()
    assert config_dir() == tmp_path / "conf"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_change_no_exit_code(closed):
    """As under a daemon: what is printed goes nowhere."""
    for words, expected in (("--version", 0), ("no_such_verb", 2)):
        found = subprocess.run(
            ["bash", "-c", f'"$0" -m delvm {words} {closed}', sys.executable],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(Path(package.__file__).parent.parent)},
            timeout=120,
        )
        assert found.returncode == expected, found.stderr
        assert "Traceback" not in found.stderr + found.stdout
