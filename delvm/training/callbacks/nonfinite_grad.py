"""Skips, counts and reports steps with a non-finite gradient; too many in a row end the run."""

import json
import logging
from collections import Counter, deque
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from delvm.errors import Diverged
from delvm.training.strategies import total_grad_norm

logger = logging.getLogger("delvm.training")


class SkipNonFiniteGrad(L.Callback):
    """Drops the gradients of a step if their norm is NaN or infinite, so that nothing moves.

    A module that has an attribute ``grad_guard`` gets this object there and asks
    `grad_is_finite` itself, with the norm that it clips by. For any other module the gradients are
    checked before each step of an optimizer.

    Each skipped step adds a line to ``skipped.jsonl`` in the run's directory: the step, the norm,
    and the examples of its batches where the data module can name them.

    Attributes:
        skipped: steps skipped so far.
    """

    def __init__(self, max_nonfinite_steps: int = 20) -> None:
        """
        Args:
            max_nonfinite_steps: consecutive steps with a non-finite gradient that end the run.
        """
        self.max_nonfinite_steps = max_nonfinite_steps
        self.skipped = 0
        self._module_asks = False
        self._consecutive: Counter[str] = Counter()  # optimizer -> skipped steps in a row
        self._next_index: deque[int] = deque()  # of the batches of this step
        self._trainer: L.Trainer | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._trainer = trainer
        self._module_asks = hasattr(pl_module, "grad_guard")
        if self._module_asks:
            pl_module.grad_guard = self  # type: ignore[assignment]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._next_index = deque(maxlen=trainer.accumulate_grad_batches)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if isinstance(batch, dict) and "next_index" in batch:
            self._next_index.append(batch["next_index"])

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Check the gradients of a module that does not ask."""
        if self._module_asks:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norm = total_grad_norm(parameters)
        if trainer.world_size > 1:  # the ranks may hold different parts of the gradient
            finite = trainer.strategy.reduce_boolean_decision(bool(torch.isfinite(norm)))
            norm = norm if finite else torch.full_like(norm, torch.nan)
        self.grad_is_finite(norm, pl_module, type(optimizer).__name__)

    def grad_is_finite(
        self, norm: Tensor, pl_module: L.LightningModule, optimizer_name: str = "model"
    ) -> bool:
        """Whether the step can be taken; if not, all gradients are dropped.

        Args:
            norm: of the gradients, the same on every rank.
            pl_module: the module that is trained.
            optimizer_name: what has these gradients, as a discriminator has steps of its own.

        Raises:
            Diverged: this was one too many in a row.
        """
        if bool(torch.isfinite(norm)):
            self._consecutive[optimizer_name] = 0
            return True
        drop_gradients(pl_module)
        self.skipped += 1
        self._consecutive[optimizer_name] += 1
        report = self._write_report(norm, pl_module)
        if self._consecutive[optimizer_name] >= self.max_nonfinite_steps:
            raise Diverged(
                f"the gradient of the {optimizer_name} was not finite for "
                f"{self.max_nonfinite_steps} steps in a row, up to step {pl_module.global_step}: "
                f"the checkpoints are from before, {report} names the examples; lower "
                "optimizer.lr, or set trainer.precision=32-true, and resume=auto"
            )
        return False

    def raise_if_diverged(self, trainer: L.Trainer) -> None:
        """Raise if the last steps of a run were not finite.

        Overflow in a single step is ordinary under float16, so one step counts only with a loss
        that is not finite either.

        Raises:
            Diverged: names how many steps.
        """
        last = max(self._consecutive.values(), default=0)
        loss = trainer.callback_metrics.get("train/loss")
        if last > 1 or (last == 1 and loss is not None and not bool(torch.isfinite(loss))):
            raise Diverged(
                f"the gradient of the last {last} steps, up to step {trainer.global_step}, was not "
                "finite: no weights are exported; lower optimizer.lr, or set "
                "trainer.precision=32-true, and start again with overwrite=true"
            )

    def _write_report(self, norm: Tensor, pl_module: L.LightningModule) -> Path:
        trainer = self._trainer or pl_module.trainer
        report = Path(trainer.default_root_dir) / "skipped.jsonl"
        step = pl_module.global_step
        line = {"step": step, "rank": pl_module.global_rank, "norm": str(float(norm))}
        if (examples := self._examples(trainer)) is not None:
            line["examples"] = examples
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            report.parent.mkdir(parents=True, exist_ok=True)
            with report.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        if pl_module.global_rank == 0:
            logger.warning("step %d: skipped, gradient norm %s", step, line["norm"])
        return report

    def _examples(self, trainer: L.Trainer) -> list[dict[str, Any]] | None:
        """The examples of this step's batches; None if the data module cannot name them."""
        data = getattr(trainer, "datamodule", None)
        locate = getattr(getattr(data, "train", None), "locate", None)
        size = getattr(getattr(data, "config", None), "batch_size", None)
        if locate is None or size is None or not self._next_index:
            return None
        return [each for end in self._next_index for each in locate(np.arange(end - size, end))]


def drop_gradients(module: nn.Module) -> None:
    """Drop all gradients, so that an optimizer leaves weights and moments as they are."""
    for parameter in module.parameters():
        parameter.grad = None
