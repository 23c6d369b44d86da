"""Ends a job before its run is complete; another job resumes it."""

from typing import Any

import lightning as L


class StopAtStep(L.Callback):
    """Ends training after a step; the schedules keep the length of the complete run."""

    def __init__(self, step: int | None = None) -> None:
        """
        Args:
            step: last step of this job, counted from the start of the run; None = no limit.
        """
        self.step = step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.step is not None and trainer.global_step >= self.step:
            trainer.should_stop = True
