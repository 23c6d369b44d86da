"""The dynamic loss scale of float16 training (``trainer.precision=16-mixed``)."""

from typing import Any

import lightning as L
import torch
from torch.amp.grad_scaler import GradScaler


class HysteresisGradScaler(GradScaler):
    """`torch.amp.GradScaler` that tolerates single overflows before it lowers the scale.

    The rule is that of InternLM and of Megatron: overflows are counted since the scale last grew,
    and from the ``hysteresis``-th on, each one lowers it. With 1 this is torch's own rule.
    """

    def __init__(self, *args: Any, hysteresis: int = 1, **kwargs: Any) -> None:
        """
        Args:
            args, kwargs: of `torch.amp.GradScaler`.
            hysteresis: 1 or more.
        """
        super().__init__(*args, **kwargs)
        self.hysteresis = hysteresis
        self.num_overflows = 0  # since the scale last grew

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        states: Any = self._per_optimizer_states
        found = [v for s in states.values() for v in s["found_inf_per_device"].values()]
        overflow = any(float(each) for each in found)
        self.num_overflows += overflow
        tolerated = overflow and self.num_overflows < self.hysteresis
        factor = self._backoff_factor
        before = self.get_scale()
        try:
            self._backoff_factor = 1.0 if tolerated else factor
            super().update(new_scale)
        finally:
            self._backoff_factor = factor
        if self.get_scale() > before:
            self.num_overflows = 0

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"num_overflows": self.num_overflows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume from the state of this scaler, or of torch's."""
        super().load_state_dict(state_dict)
        self.num_overflows = state_dict.get("num_overflows", 0)


class LossScale(L.Callback):
    """Sets how the loss is scaled in float16; in any other precision it does nothing.

    The defaults are torch's. DeLVM's training has ``growth_interval=1000 hysteresis=2``.
    """

    def __init__(
        self,
        init_scale: float = 2.0**16,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
        growth_interval: int = 2000,
        hysteresis: int = 1,
    ) -> None:
        """
        Args:
            init_scale: of the first step, above 0; a resumed run has its own.
            growth_factor: above 1; the scale is multiplied by it after ``growth_interval`` finite
                steps in a row.
            backoff_factor: in (0, 1); the scale is multiplied by it at an overflow.
            growth_interval: 1 or more.
            hysteresis: overflows since the scale last grew after which each one lowers it.
        """
        self.init_scale, self.growth_interval = init_scale, growth_interval
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.hysteresis = hysteresis

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = [
            f"{name}={value} is below 1: set it to 1 or more"
            for name in ("growth_interval", "hysteresis")
            if (value := getattr(self, name)) < 1
        ]
        if self.init_scale <= 0:
            errors.append(f"init_scale={self.init_scale} is not above 0: set it to 65536")
        if self.growth_factor <= 1:
            errors.append(f"growth_factor={self.growth_factor} is not above 1: set it to 2.0")
        if not 0 < self.backoff_factor < 1:
            errors.append(f"backoff_factor={self.backoff_factor} is not in (0, 1): set it to 0.5")
        return errors

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        precision: Any = trainer.precision_plugin
        # Of this type alone: the scaler of sharded gradients (FSDP) is another class.
        if type(getattr(precision, "scaler", None)) is not GradScaler:
            return
        precision.scaler = HysteresisGradScaler(
            device=precision.device,
            init_scale=self.init_scale,
            growth_factor=self.growth_factor,
            backoff_factor=self.backoff_factor,
            growth_interval=self.growth_interval,
            hysteresis=self.hysteresis,
        )
