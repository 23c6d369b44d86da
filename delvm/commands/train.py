"""`delvm train`: train a tokenizer or a student, or distill a teacher into a student."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from delvm.commands.app import save_config, verb_main

if TYPE_CHECKING:
    from delvm.commands.instantiate import Run


def train(cfg: DictConfig) -> float | None:
    """Train, and print where the weights are.

    Returns:
        the lowest ``val/loss``, which a search minimizes: infinite where none was finite, None
        without validation.
    """
    # Imported here: Lightning takes seconds, which a mistake in the config need not wait for.
    from delvm.commands.instantiate import build_run
    from delvm.models.cpu.malloc import configure_malloc
    from delvm.training.run.launch import uses_gpu
    from delvm.training.run.output_dir import lock_output_dir
    from delvm.training.strategies import is_rank_zero

    if not uses_gpu(cfg.trainer.accelerator):
        configure_malloc()
    dry_run = bool(cfg.trainer.get("fast_dev_run"))
    with nullcontext() if dry_run else lock_output_dir(Path(cfg.output_dir)):
        run = build_run(cfg)
        if run.trainer.is_global_zero and not dry_run:
            save_config(cfg, run.output_dir)
        try:
            weights = run.fit()
        except SystemExit as stop:
            # Lightning saves what it must at Ctrl-C, then exits with a code of its own.
            if isinstance(stop.__context__, KeyboardInterrupt):
                raise KeyboardInterrupt from None
            raise
    if is_rank_zero():
        if dry_run:
            print("dry run: nothing was written")
        else:
            print(f"weights: {weights or run.output_dir / 'checkpoints'}")
    return objective(run)


def objective(run: "Run") -> float | None:
    """The lowest validation loss of a run, over all jobs that it was resumed in."""
    from delvm.training.callbacks import AtomicCheckpoint
    from delvm.training.run.fit import find_callback

    checkpoint: Any = find_callback(run.trainer, AtomicCheckpoint)
    if checkpoint is not None and checkpoint.best is not None:
        return float(checkpoint.best[0])
    latest = run.trainer.callback_metrics.get("val/loss")
    if latest is None:
        return None
    return float(latest) if math.isfinite(latest) else math.inf


main = verb_main(__name__, work="train")
