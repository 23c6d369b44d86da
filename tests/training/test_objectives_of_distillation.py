"""Short distillations by each objective, as their options name them."""

import os
import subprocess
import sys

import pytest
import torch

from delvm.commands.help import options
from delvm.commands.instantiate import build_run
from delvm.errors import UserError
from delvm.interop.load import load_student
from tests.training.objective_ranks import STRATEGIES, distillation
from tests.training.runs import V, curve, student_config, train

LOSSES = sorted({*options("train", "module/loss")} - {"cross_entropy", "offline_top_k"})
# The codebook of these shards has 16 codes.
SMALL = {"top_k": ("module.loss.classes.k=4",)}


@pytest.fixture(scope="module")
def teacher(tokens, tmp_path_factory):
    """A teacher of another width than the student."""
    path = tmp_path_factory.mktemp("teacher")
    return train(student_config(tokens, 1, "student.net.dim=64"), path)


def config(tokens, teacher, output_dir, loss, *overrides, steps=2):
    return student_config(
        tokens, steps, "module=distillation", f"module/loss={loss}",
        f"teacher.checkpoint={teacher}", f"output_dir={output_dir}", *SMALL.get(loss, ()),
        *overrides,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
def test_two_steps_of_every_objective(tokens, teacher, tmp_path, loss):
    run = build_run(config(tokens, teacher, tmp_path, loss))
    weights = run.fit()
    names = run.module.loss.metric_names
    assert names[:3] == ("total_loss", "loss", "kd")
    values = [curve(tmp_path, f"train/{name}") for name in names]
    assert all(len(each) == 2 for each in values)
    assert torch.tensor(values).isfinite().all() and min(values[2]) >= 0
    assert load_student(weights).vocab_size == V  # and there is nothing of the loss in it


@pytest.mark.slow
def test_objectives_combine(tokens, teacher, tmp_path):
    parts = (
        "module/loss/divergence=jensen_shannon", "module/loss/classes=clusters",
        "module/loss/selection=tokens", "module.loss.selection.by=gap",
        "module.loss.selection.fraction=0.5", "module/loss/hidden=matching",
        "module.loss.hidden.distance=mse", "module.input_weight=1.0",
    )  # fmt: skip
    build_run(config(tokens, teacher, tmp_path, "distillation", *parts)).fit()
    # of a batch of 8 sentences of 15 predicted tokens each
    assert curve(tmp_path, "train/kept") == pytest.approx([0.5, 0.5])


@pytest.mark.slow
def test_the_projection_is_trained_saved_and_resumed_and_not_exported(tokens, teacher, tmp_path):
    whole = build_run(config(tokens, teacher, tmp_path / "a", "hidden_states", steps=4))
    before = whole.module.loss.hidden.projection.weight.detach().clone()
    weights = whole.fit()
    after = whole.module.loss.hidden.projection.weight
    assert after.shape == (64, 32) and not torch.equal(before, after)
    assert load_student(weights).vocab_size == V
    stop = ("+callbacks.stop._target_=delvm.training.callbacks.StopAtStep",
            "+callbacks.stop.step=2")  # fmt: skip
    build_run(config(tokens, teacher, tmp_path / "b", "hidden_states", *stop, steps=4)).fit()
    resumed = build_run(
        config(tokens, teacher, tmp_path / "b", "hidden_states", "resume=auto", steps=4)
    )
    resumed.fit()
    assert torch.equal(resumed.module.loss.hidden.projection.weight, after)
    assert curve(tmp_path / "b", "train/hidden")[-2:] == curve(tmp_path / "a", "train/hidden")[-2:]
    assert load_student(tmp_path / "b" / "checkpoints" / "last.ckpt").vocab_size == V
    with pytest.raises(UserError, match="another network than this run's .*loss"):
        build_run(config(tokens, teacher, tmp_path / "b", "distillation", "resume=auto", steps=4))


@pytest.mark.slow
def test_clusters_with_an_average_of_the_weights(tokens, teacher, tmp_path):
    average = "callbacks=[default,weight_ema]"
    run = build_run(config(tokens, teacher, tmp_path, "clusters", average))
    clusters = run.module.loss.classes.clusters.clone()
    run.fit()
    assert torch.equal(run.module.loss.classes.clusters, clusters)


@pytest.mark.slow
def test_two_processes_train_the_projection_as_one_does(tokens, teacher, tmp_path, root):
    words = ["--standalone", "--nproc-per-node", "2", "-m", "tests.training.objective_ranks"]
    words += [str(tokens), str(teacher), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    train(distillation(tokens, teacher, "single", 1), tmp_path / "one")
    for metric in ("train/total_loss", "train/kd", "train/hidden", "train/grad_norm"):
        expected = curve(tmp_path / "one", metric)
        assert len(expected) == 3
        for strategy in STRATEGIES:
            actual = curve(tmp_path / strategy, metric)
            assert actual == pytest.approx(expected, abs=1e-5, rel=1e-5), strategy


@pytest.mark.slow
def test_more_kept_tokens_than_codes_is_an_error(tokens, teacher, tmp_path):
    words = "module.loss.classes.k=16 >= 16 codes: set module.loss.classes.k=8"
    with pytest.raises(UserError, match=words):
        build_run(config(tokens, teacher, tmp_path, "top_k", "module.loss.classes.k=16"))


def test_a_loss_from_outside_gets_the_codebook(tokens, teacher, tmp_path):
    cfg = config(tokens, teacher, tmp_path, "distillation")
    cfg.module.loss = {"_target_": f"{__name__}.ForeignLoss"}
    assert build_run(cfg).module.loss.shape == (V, 8)


class ForeignLoss:
    """Remembers the codebook's shape."""

    shape: tuple[int, ...] = ()

    def connect_codebook(self, codebook: torch.Tensor) -> None:
        self.shape = tuple(codebook.shape)

    def __call__(self, logits: torch.Tensor, *inputs: torch.Tensor) -> torch.Tensor:
        return logits.sum()
