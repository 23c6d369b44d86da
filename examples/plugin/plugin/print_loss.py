"""A callback: prints the loss."""

from typing import Any

import lightning as L


class PrintLoss(L.Callback):
    """Prints the training loss every few steps."""

    def __init__(self, every: int = 1) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        if trainer.global_step % self.every == 0:
            print(f"step {trainer.global_step}: {trainer.callback_metrics['train/loss']:.3f}")
