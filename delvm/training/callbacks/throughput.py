"""Callbacks of a training run: progress in one line, and what is kept of it."""

import time
from typing import Any

import lightning as L
import torch

from delvm.models.precision import compute_dtype, measure_peak_flops, peak_memory_bytes
from delvm.models.transformer import Transformer
from delvm.progress import Progress
from delvm.training.datamodules import StreamData


class ThroughputMonitor(L.Callback):
    """Steps done, rate, time left and the latest loss in a line; rates and shares in the log."""

    def __init__(self, what: str, data: StreamData) -> None:
        self.what, self.data = what, data
        self.bar: Progress | None = None
        self.peak = 0.0  # FLOP/s
        self.samples = self.tokens = 0
        self.since = 0.0

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:  # one of all the processes tells
            total = int(trainer.estimated_stepping_batches)
            self.bar = Progress(total, f"train {self.what}", "steps")
            self.bar.skip(trainer.global_step)
        if isinstance(module.model, Transformer):
            self.peak = measure_peak_flops(module.device, compute_dtype(trainer.precision))
        self.since = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.samples += len(batch["input_ids"] if "input_ids" in batch else batch["pixels"])
        self.tokens += batch["input_ids"].numel() if "input_ids" in batch else 0
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            spent = max(time.monotonic() - self.since, 1e-9)
            length = batch["input_ids"].shape[1] if "input_ids" in batch else 0
            module.log_dict(self.rates(module, spent, length, trainer.world_size))
            self.samples = self.tokens = 0
            self.since = time.monotonic()
        if self.bar is not None:
            self.bar.update(trainer.global_step - self.bar.done, note=self.note(trainer))

    def rates(
        self, module: L.LightningModule, spent: float, length: int, ranks: int
    ) -> dict[str, float]:
        """What is logged of the last seconds: rates of all ranks, which do as much each, use of
        this rank's device, its memory, and the mixture so far."""
        found = {
            "train/samples_per_s": ranks * self.samples / spent,
            "train/memory_gib": peak_memory_bytes(module.device) / 2**30,
        }
        if isinstance(module.model, Transformer):
            rate = self.tokens / spent
            found["train/tokens_per_s"] = ranks * rate
            found["train/mfu"] = rate * module.model.flops_per_token(length) / self.peak
        mixture = self.data.train.mixture(self.data.position)
        return found | {f"mixture/{task}": share for task, share in mixture.items()}

    @staticmethod
    def note(trainer: L.Trainer) -> str:
        """The latest training and validation loss."""
        latest = trainer.callback_metrics
        shown = {"loss": "train/loss", "val": "val/loss", "psnr": "val/psnr"}
        return "  ".join(f"{k} {latest[v]:.3f}" for k, v in shown.items() if v in latest)

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()


class LearningRate(L.Callback):
    """Logs the learning rate of the first parameter group."""

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int
    ) -> None:
        module.log("train/lr", torch.tensor(trainer.optimizers[0].param_groups[0]["lr"]))
