"""Times the parts of a training step: waiting for data, forward, backward, optimizer."""

import time
from collections import defaultdict
from typing import Any

import lightning as L
import torch
from torch import Tensor


class StepTimer(L.Callback):
    """Logs the mean seconds per step of each part, every ``log_every_n_steps``.

    ``time/data`` is what the loop waited for batches, ``time/forward`` the module's training step,
    ``time/backward`` the gradients, and ``time/optimizer`` clipping, the optimizer and the rest.
    Modules with manual optimization do several of these in their training step, which is then all
    ``time/forward``. A GPU computes after the call returns: with ``synchronize`` each part waits
    for it, which costs a little speed and makes the parts true.
    """

    def __init__(self, synchronize: bool = False) -> None:
        """
        Args:
            synchronize: whether to wait for the GPU at the end of each part.
        """
        self.synchronize = synchronize
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last: float | None = None
        self._steps = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seconds.clear()
        self._steps, self._last = trainer.global_step, time.monotonic()

    def _end(self, part: str, device: torch.device | None = None) -> None:
        """Count the time since the last end to a part."""
        if self.synchronize and device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.monotonic()
        if self._last is not None:
            self._seconds[part] += now - self._last
        self._last = now

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._end("data")

    def on_before_backward(
        self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor
    ) -> None:
        self._end("forward", pl_module.device)

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end("backward", pl_module.device)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._end("optimizer" if pl_module.automatic_optimization else "forward", pl_module.device)
        step = trainer.global_step
        if step % trainer.log_every_n_steps == 0 and step > self._steps:  # type: ignore[attr-defined]
            count = step - self._steps
            pl_module.log_dict({f"time/{part}": s / count for part, s in self._seconds.items()})
            self._seconds.clear()
            self._steps = step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = time.monotonic()  # it is not a part of a step
