"""Callbacks of a training run: progress in one line, and what is kept of it."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from delvm.progress import Progress
from delvm.training.data import StreamData


class TrainingProgress(L.Callback):
    """Steps done, rate, time left and the latest loss; also logs samples and tokens a second."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.bar: Progress | None = None
        self.samples = self.tokens = 0
        self.since = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:  # one of all the processes tells
            total = int(trainer.estimated_stepping_batches)
            self.bar = Progress(total, f"train {self.what}", "steps")
            self.bar.skip(trainer.global_step)
        self.since = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.samples += len(batch["ids"] if "ids" in batch else batch["pixels"])
        self.tokens += batch["ids"].numel() if "ids" in batch else 0
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            spent = max(time.monotonic() - self.since, 1e-9)
            ranks = trainer.world_size  # each does as much
            rates = {"train/samples_per_s": ranks * self.samples / spent}
            if self.tokens:
                rates["train/tokens_per_s"] = ranks * self.tokens / spent
            module.log_dict(rates)
            self.samples = self.tokens = 0
            self.since = time.monotonic()
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.done, note=self.note(trainer))

    @staticmethod
    def note(trainer: L.Trainer) -> str:
        """The latest training and validation loss."""
        latest = trainer.callback_metrics
        shown = {"loss": "train/loss", "val": "val/loss", "psnr": "val/psnr"}
        return "  ".join(f"{k} {latest[v]:.3f}" for k, v in shown.items() if v in latest)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()


class TakeBatch(L.Callback):
    """Tells the data what has been trained on, which is where a resumed run goes on.

    Listed before whatever writes checkpoints.
    """

    def __init__(self, data: StreamData) -> None:
        self.data = data

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.data.take(batch)


class CarryModel(L.Callback):
    """Puts into each checkpoint what is needed to load its model without the run's config."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.description = description

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["delvm"] = self.description


class SaveLast(L.Callback):
    """Writes the checkpoint that the run can go on from: at each validation, and at the end.

    (``ModelCheckpoint(save_last=True)`` writes one only when the run has become better.) Listed
    before a moving average of the weights, which takes their place at the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.path)


class StopAt(L.Callback):
    """Ends a job at a step of a longer run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.step


class LearningRate(L.Callback):
    """Logs the learning rate of the first parameter group."""

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int
    ) -> None:
        module.log("train/lr", torch.tensor(trainer.optimizers[0].param_groups[0]["lr"]))
