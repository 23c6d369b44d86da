"""Skips, counts and reports steps with a non-finite gradient; too many in a row end the run."""

import json
from collections import Counter, deque
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from delvm.errors import Diverged
from delvm.training.datamodules import StreamData


class SkipNonFiniteGrad(L.Callback):
    """Watches the norm of gradients for a module, which asks `grad_is_finite` at each step.

    Attributes:
        skipped: steps so far.
    """

    def __init__(self, data: StreamData, report: Path, limit: int) -> None:
        """Say what to name, and when to give up.

        Args:
            data: names the examples of a batch.
            report: file to which a line is added for each step: its examples.
            limit: steps in a row after which the run ends.
        """
        self.data, self.report, self.limit = data, report, limit
        self.skipped = 0
        self._consecutive: Counter[str] = Counter()
        self._seen: deque[int] = deque()  # of each batch of this step, the number after its last

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped = state["skipped"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._seen = deque(maxlen=trainer.accumulate_grad_batches)

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int
    ) -> None:
        self._seen.append(batch["next_index"])

    def grad_is_finite(
        self, norm: Tensor, module: L.LightningModule, optimizer_name: str = "model"
    ) -> bool:
        """Whether a step may be taken; if not, the gradients are dropped, so that nothing moves.

        Args:
            norm: of the gradients.
            module: that is trained.
            optimizer_name: what has these gradients; an adversary has steps of its own.

        Raises:
            Diverged: this has gone on for too long.
        """
        if bool(torch.isfinite(norm)):
            self._consecutive[optimizer_name] = 0
            return True
        drop_gradients(module)
        self.skipped += 1
        self._consecutive[optimizer_name] += 1
        step = module.global_step
        size = self.data.config.batch_size
        examples = [
            place
            for until in self._seen
            for place in self.data.train.locate(np.arange(until - size, until))
        ]
        line = {"step": step, "rank": module.global_rank, "norm": str(float(norm))}
        with self.report.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line | {"examples": examples}) + "\n")
        if self._consecutive[optimizer_name] >= self.limit:
            raise Diverged(
                f"the gradient of the {optimizer_name} was not finite for {self.limit} steps in a "
                f"row, up to step {step}: the checkpoints are from before, {self.report} names the "
                "examples; lower optim.lr, or set trainer.precision=32-true, and resume=auto"
            )
        return False


def drop_gradients(module: nn.Module) -> None:
    """Forget the gradients, so that an optimizer leaves weights and moments as they are."""
    for parameter in module.parameters():
        parameter.grad = None
