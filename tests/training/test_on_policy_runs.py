"""Short distillations in which the student samples some answers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from delvm.commands.instantiate import build_run
from delvm.configs.validate import config_errors
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, writer
from delvm.errors import UserError
from delvm.interop.load import load_student
from delvm.training.losses import DistillationLoss, OnPolicyLoss
from tests.training.on_policy_ranks import SAMPLING, STRATEGIES, distillation
from tests.training.runs import N, V, curve, student_config, train

METRICS = ("total_loss", "loss", "kd", "on_policy_kd", "on_policy_kept", "on_policy_fraction")


@pytest.fixture(scope="module")
def teacher(tokens, tmp_path_factory) -> Path:
    """A teacher of another width than the student, which has learned a little."""
    path = tmp_path_factory.mktemp("teacher")
    return train(student_config(tokens, 20, "student.net.dim=64"), path)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    """Token shards of pairs, of clips of three, and of single images."""
    root = tmp_path_factory.mktemp("mixture")
    codebooks.write_codebook(root, torch.randn(V, 8, generator=torch.manual_seed(0)), "f" * 16)
    for task, k in (("pose", 2), ("clips", 3), ("photos", 1)):
        for split in ("train", "val"):
            plan = manifest.plan_tokens(
                manifest.plan_images(split, task, source="s", seed=0, image_size=8),
                24, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16,
            )  # fmt: skip
            plan.images_per_example = k

            def ids(start, stop, k=k):
                yield np.random.default_rng(start).integers(0, V, (stop - start, k, N))

            writer.write_tokens(root, plan, ids)
    return root


def config(tokens, teacher, *overrides, steps=4, option="default"):
    return student_config(
        tokens, steps, "module=distillation", f"module/on_policy={option}",
        f"teacher.checkpoint={teacher}", *overrides,
    )  # fmt: skip


def same_weights(one, two):
    first, second = (load_student(path).state_dict() for path in (one, two))
    return all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_fraction_of_zero_keeps_the_bits_of_plain_distillation(tokens, teacher, tmp_path):
    """With dropout and noise, which fraction the random generator."""
    noisy = ("student.net.dropout=0.1", "module.token_noise=0.3", "module.input_weight=0.5")
    plain = train(config(tokens, teacher, *noisy, option="none"), tmp_path / "plain")
    zero = ("module.on_policy.fraction=0", *noisy)
    other = train(config(tokens, teacher, *zero), tmp_path / "zero")
    assert same_weights(plain, other)
    for name in ("total_loss", "loss", "kd", "grad_norm"):
        found = [curve(tmp_path / run, f"train/{name}") for run in ("plain", "zero")]
        assert found[0] == found[1] and len(found[0]) == 4
    assert not load_student(other).training and curve(tmp_path / "zero", "train/on_policy_fraction")


@pytest.mark.slow
def test_resumed_run_samples_what_an_unbroken_one_does(tokens, teacher, tmp_path):
    settings = (
        "module.on_policy.fraction=0.7", "module.on_policy.ramp_steps=5", "student.net.dropout=0.1",
        "trainer.val_check_interval=3", "module.on_policy.min_teacher_prob=0.05",
        "module/on_policy/selection=tokens", "module.on_policy.selection.fraction=0.5",
    )  # fmt: skip
    whole = train(config(tokens, teacher, *settings, steps=6), tmp_path / "whole")
    stop = "callbacks.stop_at_step.step=3"
    train(config(tokens, teacher, *settings, stop, steps=6), tmp_path / "two")
    two = train(config(tokens, teacher, *settings, "resume=auto", steps=6), tmp_path / "two")
    for name in METRICS:
        expected = curve(tmp_path / "whole", f"train/{name}")
        assert curve(tmp_path / "two", f"train/{name}") == expected and len(expected) == 6
    assert same_weights(whole, two)
    fractions = curve(tmp_path / "whole", "train/on_policy_fraction")
    assert fractions[0] == 0 and fractions[-1] == pytest.approx(0.7, abs=0.13)


class Recorder:
    """Keeps the inputs of the loss in each step."""

    def __init__(self, monkeypatch):
        self.calls, original = [], OnPolicyLoss.forward

        def forward(loss, logits, *inputs):
            self.calls.append((logits.detach().clone(), *inputs))
            return original(loss, logits, *inputs)

        monkeypatch.setattr(OnPolicyLoss, "forward", forward)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_step_compares_both_networks_on_what_the_student_sampled(
    tokens, teacher, tmp_path, monkeypatch, dropout
):
    """Logits of the loss, from the tokens that it got, by complete passes of both networks.

    The student samples without dropout, and is trained with it.
    """
    seen = Recorder(monkeypatch)
    settings = ("module.on_policy.fraction=1.0", "optimizer.lr=1e-30", "optimizer.weight_decay=0.0")
    settings += ("module.on_policy.temperature=0.0", f"student.net.dropout={dropout}")
    run = build_run(config(tokens, teacher, *settings, f"output_dir={tmp_path}", steps=1))
    ids = run.data.train[np.arange(8)]["input_ids"]
    student = run.module.model
    for weight in student.blocks.parameters():  # so that dropout matters
        weight.data.mul_(10)
    run.fit()
    (call,) = seen.calls
    logits, targets, _, teacher_hidden, is_sampled, is_trusted, head = call
    assert torch.equal(is_sampled, is_trusted)
    targets, sampled = targets.view(8, -1), is_sampled.view(8, -1)
    assert sampled[:, -N:].all() and not sampled[:, :-N].any()
    assert torch.equal(targets[~sampled], ids[:, 1:][~sampled])
    assert not torch.equal(targets[sampled], ids[:, 1:][sampled])
    sentences = torch.cat((ids[:, :1], targets), dim=1)
    with torch.no_grad():
        expected = run.module.teacher(sentences[:, :-1]).flatten(0, 1)
        assert torch.allclose(teacher_hidden @ head.T, expected, atol=1e-5)
        expected = student.eval()(sentences[:, :-1])
        assert torch.equal(expected[:, -N:].argmax(-1), sentences[:, -N:])
        assert torch.allclose(logits, expected.flatten(0, 1), atol=1e-4) == (not dropout)


@pytest.mark.slow
def test_mixed_precision_learns_what_full_precision_does(tokens, teacher, tmp_path):
    for precision in ("32-true", "bf16-mixed"):
        settings = (f"trainer.precision={precision}", *SAMPLING["greedy"])
        train(config(tokens, teacher, *settings), tmp_path / precision)
    for name in ("total_loss", "on_policy_kd", "grad_norm"):
        found = [curve(tmp_path / each, f"train/{name}") for each in ("32-true", "bf16-mixed")]
        assert len(found[0]) == 4 and found[1] == pytest.approx(found[0], rel=0.2)


@pytest.mark.slow
def test_noise_is_not_in_sampled_tokens(tokens, teacher, tmp_path):
    noise = ("module.token_noise=1.0", "module.on_policy.fraction=1.0", f"output_dir={tmp_path}")
    run = build_run(config(tokens, teacher, *noise, steps=1))
    batch = run.data.train[np.arange(8)]
    batch["is_sampled"] = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
    batch["is_sampled"][:4, -N:] = True
    ids, *_ = run.module.prepare_batch(batch)
    same = ids == batch["input_ids"][:, :-1]
    assert same[:4, -N + 1 :].all() and not same[4:, -N + 1 :].all()


@pytest.mark.slow
def test_sampled_answers_combine_with_all_other_parts(tokens, teacher, tmp_path):
    parts = (
        "module/loss/divergence=jensen_shannon", "module/loss/classes=clusters",
        "module/loss/selection=tokens", "module.loss.selection.by=gap",
        "module.loss.selection.fraction=0.5", "module/loss/hidden=matching",
        "module.loss.temperature=2", "module.loss.direction=reverse", "module.input_weight=1.0",
        "module/on_policy/selection=tokens", "module.on_policy.selection.by=gap",
        "module.on_policy.selection.fraction=0.25", "module.on_policy.temperature=0.5",
        "module.on_policy.top_p=0.9",
    )  # fmt: skip
    run = build_run(config(tokens, teacher, *parts, f"output_dir={tmp_path}"))
    run.fit()
    names = run.module.loss.metric_names
    assert names == (
        "total_loss", "loss", "kd", "kept", "on_policy_kd", "on_policy_kept", "hidden"
    )  # fmt: skip
    values = torch.tensor([curve(tmp_path, f"train/{name}") for name in names])
    assert values.shape == (7, 4) and values.isfinite().all() and (values[4] > 0).all()
    assert values[5].tolist() == pytest.approx([0.25] * 4)
    assert curve(tmp_path, "train/kept") == pytest.approx([0.5] * 4, abs=0.01)
    assert min(curve(tmp_path, "train/on_policy_seconds")) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "fraction"),
    [
        (("data.task_weights={pose: 1.0, clips: 1.0}",), 1.0),
        (("data.task_weights={photos: 1.0}",), 0.0),  # single images have no prompt
        (("data.packing=true",), None),
        (("data=streaming", "data.task_weights={pose: 1.0}"), 1.0),
        (("data=streaming", "data.packing=true"), None),
    ],
)
def test_sentences_of_all_kinds(mixture, teacher, tmp_path, overrides, fraction):
    path = [f"data.path={mixture}"] if "data=streaming" in overrides else []
    overrides = [each for each in overrides if each != "data=streaming"]
    data = ["data=streaming"] if path else []
    settings = ("data.images_per_sentence=6", "module.on_policy.fraction=1.0", *overrides)
    train(config(mixture, teacher, *data, *path, *settings, steps=3), tmp_path)
    fractions = curve(tmp_path, "train/on_policy_fraction")
    assert len(fractions) == 3
    if fraction is None:
        assert min(fractions) > 0
    else:
        assert fractions == [fraction] * 3


@pytest.mark.slow
def test_two_processes_sample_what_one_does(tokens, mixture, teacher, tmp_path, root):
    """And with shards of weights what complete ones do, whether all ranks have answers or not."""
    words = ["--standalone", "--nproc-per-node", "2", "-m", "tests.training.on_policy_ranks"]
    words += [str(each) for each in (tokens, mixture, teacher, tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    train(distillation(tokens, teacher, "single", 1, *SAMPLING["greedy"]), tmp_path / "one")

    def curves(run):
        return torch.tensor([curve(tmp_path / run, f"train/{name}") for name in METRICS])

    exact = {"atol": 1e-5, "rtol": 1e-5}
    for strategy in STRATEGIES:
        for run in ("greedy", "bare"):
            assert torch.allclose(curves("one"), curves(f"{strategy}_{run}"), **exact), strategy
    for run in ("sampled", "mixed"):
        assert torch.allclose(curves(f"ddp_{run}"), curves(f"fsdp2_{run}"), **exact), run
    assert curves("ddp_sampled")[-1].tolist() == [0.5] * 3
    assert 0 < curves("ddp_mixed")[-1].mean() < 1


@pytest.mark.slow
def test_clusters_and_projection_of_a_run_with_sampled_answers_resume(tokens, teacher, tmp_path):
    parts = ("module/loss/classes=clusters", "module/loss/hidden=matching")
    whole = train(config(tokens, teacher, *parts), tmp_path / "whole")
    stop = ("callbacks.stop_at_step.step=2", "trainer.val_check_interval=2")
    train(config(tokens, teacher, *parts, *stop), tmp_path / "two")
    two = train(config(tokens, teacher, *parts, "resume=auto"), tmp_path / "two")
    assert same_weights(whole, two)


def errors_of(*overrides):
    import delvm

    words = ("module=distillation", "module/on_policy=default", "teacher.checkpoint=x")
    found = config_errors("train", delvm.compose("train", [*words, *overrides]))
    return [each for each in found if "on_policy" in each]


@pytest.mark.slow
def test_settings_and_strategies_are_checked_before_a_run():
    assert errors_of() == []
    wrong = ("module.on_policy.fraction=2", "module.on_policy.ramp_steps=-1")
    assert errors_of(*wrong) == [
        "module.on_policy.fraction=2.0 is a fraction: set it from 0 to 1",
        "module.on_policy.ramp_steps=-1 is below 0: set it to 0 or more",
    ]
    by = ("module/on_policy/selection=tokens", "module.on_policy.selection.by=gap")
    assert "module.on_policy.selection.by=gap needs" in errors_of(*by)[0]
    assert "set strategy=fsdp2" in errors_of("strategy=fsdp")[0]
    packed = ("strategy=fsdp2", "data.packing=true")
    assert "set data.packing=false" in errors_of(*packed)[0]
    assert errors_of("strategy=ddp", "data.packing=true") == []


def test_mistyped_setting_is_refused():
    with pytest.raises(UserError, match="ramp_step"):
        errors_of("module.on_policy.ramp_step=3")


def test_a_loss_from_outside_cannot_have_sampled_answers(tokens, teacher, tmp_path):
    cfg = config(tokens, teacher, f"output_dir={tmp_path}")
    cfg.module.loss = {"_target_": "delvm.training.losses.CrossEntropyLoss"}
    words = "DistillationLoss, not CrossEntropyLoss: set module/loss=distillation"
    with pytest.raises(UserError, match=words):
        build_run(cfg)


@pytest.mark.slow
def test_without_sampled_answers_the_loss_is_as_it_was(tokens, teacher, tmp_path):
    run = build_run(config(tokens, teacher, f"output_dir={tmp_path}", option="none"))
    assert type(run.module.loss) is DistillationLoss and run.module.on_policy is None
