"""Parts from outside of the package: each of examples/plugin is used, and as what it is."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from delvm import cli
from tests.training.runs import write_ids

STUDENT = ["tokenizer=shapes_f8_32", "tokenizer.net.resolution=8", "tokenizer.net.channel_mult=[1]",
           "tokenizer.net.num_embeddings=16", "tokenizer.net.quantized_embed_dim=8",
           "data.pairs_per_sentence=2", "data.path=tokens", "trainer.precision=32-true",
           "trainer.max_steps=2", "output_dir=run"]  # fmt: skip
TINY = ["student=tiny", "student.net.n_layers=1", "student.net.dim=32", "student.net.n_heads=2"]


@pytest.fixture
def plugin(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The plugin's config directory; its package is on the path, the working directory is empty."""
    monkeypatch.syspath_prepend(str(root / "examples" / "plugin"))
    write_ids(tmp_path / "tokens")
    return root / "examples" / "plugin" / "conf"


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: Any, method: str) -> list[object]:
    """A list that grows by one with each call of a method."""
    calls: list[object] = []
    original = getattr(owner, method)

    def counted(self: object, *args: object, **kwargs: object) -> object:
        calls.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, counted)
    return calls


def run(*words: str) -> None:
    assert cli.main(words) == 0


@pytest.mark.slow
def test_own_loss(plugin, monkeypatch):
    from plugin.focal_loss import FocalLoss

    calls = count_calls(monkeypatch, FocalLoss, "__call__")
    run("train", "--config-dir", str(plugin), *STUDENT, *TINY, "module/loss=focal",
        "module.loss.gamma=1.5")  # fmt: skip
    assert len(calls) == 2 and calls[0].gamma == 1.5


@pytest.mark.slow
def test_own_divergence(plugin, monkeypatch):
    from plugin.total_variation import TotalVariation

    run("train", *STUDENT, *TINY, "output_dir=teacher")
    calls = count_calls(monkeypatch, TotalVariation, "__call__")
    run("train", "--config-dir", str(plugin), *STUDENT, *TINY, "module=distillation",
        "teacher.checkpoint=teacher/student", "module/loss/divergence=total_variation",
        "module/loss/classes=clusters")  # fmt: skip
    assert len(calls) == 2


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_own_module(plugin, monkeypatch, precision):
    from plugin.unigram import UnigramModule

    calls = count_calls(monkeypatch, UnigramModule, "training_step")
    run("train", "--config-dir", str(plugin), *STUDENT, "module=unigram", "optimizer.lr=0.1",
        f"trainer.precision={precision}")  # fmt: skip
    assert len(calls) == 2


@pytest.mark.slow
def test_own_student_net(plugin, monkeypatch):
    from plugin.rope_2d import Rope2DTransformer

    calls = count_calls(monkeypatch, Rope2DTransformer, "forward_hidden")
    run("train", "--config-dir", str(plugin), *STUDENT, "student=rope_2d",
        "student.net.tokens_per_side=2")  # fmt: skip
    assert len(calls) >= 2
    # Loaded as a plain Transformer it would be another function, so it is not.
    import delvm

    with pytest.raises(Exception, match="Rope2DTransformer"):
        delvm.load_student("run/checkpoints/last.ckpt")


@pytest.mark.slow
def test_own_source_then_own_tokenizer_net(plugin, monkeypatch):
    from plugin.fsq import FSQTokenizer
    from plugin.stripes import Stripes

    read = count_calls(monkeypatch, Stripes, "read")
    run("prepare", "--config-dir", str(plugin), "source=stripes", "output_dir=stripes")
    assert len(read) == 3  # one chunk per split
    calls = count_calls(monkeypatch, FSQTokenizer, "nearest_code_indices")
    run("train", "--config-dir", str(plugin), "module=tokenizer", "data=images",
        "data.path=stripes", "tokenizer=fsq", "trainer.max_steps=2", "data.batch_size=4",
        "output_dir=run", "trainer.precision=32-true", "module.perceptual_weight=0")  # fmt: skip
    assert len(calls) >= 2


@pytest.mark.slow
def test_own_callback(plugin, capsys):
    run("train", "--config-dir", str(plugin), *STUDENT, *TINY, "callbacks=[default,print_loss]",
        "callbacks.print_loss.every=2")  # fmt: skip
    out = capsys.readouterr().out
    assert "step 2: " in out and "step 1: " not in out


def test_help_lists_options_of_the_config_dir(plugin, capsys):
    run("train", "--config-dir", str(plugin), "--help")
    out = capsys.readouterr().out
    assert "rope_2d" in out and "a tiny student with 2-D rotary positions" in out


@pytest.mark.slow
def test_outside_process_from_an_empty_directory(root, plugin, tmp_path):
    """As a user runs it: the command in an empty directory, a package on PYTHONPATH."""
    words = ["train", "--config-dir", str(plugin), *STUDENT, *TINY, "module/loss=focal"]
    done = subprocess.run(
        [sys.executable, "-m", "delvm", *words],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{root / 'examples' / 'plugin'}:{root}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "weights: run/student" in done.stdout
