"""Progress of training in one line on stderr."""

import re
from typing import Any

import lightning as L

from delvm.progress import Progress

# What the line ends with, if it was logged: its label -> the metric.
_METRICS = {"loss": "train/loss", "val": "val/loss", "psnr": "val/psnr"}


class ProgressLine(L.Callback):
    """Steps done, their rate, the time left, and the latest losses; rank zero only."""

    def __init__(self, name: str | None = None) -> None:
        """
        Args:
            name: what is trained; None = the module's class, StudentModule giving "student".
        """
        self.name = name
        self._bar: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        name = self.name or _in_words(type(pl_module).__name__.removesuffix("Module"))
        steps = trainer.estimated_stepping_batches  # infinite for a run that only a signal ends
        total = int(steps) if steps != float("inf") else 0
        self._bar = Progress(total, f"train {name}", "steps")
        self._bar.skip(trainer.global_step)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._bar is not None:
            self._bar.update(trainer.global_step - self._bar.done, note=self._note(trainer))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.close()

    @staticmethod
    def _note(trainer: L.Trainer) -> str:
        latest = trainer.callback_metrics
        return "  ".join(f"{k} {latest[v]:.3f}" for k, v in _METRICS.items() if v in latest)


def _in_words(name: str) -> str:
    """The name of a class in lower case words: OfflineDistillation -> offline distillation."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
