"""`delvm train`: train a tokenizer or a student, or distil a teacher into a student."""

import math
from pathlib import Path

from delvm.evaluation.training_curves import OBJECTIVE, read_history
from delvm.training.config import TrainConfig


def run(cfg: TrainConfig) -> None:
    """Train, and say where the weights are."""
    # Imported here: Lightning takes seconds, which a mistake in the config need not wait for.
    import torch

    from delvm.models.cpu.malloc import configure_malloc
    from delvm.training.fit import train
    from delvm.training.strategies import is_rank_zero

    if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        configure_malloc()
    try:
        weights = train(cfg, Path(cfg.output))
    except SystemExit as stop:
        # Lightning saves what it must at Ctrl-C, then exits with a code of its own.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    if is_rank_zero():
        print(f"weights: {weights}")


def figure(cfg: TrainConfig) -> float | None:
    """The lowest validation loss of a run, which a search minimises.

    Infinite where none was a number, None where there was no validation.
    """
    path = Path(cfg.output) / "metrics.csv"
    points = read_history(path, finite=False).get(OBJECTIVE, []) if path.exists() else []
    finite = [value for _, value in points if math.isfinite(value)]
    return min(finite, default=math.inf if points else None)
