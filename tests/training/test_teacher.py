"""The frozen teacher of a distillation: its precision, compilation, and shards."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from delvm.commands.instantiate import build_run
from delvm.errors import UserError
from delvm.interop.load import load_student
from delvm.interop.save import save_model
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.weight_precision import Int8Linear, int8_buffers_to_parameters
from delvm.training.distillation import load_teacher
from tests.training.runs import V, curve, student_config, train
from tests.training.teacher_ranks import PRECISIONS, distillation


@pytest.fixture(scope="module")
def teacher(tokens, tmp_path_factory) -> Path:
    return train(student_config(tokens, 2), tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def runs(tokens, teacher, tmp_path_factory, root) -> Path:
    """Each precision, distilled by two processes (PRECISION) and by one (one_PRECISION)."""
    folder = tmp_path_factory.mktemp("runs")
    words = ["--standalone", "--nproc-per-node", "2", "-m", "tests.training.teacher_ranks"]
    words += [str(tokens), str(teacher), str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    for precision in PRECISIONS:
        train(distillation(tokens, teacher, 1, precision), folder / f"one_{precision}")
    mixed = "trainer.precision=bf16-mixed"
    train(distillation(tokens, teacher, 1, "int8", mixed), folder / "one_mixed")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
def test_sharded_teacher_teaches_what_a_complete_one_does(runs, precision):
    for metric in ("train/kd", "train/total_loss", "train/grad_norm"):
        expected = curve(runs / f"one_{precision}", metric)
        assert len(expected) == 4
        assert curve(runs / precision, metric) == pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.mark.slow
def test_sharded_int8_teacher_teaches_under_mixed_precision(runs):
    expected = curve(runs / "one_mixed", "train/kd")
    assert curve(runs / "mixed", "train/kd") == pytest.approx(expected, rel=0.02)


@pytest.mark.slow
def test_each_process_holds_half_of_the_teacher(runs, teacher):
    for precision in PRECISIONS:
        complete = load_teacher(str(teacher), precision)
        int8_buffers_to_parameters(complete)
        total = sum(each.numel() for each in complete.blocks.parameters())
        for rank in (0, 1):
            assert json.loads((runs / f"held_{rank}.json").read_text())[precision] == total // 2


@pytest.mark.slow
def test_sharded_teacher_is_in_no_checkpoint(runs):
    for name in ("int8", "one_int8"):
        student = load_student(runs / name / "checkpoints" / "last.ckpt")
        assert not any("teacher" in key for key in student.state_dict())


@pytest.mark.slow
def test_precision_of_the_teacher_changes_its_distribution_a_little(runs):
    exact, *others = (curve(runs / f"one_{each}", "train/kd")[0] for each in PRECISIONS)
    for found in others:
        assert found != exact and found == pytest.approx(exact, rel=0.05)


@pytest.mark.slow
def test_teacher_is_read_in_the_precision_of_the_config(tokens, teacher):
    found = build_run(distillation(tokens, teacher, 1, "int8")).module.teacher
    assert type(found.blocks[0].attention.qkv) is Int8Linear
    assert found.head.weight.is_floating_point()
    assert not any(each.requires_grad for each in found.parameters())


@pytest.mark.slow
def test_compiled_teacher_gives_the_same_hidden_states(teacher):
    plain, compiled = (load_teacher(str(teacher), compile=each) for each in (False, True))
    assert compiled.blocks[0]._compiled_call_impl is not None
    ids = torch.randint(0, V, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(compiled.forward_hidden(ids), plain.forward_hidden(ids))


@pytest.mark.slow
def test_teacher_of_another_vocabulary_is_refused(tokens, tmp_path):
    other = Transformer(TransformerConfig(2 * V, 32, 1, 2, max_seq_len=32, codebook_dim=8))
    other.tokenizer_fingerprint = "f" * 16
    save_model(other, tmp_path / "teacher")
    output_dir = f"output_dir={tmp_path / 'run'}"
    with pytest.raises(UserError, match=rf"vocab_size {2 * V} \(teacher\) != {V} \(student\)"):
        build_run(distillation(tokens, tmp_path / "teacher", 1, "fp32", output_dir))
    assert not (tmp_path / "run").exists()
