"""`delvm train`: train a tokenizer or a student, or distill a teacher into a student."""

import math
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from delvm.commands.app import in_sweep, run_job, save_config
from delvm.configs.store import config_root
from delvm.configs.validate import raise_errors
from delvm.evaluation.training_curves import OBJECTIVE, read_history


@hydra.main(version_base="1.3", config_path=str(config_root("train")), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Train as the config says."""
    return run_job("train", train, cfg)


def train(cfg: DictConfig) -> float | None:
    """Train, and print where the weights are.

    Returns:
        the lowest validation loss; infinite where none was finite, None without validation.
    """
    # Imported here: Lightning takes seconds, which a mistake in the config need not wait for.
    import torch

    from delvm.commands.checks_devices import refuse_sweep
    from delvm.commands.checks_train import train_faults
    from delvm.models.cpu.malloc import configure_malloc
    from delvm.training.config import TrainConfig
    from delvm.training.fit import train as fit
    from delvm.training.strategies import is_rank_zero

    config = TrainConfig(**vars(OmegaConf.to_object(cfg)))
    if in_sweep():
        refuse_sweep(config)
    raise_errors(train_faults(config))
    save_config(cfg, cfg.output)
    if cfg.trainer.accelerator == "cpu" or not torch.cuda.is_available():
        configure_malloc()
    try:
        weights = fit(config, Path(cfg.output))
    except SystemExit as stop:
        # Lightning saves what it must at Ctrl-C, then exits with a code of its own.
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    if is_rank_zero():
        print(f"weights: {weights}")
    return objective(Path(cfg.output))


def objective(output: Path) -> float | None:
    """The lowest validation loss of a run."""
    path = output / "metrics.csv"
    points = read_history(path, finite=False).get(OBJECTIVE, []) if path.exists() else []
    finite = [value for _, value in points if math.isfinite(value)]
    return min(finite, default=math.inf if points else None)
