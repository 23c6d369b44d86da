"""One training run of built objects, from the first step to exported weights."""

import logging
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.loggers import Logger

from delvm.models.precision import resolve_precision
from delvm.progress import log
from delvm.training import strategies
from delvm.training.callbacks.graceful_shutdown import GracefulShutdown
from delvm.training.callbacks.nonfinite_grad import SkipNonFiniteGrad
from delvm.training.checkpoint_io import AtomicCheckpointIO
from delvm.training.loggers import finish_loggers, restore_csv, start_wandb
from delvm.training.run.output_dir import export_path, remove_earlier_run
from delvm.training.run.resume import restore_errors


def trainer_arguments(
    settings: Mapping[str, Any],
    module: L.LightningModule,
    data: Any,
    strategy: Any,
    *,
    callbacks: list[Callback],
    loggers: list[Logger],
) -> dict[str, Any]:
    """What `lightning.Trainer` gets besides, or in place of, the settings of a run.

    Args:
        settings: its other arguments.
        module, data, strategy, callbacks, loggers: the objects of the run.
    """
    changed: dict[str, Any] = {
        "precision": resolve_precision(settings["precision"], settings["accelerator"]),
        "callbacks": callbacks,
        "logger": loggers or False,
        "strategy": strategy,
    }
    if isinstance(strategy, str):  # Lightning's own choice, which takes a checkpoint writer
        changed["plugins"] = [AtomicCheckpointIO()]
    if settings.get("enable_checkpointing") is None:
        changed["enable_checkpointing"] = any(isinstance(each, Checkpoint) for each in callbacks)
    interval = settings.get("val_check_interval")
    if isinstance(interval, int) and settings["max_steps"] > 0:
        # A run that is shorter than the interval is validated at its end.
        batches = settings["max_steps"] * settings["accumulate_grad_batches"]
        changed["val_check_interval"] = min(interval, batches)
    if getattr(data, "val", True) is None:
        # Checkpoints are then written at the steps at which it would have been validated.
        log(f"train: no validation split in data.path={data.path}, so no step is validated")
        changed["limit_val_batches"] = 0
    if settings.get("overfit_batches") and hasattr(data, "overfit_batches"):
        # Lightning's would replace the sampler, which is what the data's position is.
        data.overfit_batches = settings["overfit_batches"]
        changed["overfit_batches"] = 0
    if not module.automatic_optimization:  # clips by itself: Lightning refuses to
        changed["gradient_clip_val"] = None
    return changed


def fit(
    trainer: L.Trainer,
    module: L.LightningModule,
    data: Any,
    *,
    output_dir: Path,
    resume: str | None = None,
) -> Path | None:
    """Train, then export the last weights.

    Args:
        trainer: with callbacks, loggers and strategy.
        module: what is trained.
        data: its data module.
        output_dir: of the run; gets the exported weights.
        resume: checkpoint to continue from, as `delvm.training.run.resume` resolved it.

    Returns:
        the exported directory, ``output_dir/tokenizer`` or ``output_dir/student``; None under
        ``fast_dev_run``, which writes nothing.

    Raises:
        Interrupted: a signal stopped the run before its end; a checkpoint is written.
        Diverged: the gradient was not finite for too many steps, or in the last ones.
        UserError: a checkpoint cannot be written, or data and module do not fit together.
    """
    shutdown = find_callback(trainer, GracefulShutdown)
    dry_run = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
    if resume is not None:
        restore_csv(trainer.loggers, resume)
    elif not dry_run:
        remove_earlier_run(output_dir)
    failed = True
    try:
        start_wandb(trainer.loggers, output_dir, resume is not None)
        handlers = nullcontext() if shutdown is None else shutdown.install_handlers()
        with handlers, restore_errors(resume):
            trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        failed = False
    finally:
        finish_loggers(trainer.loggers, failed)
    if dry_run:
        return None
    if shutdown is not None:
        shutdown.raise_if_stopped(output_dir, trainer.global_step, trainer.max_steps)
    if (guard := find_callback(trainer, SkipNonFiniteGrad)) is not None:
        guard.raise_if_diverged(trainer)
    return _export(trainer, module, output_dir)


def find_callback(trainer: L.Trainer, kind: type[Any]) -> Any | None:
    """The trainer's first callback of a type, if it has one."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return next((each for each in callbacks if isinstance(each, kind)), None)


def _export(trainer: L.Trainer, module: L.LightningModule, output_dir: Path) -> Path | None:
    """Export the trained network, if it has a format of ours."""
    model: Any = getattr(module, "model", None)
    if (path := export_path(output_dir, model)) is not None:
        strategies.export(trainer, model, path)
    return path


def filter_warnings() -> None:
    """Silence what Lightning warns about and is chosen here on purpose."""
    for text in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*",
        ".*isinstance\\(treespec.*",
        ".*your dataloader is not resumable.*",  # the data module keeps its position
        ".*smaller than the logging interval.*",
        ".*IterableDataset. has .__len__. defined.*",  # each worker streams a part of its own
        ".*WeightAveraging callback with a model that overrides the configure_model.*",
        ".*recommended to use .self.log.*sync_dist=True.*",  # of values that all ranks share
    ):
        warnings.filterwarnings("ignore", text)
    for part in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
    # The report of `trainer.profiler`, which whoever sets it asks for.
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)
