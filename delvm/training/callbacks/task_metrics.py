"""Logs how well a student predicts the training batches of each task, as validation does."""

import math
from typing import Any

import lightning as L
import torch

from delvm.training.modes import evaluation_mode


class TaskMetrics(L.Callback):
    """Logs ``train/TASK/loss``, ``acc`` and ``ppl`` of a batch before the student learns from it.

    The batch is read once more, without dropout and token noise, which makes the values comparable
    with those of validation; once in ``every_n_train_steps`` that takes little time. A task that is
    not in the batch is not logged. Nothing is done for other modules, or for data that does not
    name its tasks.
    """

    def __init__(self, every_n_train_steps: int = 100) -> None:
        """
        Args:
            every_n_train_steps: steps between two measurements.

        Raises:
            ValueError: it is below 1.
        """
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps={every_n_train_steps} is below 1")
        self.every_n_train_steps = every_n_train_steps
        self._step = -1

    @torch.no_grad()
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        tasks = getattr(getattr(getattr(trainer, "datamodule", None), "train", None), "tasks", None)
        due = step % self.every_n_train_steps == 0 and step != self._step
        module: Any = pl_module  # a `StudentModule`, or any that can do this
        if not hasattr(module, "prediction_sums") or tasks is None or not due:
            return
        self._step = step  # of several batches of a step, the first
        with evaluation_mode(module.model), trainer.precision_plugin.val_step_context():
            sums = module.prediction_sums(batch, len(tasks))
        if trainer.world_size > 1:
            sums = trainer.strategy.reduce(sums.to(module.device), reduce_op="sum")
        metrics: dict[str, float] = {}
        for task, (nll, correct, count, *_) in zip(tasks, sums.tolist(), strict=True):
            if count:
                loss = nll / count
                ppl = math.exp(min(loss, 700.0))
                values = {"loss": loss, "acc": correct / count, "ppl": ppl}
                metrics |= {f"train/{task}/{name}": value for name, value in values.items()}
        # Not by the module's log, which would repeat the values in the rows of later steps.
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
