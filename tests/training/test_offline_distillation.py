"""A teacher's stored distributions teach what the teacher itself does."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from delvm.commands.app import compose
from delvm.commands.encode import run as encode
from delvm.commands.instantiate import build_run
from delvm.training.losses import cross_entropy_sum, top_k_kl_divergence, top_k_log_probs
from tests.training.runs import curve, student_config, train

K = 6
STEPS = 5


class OnlineTopKLoss:
    """What `OfflineTopKLoss` computes, from the teacher's hidden states."""

    metric_names = ("total_loss", "loss", "kd")

    def __call__(self, logits, targets, weights, teacher_hidden, teacher_head):
        teacher_logits = F.linear(teacher_hidden, teacher_head).float()
        kl = top_k_kl_divergence(logits, *top_k_log_probs(teacher_logits, K))
        kd, ce = (kl * weights).sum(), cross_entropy_sum(logits, targets, weights)
        return torch.stack((ce + kd, ce, kd))


@pytest.fixture(scope="module")
def teacher(tokens, tmp_path_factory) -> Path:
    return train(student_config(tokens, 12), tmp_path_factory.mktemp("teacher"))


def store(tokens: Path, teacher: Path, path: Path, *overrides: str) -> Path:
    """Write the teacher's distributions as `delvm encode` does."""
    encode(
        compose(
            "encode",
            [f"teacher={teacher}", f"output_dir={tokens}", f"teacher_cache.path={path}",
             "teacher_cache.pairs_per_sentence=2", f"teacher_cache.top_k={K}", *overrides],
        )
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def cache(tokens, teacher, tmp_path_factory) -> Path:
    return store(tokens, teacher, tmp_path_factory.mktemp("cache") / "c")


def offline(tokens: Path, cache: Path, *overrides: str, steps: int = STEPS):
    """A short run from stored distributions; ``seed`` changes the weights, not the sentences."""
    return student_config(
        tokens, steps, "module=offline_distillation", "teacher=offline", f"teacher.path={cache}",
        "module.input_weight=0.5", "seed=1", "data.seed=0", *overrides,
    )  # fmt: skip


def online(tokens: Path, teacher: Path, *overrides: str):
    return student_config(
        tokens, STEPS, "module=distillation", f"teacher.checkpoint={teacher}",
        "module.input_weight=0.5", "seed=1", "data.seed=0", *overrides,
    )  # fmt: skip


def as_top_k(run):
    """A run of online distillation with the loss over the same classes."""
    run.module.loss = OnlineTopKLoss()
    return run


@pytest.mark.slow
def test_loss_and_gradients_equal_online_top_k_distillation(tokens, teacher, cache):
    found = build_run(offline(tokens, cache)).module
    expected = as_top_k(build_run(online(tokens, teacher))).module
    found.model.load_state_dict(expected.model.state_dict())
    batch = found.data.train[np.arange(32)]
    for module in (found, expected):
        module.training_step(batch, 0).backward()
    for name, value in expected.step_metrics[0].items():
        assert found.step_metrics[0][name].item() == pytest.approx(value.item(), abs=1e-5)
    largest = 0.0
    for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=0)
        largest = max(largest, b.grad.abs().max().item())
    assert largest > 1e-2  # so that 1e-5 means something


@pytest.mark.slow
def test_training_equals_online_top_k_distillation(tokens, teacher, cache, tmp_path):
    as_top_k(build_run(online(tokens, teacher, f"output_dir={tmp_path / 'online'}"))).fit()
    build_run(offline(tokens, cache, f"output_dir={tmp_path / 'offline'}")).fit()
    for name in ("train/total_loss", "train/loss", "train/kd", "val/loss"):
        expected = curve(tmp_path / "online", name)
        assert len(expected) == (STEPS if name.startswith("train") else 1)
        assert curve(tmp_path / "offline", name) == pytest.approx(expected, abs=1e-5)
