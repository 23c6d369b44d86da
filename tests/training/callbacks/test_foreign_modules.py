"""The callbacks with a module and data that know nothing of this project."""

import json
import os

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from delvm.errors import Diverged
from delvm.training import callbacks
from delvm.training.callbacks import AtomicCheckpoint, SkipNonFiniteGrad
from delvm.training.callbacks.checkpoint import list_checkpoints
from delvm.training.checkpoint_io import AtomicCheckpointIO


class Regression(L.LightningModule):
    """A linear model; the loss of the steps in ``nan_steps`` is NaN."""

    def __init__(self, nan_steps=(), manual=False):
        super().__init__()
        self.net, self.nan_steps = nn.Linear(4, 1), nan_steps
        self.automatic_optimization = not manual

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = (self.net(x) - y).square().mean()
        if batch_idx in self.nan_steps:
            loss = loss * float("nan")
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val/loss", (self.net(x) - y).square().mean())
        self.log("val/negative", -(self.net(x) - y).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=4)


def all_callbacks():
    kinds = [name for name in callbacks.__all__ if name != "AtomicCheckpoint"]
    return [getattr(callbacks, name)() for name in kinds]


def trainer(tmp_path, more=(), logger=True, steps=8, **options):
    return L.Trainer(
        default_root_dir=tmp_path, max_steps=steps, accelerator="cpu",
        logger=CSVLogger(tmp_path, name="", version="") if logger else False,
        callbacks=[*all_callbacks(), *more], enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, plugins=[AtomicCheckpointIO()],
        **options,
    )  # fmt: skip


def train(module, tmp_path, more=(), **options):
    run = trainer(tmp_path, more, **options)
    run.fit(module, loader(), loader())
    return run


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("logger", [False, True])
@pytest.mark.slow
def test_all_callbacks_tolerate_a_foreign_module(tmp_path, manual, logger):
    checkpoint = AtomicCheckpoint(every_n_train_steps=3)
    run = train(Regression(manual=manual), tmp_path, [checkpoint], logger=logger)
    assert run.global_step == 8
    assert run.checkpoint_callback is checkpoint
    steps = [path.name for path in list_checkpoints(tmp_path)]
    assert steps == ["step=000008.ckpt", "step=000006.ckpt"]
    assert os.readlink(tmp_path / "checkpoints" / "best.ckpt") == "step=000008.ckpt"
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert "config" not in saved["delvm"] and saved["global_step"] == 8
    assert not (tmp_path / "images").exists()
    if logger:
        head = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
        assert {"train/samples_per_s", "train/memory_gib", "lr-SGD"} <= set(head)
        assert not {"train/tokens_per_s", "train/mfu"} & set(head)


@pytest.mark.slow
def test_foreign_run_resumes_from_its_checkpoint(tmp_path):
    L.seed_everything(0, verbose=False)
    module = Regression()
    train(module, tmp_path / "one", [AtomicCheckpoint()], steps=16)
    L.seed_everything(0, verbose=False)
    train(Regression(), tmp_path / "two", [AtomicCheckpoint()], steps=8)  # one epoch
    resumed = Regression()
    run = trainer(tmp_path / "two", [AtomicCheckpoint()], steps=16)
    last = tmp_path / "two" / "checkpoints" / "last.ckpt"
    run.fit(resumed, loader(), loader(), ckpt_path=last, weights_only=True)
    assert run.global_step == 16
    assert torch.equal(resumed.net.weight, module.net.weight)


def test_fast_dev_run_writes_nothing(tmp_path):
    train(Regression(nan_steps=[0]), tmp_path, [AtomicCheckpoint()], fast_dev_run=2)
    assert not any(tmp_path.iterdir())


def test_sanity_check_and_validate_save_nothing(tmp_path):
    checkpoint = AtomicCheckpoint()
    run = train(Regression(), tmp_path, [checkpoint], val_check_interval=2, steps=2)
    saved = list_checkpoints(tmp_path)
    run.validate(Regression(), loader(), verbose=False)
    assert list_checkpoints(tmp_path) == saved and checkpoint.best[1] == 2


@pytest.mark.parametrize("manual", [False, True])
def test_nonfinite_gradient_of_a_foreign_module_is_skipped(tmp_path, manual, caplog):
    module = Regression(nan_steps=[1, 3], manual=manual)
    run = train(module, tmp_path, [AtomicCheckpoint()])
    guard = next(each for each in run.callbacks if isinstance(each, SkipNonFiniteGrad))
    assert guard.skipped == 2 and torch.isfinite(module.net.weight).all()
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3]
    assert all(line["norm"] == "nan" and "examples" not in line for line in lines)


def test_nonfinite_gradients_end_a_foreign_run(tmp_path):
    run = trainer(tmp_path)
    guard = next(each for each in run.callbacks if isinstance(each, SkipNonFiniteGrad))
    guard.max_nonfinite_steps = 3
    with pytest.raises(Diverged, match="gradient of the SGD was not finite for 3 steps in a row"):
        run.fit(Regression(nan_steps=range(2, 8)), loader(), loader())


@pytest.mark.slow
def test_best_checkpoint_follows_monitor_and_mode(tmp_path):
    checkpoint = AtomicCheckpoint(monitor="val/negative", mode="max", keep_latest_k=1)
    train(Regression(), tmp_path, [checkpoint], val_check_interval=2)
    assert checkpoint.best[1] == 8 and checkpoint.best_model_score == checkpoint.best[0] < 0
    assert checkpoint.best_model_path == str(tmp_path / "checkpoints" / "best.ckpt")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step=000008.ckpt"]


@pytest.mark.parametrize(
    "arguments", [{"mode": "lowest"}, {"keep_latest_k": 0}, {"every_n_train_steps": 0}]
)
def test_checkpoint_arguments_are_checked(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        AtomicCheckpoint(**arguments)
