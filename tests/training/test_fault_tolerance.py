"""Runs that are killed, stopped by a signal, given non-finite losses or out of disk space."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time

import lightning as L
import numpy as np
import pytest
import torch

from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.shards import codebook as codebooks
from delvm.errors import Diverged, Interrupted, UserError
from delvm.interop.load import load_student, load_tokenizer
from delvm.training.callbacks import checkpoint as checkpoints
from delvm.training.callbacks.checkpoint import latest_valid_checkpoint, list_checkpoints
from delvm.training.callbacks.data_position import TrackDataPosition
from delvm.training.callbacks.graceful_shutdown import GracefulShutdown
from delvm.training.student import StudentModule
from delvm.training.tokenizer import TokenizerModule
from tests.training.runs import curve, student_config, tokenizer_config, train

STEPS = 12


def random_config(tokens, *overrides):
    """A run that uses random numbers in each step, and saves at every third."""
    return student_config(
        tokens, STEPS, "module.token_noise=0.5", "module.input_weight=1.0",
        "student.net.dropout=0.2", "student.net.drop_path=0.1", "trainer.val_check_interval=5",
        "callbacks.checkpoint.every_n_train_steps=3", *overrides,
    )  # fmt: skip


def _killed(tokens, overrides, output_dir, step):
    """Train until the batch of a step has been seen, then die as by kill -9."""
    # Workers are to be children of this process, so that they notice its end and go too.
    multiprocessing.set_start_method("fork", force=True)
    original = TrackDataPosition.on_train_batch_end

    def die(self, trainer, *rest):
        original(self, trainer, *rest)
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    TrackDataPosition.on_train_batch_end = die
    train(random_config(tokens, *overrides), output_dir)


def in_a_process(work, *args):
    """Run in a process of its own; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["delvm.training.run.fit"])
    process = context.Process(target=work, args=args)
    process.start()
    process.join(120)
    return process.exitcode


class Run:
    """A finished run: its folder, and its weights."""

    def __init__(self, folder):
        self.folder, self.weights = folder, load_student(folder).state_dict()

    def equals(self, folder):
        """Whether another run has the same weights, to the last bit."""
        other = load_student(folder).state_dict()
        return all(torch.equal(self.weights[key], other[key]) for key in other)


@pytest.fixture(scope="module")
def unbroken(tokens, tmp_path_factory):
    """The run that was never stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    train(random_config(tokens), folder)
    return Run(folder)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_run_ends_as_an_uninterrupted_one(tokens, tmp_path, unbroken, workers):
    """Killed at three random steps, it ends with bit-identical weights."""
    overrides = (f"data.num_workers={workers}", "resume=auto")
    for step in sorted(np.random.default_rng(workers).choice(np.arange(1, STEPS), 3, False)):
        assert in_a_process(_killed, tokens, overrides, tmp_path, step) == -signal.SIGKILL
    assert list_checkpoints(tmp_path)
    train(random_config(tokens, *overrides), tmp_path)
    assert unbroken.equals(tmp_path)
    assert curve(tmp_path, "train/loss") == curve(unbroken.folder, "train/loss")


def test_newest_and_best_checkpoints_stay(tokens, tmp_path):
    config = random_config(tokens)
    train(config, tmp_path)
    folder = tmp_path / "checkpoints"
    losses = curve(tmp_path, "val/loss")
    best = 5 * (int(np.argmin(losses)) + 1)
    kept = [int(path.name[5:11]) for path in list_checkpoints(tmp_path)]
    assert kept == sorted({12, 9, best} if best != 10 else {12, 10}, reverse=True)
    assert os.readlink(folder / "last.ckpt") == "step=000012.ckpt"
    assert os.readlink(folder / "best.ckpt") == f"step={best:06d}.ckpt"
    assert load_student(folder / "best.ckpt").config.dropout == 0.2


def test_best_checkpoint_when_both_saves_fall_on_one_step(tokens, tmp_path):
    config = random_config(tokens)
    config.callbacks.checkpoint.every_n_train_steps = 4
    config.trainer.val_check_interval = config.trainer.max_steps = 4
    train(config, tmp_path)
    assert os.readlink(tmp_path / "checkpoints" / "best.ckpt") == "step=000004.ckpt"
    found = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert found["callbacks"]["AtomicCheckpoint"]["best"][1] == 4


def test_torn_checkpoint_is_skipped(tokens, tmp_path, caplog, unbroken):
    config = random_config(tokens)
    config.callbacks.stop_at_step.step, config.callbacks.checkpoint.keep_latest_k = 7, 3
    train(config, tmp_path)
    newest, second = list_checkpoints(tmp_path)[:2]
    os.truncate(newest, newest.stat().st_size // 2)
    assert latest_valid_checkpoint(tmp_path) == second
    assert f"skipped checkpoint {newest}" in caplog.text
    config.callbacks.stop_at_step.step, config.resume = None, "auto"
    train(config, tmp_path)
    assert unbroken.equals(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "num_workers"), [(signal.SIGTERM, 0), (signal.SIGTERM, 2), (signal.SIGINT, 0)]
)
def test_signal_saves_and_names_how_to_resume(
    tokens, tmp_path, monkeypatch, unbroken, number, num_workers
):
    config = random_config(tokens)
    config.data.num_workers = num_workers
    original = StudentModule.training_step

    def step(self, batch, index):
        if self.global_step == 4:
            workers = multiprocessing.active_children()
            assert len(workers) >= num_workers
            for each in workers:  # as `timeout` and SLURM do
                os.kill(each.pid, number)
            time.sleep(0.2 if workers else 0)
            os.kill(os.getpid(), number)
        return original(self, batch, index)

    monkeypatch.setattr(StudentModule, "training_step", step)
    with pytest.raises(Interrupted, match=f"{number.name} at step 5 of 12.*resume=auto") as stop:
        train(config, tmp_path)
    assert stop.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # restored
    assert not (tmp_path / "student").exists()
    monkeypatch.undo()
    config.resume = "auto"
    train(config, tmp_path)
    assert unbroken.equals(tmp_path)


@pytest.mark.slow
def test_signal_within_a_step_of_two_batches_lets_the_step_end(tokens, tmp_path, monkeypatch):
    """Saved in the middle, the second half of the step would be lost."""

    def run_halves(output_dir, interrupt):
        config = random_config(tokens)
        config.trainer.accumulate_grad_batches, config.resume = 2, "auto"
        original = StudentModule.training_step

        def step(self, batch, index):
            if interrupt and index == 6:  # the first batch of the fourth step
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, batch, index)

        with monkeypatch.context() as patch:
            patch.setattr(StudentModule, "training_step", step)
            train(config, output_dir)

    run_halves(tmp_path / "one", interrupt=False)
    with pytest.raises(Interrupted, match="at step 4 of 12"):
        run_halves(tmp_path / "two", interrupt=True)
    run_halves(tmp_path / "two", interrupt=False)
    assert Run(tmp_path / "one").equals(tmp_path / "two")


def test_data_worker_ends_on_a_second_sigterm(tmp_path):
    """The first may be that of its group; its process terminates it after the step."""
    stop, file = GracefulShutdown(), tmp_path / "alive"
    with stop.install_handlers():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            file.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM and stop.signal is None and file.exists()


def make_nonfinite(monkeypatch, steps):
    """Make the loss of some steps NaN."""

    original = StudentModule.training_step

    def step(self, batch, index):
        loss = original(self, batch, index)
        return loss * float("nan") if index in steps else loss

    monkeypatch.setattr(StudentModule, "training_step", step)


def test_nonfinite_step_is_skipped_and_reported(tokens, tmp_path, monkeypatch):
    config = student_config(tokens, 6)
    make_nonfinite(monkeypatch, (2, 4))
    train(config, tmp_path)
    assert curve(tmp_path, "train/skipped") == [0, 0, 1, 1, 2, 2]
    assert all(torch.isfinite(w).all() for w in load_student(tmp_path).state_dict().values())
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and lines[0]["norm"] == "nan"
    data = SentencesConfig(str(tokens), pairs_per_sentence=2, batch_size=8)
    expected = SentenceDataset(data, 0).locate(np.arange(16, 24))
    assert lines[0]["examples"] == expected and len(expected) == 16  # 8 sentences of 2 pairs
    assert set(expected[0]) == {"task", "shard", "index"}


@pytest.mark.slow
def test_skipped_step_changes_nothing(tokens, tmp_path, monkeypatch):
    """Non-finite after its third step, a run ends with the weights it had then."""
    monkeypatch.setattr("delvm.training.optim.warmup_cosine", lambda step, *rest: 1.0)
    train(student_config(tokens, 3), tmp_path / "short")
    make_nonfinite(monkeypatch, range(3, 6))
    with pytest.raises(Diverged, match="the last 3 steps"):
        train(student_config(tokens, 6), tmp_path / "long")
    last = tmp_path / "long" / "checkpoints" / "step=000006.ckpt"
    short, long = (load_student(path).state_dict() for path in (tmp_path / "short", last))
    assert all(torch.equal(short[key], long[key]) for key in short)


@pytest.mark.slow
def test_run_stops_after_nonfinite_steps(tokens, tmp_path, monkeypatch):
    config = student_config(tokens, 12)
    config.callbacks.nonfinite_grad.max_nonfinite_steps = 3
    config.callbacks.checkpoint.every_n_train_steps = 2
    make_nonfinite(monkeypatch, range(4, 12))
    with pytest.raises(UserError, match="3 steps in a row, up to step 6.*skipped.jsonl"):
        train(config, tmp_path)
    good = latest_valid_checkpoint(tmp_path)
    assert good is not None
    assert all(torch.isfinite(w).all() for w in load_student(good).state_dict().values())


@pytest.mark.slow
def test_tokenizer_keeps_its_codes_through_a_nonfinite_step(images, tmp_path, monkeypatch):
    original = TokenizerModule.reconstruction

    def reconstruction(self, pixels, reconstructions):
        loss = original(self, pixels, reconstructions)
        return loss * float("nan") if self.global_step == 3 else loss

    monkeypatch.setattr(TokenizerModule, "reconstruction", reconstruction)
    train(tokenizer_config(images, 6), tmp_path)
    assert all(torch.isfinite(w).all() for w in load_tokenizer(tmp_path).state_dict().values())
    assert max(curve(tmp_path, "train/skipped")) == 1


@pytest.mark.slow
def test_full_disk_keeps_the_last_checkpoint(tokens, tmp_path, monkeypatch):
    config = random_config(tokens)
    original = L.Trainer.save_checkpoint

    def save(self, path, *rest):
        original(self, path, *rest)
        if self.global_step >= 6:
            os.truncate(path, 1000)  # what fitted
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(L.Trainer, "save_checkpoint", save)
    with pytest.raises(UserError, match="No space left.*step=000005.ckpt is intact.*resume=auto"):
        train(config, tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert latest_valid_checkpoint(tmp_path).name == "step=000005.ckpt"


@pytest.mark.slow
def test_overfitting_one_batch(tokens, tmp_path):
    overfit = ("trainer.overfit_batches=1", "module.input_weight=1.0")
    train(student_config(tokens, 120, *overfit), tmp_path)
    losses = curve(tmp_path, "train/loss")
    # Inputs are random: only memorizing predicts them.
    assert losses[0] > 2.0 and losses[-1] < 0.1


@pytest.mark.slow
def test_logged_metrics_of_a_run(tokens, tmp_path):
    train(random_config(tokens), tmp_path)
    assert curve(tmp_path, "mixture/pose") == [1.0] * STEPS
    assert 0 < curve(tmp_path, "train/mfu")[-1] < 1
    assert curve(tmp_path, "train/memory_gib")[-1] > 0.1
    assert len(curve(tmp_path, "train/grad_norm")) == len(curve(tmp_path, "train/lr/pg1")) == STEPS


@pytest.mark.slow
def test_weight_ema_is_exact_over_two_jobs(images, tmp_path):
    exported = []
    for name, stops in {"one": [None], "two": [3, None]}.items():
        for stop in stops:
            config = tokenizer_config(
                images, 6, "callbacks=[default,weight_ema]", "callbacks.weight_ema.decay=0.5",
                "resume=auto", "callbacks.checkpoint.every_n_train_steps=1",
            )  # fmt: skip
            config.callbacks.stop_at_step.step = stop
            train(config, tmp_path / name)
        exported.append(load_tokenizer(tmp_path / name).state_dict())
    assert all(torch.equal(exported[0][key], exported[1][key]) for key in exported[0])
    with pytest.raises(UserError, match="an average of the weights, this run asks for none"):
        train(tokenizer_config(images, 7, "resume=auto"), tmp_path / "one")


def test_run_does_not_resume_with_ids_of_another_tokenizer(tokens, tmp_path):
    train(student_config(tokens, 2), tmp_path / "run")
    shutil.copytree(tokens, tmp_path / "tokens")
    for file in (tmp_path / "tokens").rglob("manifest.json"):
        file.write_text(file.read_text().replace("f" * 16, "e" * 16))
    (tmp_path / "tokens" / "codebook.safetensors").unlink()
    codebooks.write_codebook(tmp_path / "tokens", torch.randn(16, 8), "e" * 16)
    with pytest.raises(UserError, match="ids of tokenizer f{16}, data.path holds those of e{16}"):
        train(student_config(tmp_path / "tokens", 4, "resume=auto"), tmp_path / "run")


def test_activation_checkpointing_changes_nothing(tokens, tmp_path, unbroken):
    config = random_config(tokens)
    config.student.net.activation_checkpointing = 1
    train(config, tmp_path)
    ended = load_student(tmp_path).state_dict()
    assert all(torch.allclose(w, ended[key], atol=1e-5) for key, w in unbroken.weights.items())


def test_links_are_replaced_atomically(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        checkpoints._link(tmp_path / "last", name)
        assert (tmp_path / "last").read_text() == name
