"""The directory of a run is held by one process, and only what runs write is replaced."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from delvm.errors import Diverged, UserError
from delvm.training.run.output_dir import lock_output_dir
from tests.training.runs import curve, student_config, train


def hold(folder: Path, ready) -> None:
    with lock_output_dir(folder):
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds ``tmp_path/run``."""
    context = multiprocessing.get_context("forkserver")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path / "run", ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


@pytest.mark.slow
def test_a_second_run_is_refused_until_the_first_has_died(holder, tmp_path):
    with (
        pytest.raises(UserError, match=f"in use by process {holder.pid} on .*set output_dir=PATH"),
        lock_output_dir(tmp_path / "run"),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with lock_output_dir(tmp_path / "run"):  # what the dead process left is not in the way
        assert str(os.getpid()) in (tmp_path / "run" / ".lock").read_text()
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.slow
def test_train_refuses_a_directory_in_use(holder, tokens, tmp_path):
    from delvm.commands import train as verb

    cfg = student_config(tokens, 2)
    cfg.output_dir = str(tmp_path / "run")
    with pytest.raises(UserError, match="in use by"):
        verb.train(cfg)
    assert [each.name for each in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "file", ["student/main.py", "student/checkpoints/step=001000.ckpt", "student/config.json"]
)
@pytest.mark.slow
def test_files_of_others_are_not_replaced_by_exported_weights(tokens, tmp_path, file, overwrite):
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("mine")
    with pytest.raises(UserError, match="not exported weights.*: set output_dir=PATH"):
        train(student_config(tokens, 2, f"overwrite={overwrite}".lower()), tmp_path)
    assert (tmp_path / file).read_text() == "mine"


@pytest.mark.slow
def test_exported_weights_are_replaced_only_when_asked(tokens, tmp_path):
    train(student_config(tokens, 2), tmp_path / "run")
    before = (tmp_path / "run/student/model.safetensors").read_bytes()
    (tmp_path / "run/student").rename(tmp_path / "student")  # weights alone, without their run
    with pytest.raises(UserError, match="holds weights already.*overwrite=true"):
        train(student_config(tokens, 2, "seed=1"), tmp_path)
    assert (tmp_path / "student/model.safetensors").read_bytes() == before
    train(student_config(tokens, 2, "seed=1", "overwrite=true"), tmp_path)
    assert (tmp_path / "student/model.safetensors").read_bytes() != before


def test_overwrite_removes_checkpoints_of_runs_alone(tokens, tmp_path):
    train(student_config(tokens, 2), tmp_path)
    mine = tmp_path / "checkpoints" / "notes.txt"
    mine.write_text("mine")
    (tmp_path / "checkpoints" / "step=000009.ckpt").write_bytes(b"of a longer run")
    train(student_config(tokens, 2, "overwrite=true"), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last.ckpt", "notes.txt", "step=000002.ckpt"]


@pytest.mark.slow
def test_metrics_of_others_are_not_replaced(tokens, tmp_path):
    (tmp_path / "metrics.csv").write_text("date,price\n")
    with pytest.raises(UserError, match=r"metrics.csv is not the metrics of a run"):
        train(student_config(tokens, 2, "overwrite=true"), tmp_path)


def test_a_run_whose_last_steps_are_not_finite_fails(tokens, tmp_path):
    # Shorter than the limit of steps that are skipped in a row.
    with pytest.raises(Diverged, match="the last 3 steps.*no weights are exported"):
        train(student_config(tokens, 4, "optimizer.lr=1e30"), tmp_path)
    assert not (tmp_path / "student").exists()


def test_a_checkpoint_at_a_validation_step_is_written_after_it(tokens, tmp_path, monkeypatch):
    from delvm.training.callbacks.checkpoint import AtomicCheckpoint

    rows = {}
    original = AtomicCheckpoint.save

    def save(self, trainer, overwrite=False):
        original(self, trainer, overwrite)
        rows.setdefault(trainer.global_step, len(curve(tmp_path, "val/loss")))

    monkeypatch.setattr(AtomicCheckpoint, "save", save)
    overrides = "trainer.val_check_interval=4", "callbacks.checkpoint.every_n_train_steps=2"
    train(student_config(tokens, 8, *overrides), tmp_path)
    assert rows == {2: 0, 4: 1, 6: 1, 8: 2}  # step -> validations that its checkpoint includes
