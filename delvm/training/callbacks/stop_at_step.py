"""Ends a job before its run is complete."""

from typing import Any

import lightning as L


class StopAtStep(L.Callback):
    """Ends a job at a step of a longer run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.step
