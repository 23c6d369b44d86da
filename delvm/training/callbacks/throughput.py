"""Logs how fast a run is, how much of the device it uses, and which tasks it has seen."""

import time
from typing import Any

import lightning as L
from torch import Tensor
from torch.utils._pytree import tree_iter

from delvm.models.precision import compute_dtype, measure_peak_flops, peak_memory_bytes


class ThroughputMonitor(L.Callback):
    """Logs rates, memory and the mixture of tasks every ``log_every_n_steps``.

    ``train/tokens`` counts the tokens of all ranks since the first step, also of earlier jobs.
    ``train/samples_per_s`` and ``train/tokens_per_s`` count all ranks, each of which does the same
    amount of work. ``train/memory_gib`` is this rank's device; ``train/mfu`` is the model FLOP
    utilization, for models with ``flops_per_token(length)``. ``mixture/TASK`` is the fraction of
    the training data so far, ``train/padding`` that of packed rows which is padding. What a batch,
    a model or a data module does not have is left out.
    """

    def __init__(self) -> None:
        self._peak_flops: float | None = None  # FLOP/s; None = the model does not count its FLOPs
        self._samples = self._tokens = 0
        self._start = 0.0
        self.total_tokens = 0

    def state_dict(self) -> dict[str, Any]:
        return {"total_tokens": self.total_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.total_tokens = state_dict.get("total_tokens", 0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if hasattr(_model(pl_module), "flops_per_token"):
            self._peak_flops = measure_peak_flops(
                pl_module.device, compute_dtype(trainer.precision)
            )
        self._samples = self._tokens = 0
        self._start = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        tokens = _input_ids(batch)
        self._samples += _batch_size(batch)
        count = 0 if tokens is None else tokens.numel()
        self._tokens += count
        self.total_tokens += count * trainer.world_size
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            seconds = max(time.monotonic() - self._start, 1e-9)
            length = 0 if tokens is None else tokens.shape[1]
            pl_module.log_dict(self.metrics(trainer, pl_module, seconds, length))
            self._samples = self._tokens = 0
            self._start = time.monotonic()

    def metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule, seconds: float, length: int
    ) -> dict[str, float]:
        """The metrics of the last seconds, whose sentences had ``length`` tokens."""
        ranks = trainer.world_size
        found = {"train/memory_gib": peak_memory_bytes(pl_module.device) / 2**30}
        if self._samples:
            found["train/samples_per_s"] = ranks * self._samples / seconds
        if self._tokens:
            rate = self._tokens / seconds
            found["train/tokens"] = float(self.total_tokens)
            found["train/tokens_per_s"] = ranks * rate
            if self._peak_flops is not None:
                flops = _model(pl_module).flops_per_token(length)
                found["train/mfu"] = rate * flops / self._peak_flops
        train = getattr(getattr(trainer, "datamodule", None), "train", None)
        if (padding := getattr(train, "padding", None)) is not None:
            found["train/padding"] = padding
        return found | {f"mixture/{task}": part for task, part in _mixture(trainer).items()}


def _model(pl_module: L.LightningModule) -> Any:
    return getattr(pl_module, "model", None)


def _input_ids(batch: Any) -> Tensor | None:
    """The tokens (B, T) of a batch of sentences."""
    found = batch.get("input_ids") if isinstance(batch, dict) else None
    return found if isinstance(found, Tensor) and found.ndim == 2 else None


def _batch_size(batch: Any) -> int:
    """The first dimension of the first tensor of a batch, 0 if it has none."""
    tensors = (each for each in tree_iter(batch) if isinstance(each, Tensor) and each.ndim)
    return next((len(each) for each in tensors), 0)


def _mixture(trainer: L.Trainer) -> dict[str, float]:
    """The fraction of each task in the training data so far."""
    data = getattr(trainer, "datamodule", None)
    mixture = getattr(getattr(data, "train", None), "mixture", None)
    found: dict[str, float] = {} if mixture is None else mixture(getattr(data, "position", 0))
    return found
