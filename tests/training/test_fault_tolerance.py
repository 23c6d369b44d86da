"""Runs that are killed, told to stop, fed nonsense or left without room."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch

from delvm.data.datasets.sentences import SentenceDataset
from delvm.data.shards import manifest
from delvm.errors import Interrupted, UserError
from delvm.interop.load import load_student, load_tokenizer
from delvm.training.callbacks import checkpoint as checkpoints
from delvm.training.callbacks.checkpoint import (
    GracefulShutdown,
    latest_valid_checkpoint,
    list_checkpoints,
)
from delvm.training.callbacks.data_position import TrackDataPosition
from delvm.training.config import StudentModule, TrainerConfig
from delvm.training.fit import train
from delvm.training.student import StudentTraining
from delvm.training.tokenizer import TokenizerTraining
from tests.training.runs import curve, student_config, tokenizer_config

STEPS = 12


def random_config(tokens, workers=0, **changes):
    """A run that draws random numbers in each step, and saves at every third."""
    config = student_config(tokens, module=StudentModule(misread=0.5), **changes)
    net = replace(config.student.net, dropout=0.2, drop_path=0.1)
    config.student.net = net
    config.data.num_workers = workers
    config.trainer = TrainerConfig(
        STEPS, accelerator="cpu", precision="32-true", val_every=5, save_every=3, log_every=1,
        threads=1,
    )  # fmt: skip
    return config


def _killed(config, folder, step):
    """Train until the batch of a step has been seen, then die as by kill -9."""
    # Workers are to be children of this process, so that they notice its end and go too.
    multiprocessing.set_start_method("fork", force=True)
    plain = TrackDataPosition.on_train_batch_end

    def die(self, trainer, *rest):
        plain(self, trainer, *rest)
        if trainer.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    TrackDataPosition.on_train_batch_end = die
    train(config, folder)


def in_a_process(work, *args):
    """Run in a process of its own; its exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["delvm.training.fit"])
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_ends_as_one_that_was_not(tokens, tmp_path, unbroken, workers):
    """Killed at three steps drawn at random, it has the same weights to the last bit."""
    config = random_config(tokens, workers=workers)
    config.resume = "auto"
    for step in sorted(np.random.default_rng(workers).choice(np.arange(1, STEPS), 3, False)):
        assert in_a_process(_killed, config, tmp_path, step) == -signal.SIGKILL
    assert list_checkpoints(tmp_path)
    train(config, tmp_path)
    assert unbroken.equals(tmp_path)
    assert curve(tmp_path, "train/loss") == curve(unbroken.folder, "train/loss")


def test_the_newest_few_and_the_best_stay(tokens, tmp_path):
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


def test_the_best_is_kept_where_both_saves_fall_on_one_step(tokens, tmp_path):
    config = random_config(tokens)
    config.trainer.save_every, config.trainer.val_every, config.trainer.max_steps = 4, 4, 4
    train(config, tmp_path)
    assert os.readlink(tmp_path / "checkpoints" / "best.ckpt") == "step=000004.ckpt"
    found = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert found["callbacks"]["AtomicCheckpoint"]["best"][1] == 4


def test_a_torn_checkpoint_is_passed_over(tokens, tmp_path, capsys, unbroken):
    config = random_config(tokens)
    config.trainer.stop_at, config.trainer.keep = 7, 3
    train(config, tmp_path)
    newest, second = list_checkpoints(tmp_path)[:2]
    os.truncate(newest, newest.stat().st_size // 2)
    assert latest_valid_checkpoint(tmp_path) == second
    assert f"passed over, checkpoint {newest}" in capsys.readouterr().err
    config.trainer.stop_at, config.resume = None, "auto"
    train(config, tmp_path)
    assert unbroken.equals(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(tokens, tmp_path, monkeypatch, unbroken, number):
    config = random_config(tokens)
    plain = StudentTraining.training_step

    def step(self, batch, index):
        if self.global_step == 4:
            os.kill(os.getpid(), number)
        return plain(self, batch, index)

    monkeypatch.setattr(StudentTraining, "training_step", step)
    with pytest.raises(Interrupted, match=f"{number.name} at step 5 of 12.*resume=auto") as stop:
        train(config, tmp_path)
    assert stop.value.exit_code == 128 + number
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # given back
    assert not (tmp_path / "student").exists()
    monkeypatch.undo()
    config.resume = "auto"
    train(config, tmp_path)
    assert unbroken.equals(tmp_path)


def test_a_signal_within_a_step_of_two_batches_lets_it_end(tokens, tmp_path, monkeypatch):
    """Saved in its middle, the second half of the step would be lost."""

    def halved(folder, told):
        config = random_config(tokens)
        config.trainer.accumulate, config.resume = 2, "auto"
        plain = StudentTraining.training_step

        def step(self, batch, index):
            if told and index == 6:  # the first batch of the fourth step
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, batch, index)

        with monkeypatch.context() as patch:
            patch.setattr(StudentTraining, "training_step", step)
            train(config, folder)

    halved(tmp_path / "whole", told=False)
    with pytest.raises(Interrupted, match="at step 4 of 12"):
        halved(tmp_path / "parted", told=True)
    halved(tmp_path / "parted", told=False)
    assert Run(tmp_path / "whole").equals(tmp_path / "parted")


def test_a_worker_that_reads_data_ends_by_sigterm():
    """Though it has inherited the handlers, which would have it live on."""
    stop = GracefulShutdown()
    with stop.install_handlers():
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM and stop.signal is None


def spoilt(monkeypatch, steps):
    """Make the loss of some steps no number."""

    plain = StudentTraining.training_step

    def step(self, batch, index):
        loss = plain(self, batch, index)
        return loss * float("nan") if index in steps else loss

    monkeypatch.setattr(StudentTraining, "training_step", step)


def test_a_step_that_is_no_number_is_skipped_and_told(tokens, tmp_path, monkeypatch):
    config = student_config(tokens, steps=6)
    spoilt(monkeypatch, (2, 4))
    train(config, tmp_path)
    assert curve(tmp_path, "train/skipped") == [0, 0, 1, 1, 2, 2]
    assert all(torch.isfinite(w).all() for w in load_student(tmp_path).state_dict().values())
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4] and lines[0]["norm"] == "nan"
    wanted = SentenceDataset(config.data, 0).locate(np.arange(16, 24))
    assert lines[0]["examples"] == wanted and len(wanted) == 16  # 8 sentences of 2 pairs
    assert set(wanted[0]) == {"task", "shard", "index"}


def test_a_skipped_step_moves_nothing(tokens, tmp_path, monkeypatch):
    """Spoilt after its third step, a run ends with the weights it had then."""
    monkeypatch.setattr("delvm.training.optim.warmup_cosine", lambda step, *rest: 1.0)
    train(student_config(tokens, steps=3), tmp_path / "short")
    spoilt(monkeypatch, range(3, 6))
    train(student_config(tokens, steps=6), tmp_path / "long")
    short, long = (load_student(tmp_path / name).state_dict() for name in ("short", "long"))
    assert all(torch.equal(short[key], long[key]) for key in short)


def test_a_run_of_nonsense_ends(tokens, tmp_path, monkeypatch):
    config = student_config(tokens, steps=12)
    config.trainer.max_skipped, config.trainer.save_every = 3, 2
    spoilt(monkeypatch, range(4, 12))
    with pytest.raises(UserError, match="3 steps in a row, up to step 6.*skipped.jsonl"):
        train(config, tmp_path)
    good = latest_valid_checkpoint(tmp_path)
    assert good is not None
    assert all(torch.isfinite(w).all() for w in load_student(good).state_dict().values())


def test_a_tokenizer_keeps_its_codes_through_nonsense(pictures, tmp_path, monkeypatch):
    plain = TokenizerTraining.reconstruction

    def reconstruction(self, pixels, drawn):
        loss = plain(self, pixels, drawn)
        return loss * float("nan") if self.global_step == 3 else loss

    monkeypatch.setattr(TokenizerTraining, "reconstruction", reconstruction)
    train(tokenizer_config(pictures, steps=6), tmp_path)
    assert all(torch.isfinite(w).all() for w in load_tokenizer(tmp_path).state_dict().values())
    assert max(curve(tmp_path, "train/skipped")) == 1


def test_a_full_disk_leaves_the_last_checkpoint(tokens, tmp_path, monkeypatch):
    config = random_config(tokens)
    plain = L.Trainer.save_checkpoint

    def save(self, path, *rest):
        plain(self, path, *rest)
        if self.global_step >= 6:
            os.truncate(path, 1000)  # what had room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(L.Trainer, "save_checkpoint", save)
    with pytest.raises(UserError, match="No space left.*step=000005.ckpt is intact.*resume=auto"):
        train(config, tmp_path)
    assert not list((tmp_path / "checkpoints").glob(".*"))
    assert latest_valid_checkpoint(tmp_path).name == "step=000005.ckpt"


def test_one_batch_can_be_learnt_by_heart(tokens, tmp_path):
    config = student_config(tokens, steps=120, module=StudentModule())
    config.overfit = 1
    train(config, tmp_path)
    losses = curve(tmp_path, "train/loss")
    # Inputs are random: only by heart can they be foretold.
    assert losses[0] > 2.0 and losses[-1] < 0.1


def test_what_is_logged_of_a_run(tokens, tmp_path):
    train(random_config(tokens), tmp_path)
    assert curve(tmp_path, "mixture/pose") == [1.0] * STEPS
    assert 0 < curve(tmp_path, "train/mfu")[-1] < 1
    assert curve(tmp_path, "train/memory_gib")[-1] > 0.1
    assert len(curve(tmp_path, "train/grad_norm")) == len(curve(tmp_path, "train/lr")) == STEPS


def test_an_average_is_exact_over_two_jobs(pictures, tmp_path):
    exported = []
    for name, stops in {"whole": [None], "parted": [3, None]}.items():
        for stop in stops:
            config = tokenizer_config(pictures, steps=6, average=0.5)
            config.trainer.stop_at, config.trainer.save_every = stop, 1
            config.resume = "auto"
            train(config, tmp_path / name)
        exported.append(load_tokenizer(tmp_path / name).state_dict())
    assert all(torch.equal(exported[0][key], exported[1][key]) for key in exported[0])
    config = tokenizer_config(pictures, steps=7)
    config.resume = "auto"
    with pytest.raises(UserError, match="an average of the weights, this run asks for none"):
        train(config, tmp_path / "whole")


def test_a_run_does_not_go_on_with_other_ids(tokens, tmp_path):
    train(student_config(tokens, steps=2), tmp_path / "run")
    shutil.copytree(tokens, tmp_path / "tokens")
    for file in (tmp_path / "tokens").rglob("manifest.json"):
        file.write_text(file.read_text().replace("f" * 16, "e" * 16))
    (tmp_path / "tokens" / "codebook.safetensors").unlink()
    manifest.write_codebook(tmp_path / "tokens", torch.randn(16, 8), "e" * 16)
    with pytest.raises(UserError, match="ids of tokenizer f{16}, data.path holds those of e{16}"):
        train(student_config(tmp_path / "tokens", steps=4, resume="auto"), tmp_path / "run")


def test_recomputing_changes_no_weight(tokens, tmp_path, unbroken):
    config = random_config(tokens)
    config.trainer.recompute = 1
    train(config, tmp_path)
    ended = load_student(tmp_path).state_dict()
    assert all(torch.allclose(w, ended[key], atol=1e-5) for key, w in unbroken.weights.items())


def test_links_are_moved_at_once(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
        checkpoints._link(tmp_path / "last", name)
        assert (tmp_path / "last").read_text() == name
