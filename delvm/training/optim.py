"""Optimizers and learning-rate schedules, as factories that a module calls with its parameters.

An optimizer factory is anything callable with parameter groups, such as
``partial(torch.optim.AdamW, lr=1e-3)``; a scheduler factory is anything callable with the
optimizer. Hydra builds both from a YAML with ``_partial_: true``.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import partial
from typing import Any

import lightning as L
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau

from delvm.errors import UserError

OptimizerFactory = Callable[..., Optimizer]
SchedulerFactory = Callable[..., Any]


class WeightDecayOn(Enum):
    """What weight decay shrinks: weight matrices, or every parameter, as in DeLVM's training."""

    matrices = "matrices"
    all = "all"


def optimizer_errors(
    lr: float, weight_decay: float, betas: Sequence[float] | None = None
) -> list[str]:
    """Errors of an optimizer's settings, one line each; None is an optimizer without betas."""
    errors = []
    if not lr > 0:  # true of NaN too
        errors.append(f"lr={lr} is not above 0: set it to 1.5e-4")
    if not weight_decay >= 0:
        errors.append(f"weight_decay={weight_decay} is below 0: set it to 0 or more")
    if betas is not None and (len(betas) != 2 or not all(0 <= beta < 1 for beta in betas)):
        errors.append(f"betas={betas} are not two numbers in [0, 1): set [0.9,0.95]")
    return errors


def warmup_cosine(step: int, total_steps: int, warmup_ratio: float, min_lr_ratio: float) -> float:
    """The learning rate at ``step`` of ``total_steps``, as a fraction of the highest one."""
    warmup_steps = max(1, round(warmup_ratio * total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


class WarmupCosine(LambdaLR):
    """Linear warmup, then half a cosine down to a floor; advanced once per step.

    Args:
        optimizer: its learning rates are the highest ones.
        total_steps: of the run.
        warmup_ratio: fraction of the schedule's steps spent on warmup, in [0, 1).
        min_lr_ratio: last learning rate as a fraction of the highest one, in [0, 1].
        decay_steps: steps of the schedule, warmup included; None = ``total_steps``. A longer run
            stays at the floor, a shorter one ends above it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        warmup_ratio: float = 0.0056,
        min_lr_ratio: float = 0.1,
        decay_steps: int | None = None,
    ) -> None:
        self.warmup_ratio, self.min_lr_ratio = warmup_ratio, min_lr_ratio
        self.decay_steps = decay_steps
        steps = decay_steps or total_steps
        super().__init__(
            optimizer, lambda step: warmup_cosine(step, steps, warmup_ratio, min_lr_ratio)
        )

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = []
        if not 0 <= self.warmup_ratio < 1:
            errors.append(
                f"warmup_ratio={self.warmup_ratio} is a fraction of the steps: set it from 0 to 1"
            )
        if not 0 <= self.min_lr_ratio <= 1:
            errors.append(f"min_lr_ratio={self.min_lr_ratio} is a fraction: set it from 0 to 1")
        if self.decay_steps is not None and self.decay_steps < 1:
            errors.append(f"decay_steps={self.decay_steps} is below 1: set it to 1 or null")
        return errors


def build_optimizer(
    factory: OptimizerFactory, net: nn.Module, no_decay: Iterable[Tensor] = ()
) -> Optimizer:
    """The optimizer of a network's trained parameters.

    Where the factory has a ``weight_decay``, its ``decay``, a `WeightDecayOn` that is not passed
    on to the optimizer, selects what it applies to. With ``matrices`` norms, biases and
    ``no_decay`` are a group without, and a network may group its parameters itself
    (``parameter_groups(weight_decay)``). With ``all`` every parameter decays.
    """
    factory, decay_on = _take_decay(factory)
    keywords = getattr(factory, "keywords", {})
    if "weight_decay" not in keywords or decay_on is WeightDecayOn.all:
        return factory([p for p in net.parameters() if p.requires_grad])
    if (groups := getattr(net, "parameter_groups", None)) is not None:
        return factory(list(groups(keywords["weight_decay"])))
    excluded = {id(p) for p in no_decay}
    trained = [p for p in net.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.ndim >= 2 and id(p) not in excluded]
    rest = [p for p in trained if p.ndim < 2 or id(p) in excluded]
    return factory(
        [
            {"params": matrices, "weight_decay": keywords["weight_decay"]},
            {"params": rest, "weight_decay": 0.0},
        ]
    )


def _take_decay(factory: OptimizerFactory) -> tuple[OptimizerFactory, WeightDecayOn]:
    """A factory without its ``decay``, and the value of that."""
    keywords = dict(getattr(factory, "keywords", {}))
    if not isinstance(factory, partial) or "decay" not in keywords:
        return factory, WeightDecayOn.matrices
    decay = keywords.pop("decay")
    decay_on = decay if isinstance(decay, WeightDecayOn) else WeightDecayOn(decay)
    return partial(factory.func, *factory.args, **keywords), decay_on


def build_scheduler(
    factory: SchedulerFactory | None, optimizer: Optimizer, total_steps: int
) -> Any | None:
    """The schedule of an optimizer; ``total_steps`` is passed to factories that take it."""
    if not factory:  # Hydra passes scheduler=none as an empty dictionary
        return None
    given = getattr(factory, "keywords", {})
    takes_steps = "total_steps" in inspect.signature(factory).parameters
    if takes_steps and given.get("total_steps") is None:
        return factory(optimizer, total_steps=total_steps)
    return factory(optimizer)


def scheduler_config(scheduler: Any) -> LRSchedulerConfigType:
    """A schedule as Lightning takes it: advanced once per step, or by the validation loss."""
    config: dict[str, Any] = {"scheduler": scheduler, "interval": "step", "name": "train/lr"}
    if isinstance(scheduler, ReduceLROnPlateau):
        config |= {"monitor": "val/loss", "strict": False}
    return config  # type: ignore[return-value]


def refuse_plateau(scheduler: Any) -> None:
    """Refuse a schedule that follows the validation loss where steps are taken by hand.

    Raises:
        UserError: it is one.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        raise UserError(
            "scheduler ReduceLROnPlateau follows the validation loss, which module=tokenizer does "
            "not pass on: set scheduler=warmup_cosine"
        )


class ScheduleFreeMode(L.Callback):
    """Switches optimizers that keep two sets of weights between training and evaluation.

    Schedule-free optimizers (Defazio et al. 2024, arXiv 2405.15682) have methods ``train`` and
    ``eval`` for it; with any other optimizer this does nothing.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _set_mode(trainer, "train")

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _set_mode(trainer, "eval")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _set_mode(trainer, "train")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        _set_mode(trainer, "eval")


def _set_mode(trainer: L.Trainer, mode: str) -> None:
    for optimizer in trainer.optimizers:
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        if callable(switch := getattr(optimizer, mode, None)):
            switch()
