"""Build the objects of a training run from its composed config.

Each node of the config names its class with ``_target_``, and Hydra builds it; a module's node
refers to its network, loss, optimizer and teacher (``model: ${student.net}``). What only the other
objects know is passed on here: the trainer gets callbacks, loggers and strategy, the module its
data, the network's weights come from ``init_from``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf

from delvm.commands.build import build
from delvm.configs.validate_train import is_a, target_of
from delvm.training.run.fit import filter_warnings, fit, trainer_arguments
from delvm.training.run.init_weights import load_init_weights
from delvm.training.run.output_dir import check_run_dir
from delvm.training.run.resume import resolve_resume, validate_resume
from delvm.training.student import StudentModule
from delvm.training.tokenizer import TokenizerModule


@dataclass(frozen=True)
class Run:
    """The objects of a training run.

    Attributes:
        trainer, module, data: what `lightning.Trainer.fit` takes.
        output_dir: of the run.
        resume: checkpoint to continue from; None starts a new run.
    """

    trainer: L.Trainer
    module: L.LightningModule
    data: Any
    output_dir: Path
    resume: str | None

    def fit(self) -> Path | None:
        """Train, and return the directory of the exported weights; see `delvm.training.run.fit`."""
        return fit(
            self.trainer,
            self.module,
            self.data,
            output_dir=self.output_dir,
            resume=self.resume,
        )


def build_run(cfg: DictConfig) -> Run:
    """Seed, then build everything that a composed `delvm train` config describes.

    Raises:
        UserError: an object cannot be built, or the objects do not fit together.
    """
    filter_warnings()
    cfg = cfg.copy()
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    L.seed_everything(cfg.seed, verbose=False)
    output_dir = Path(cfg.output_dir)
    dry_run = bool(cfg.trainer.get("fast_dev_run"))
    resume = None if dry_run else resolve_resume(cfg.resume, output_dir, cfg.overwrite)
    data = build(cfg.data, "data")
    strategy = build(cfg.strategy, "strategy")
    if getattr(strategy, "defers_init", False) and not (cfg.init_from or resume):
        _defer_init(cfg)
    _fit_optimizer(cfg)
    module = build(cfg.module, "module")
    if hasattr(module, "connect_data"):
        module.connect_data(data)
    if not dry_run:
        replaces = cfg.overwrite or resume is not None
        check_run_dir(output_dir, getattr(module, "model", None), replaces)
    if cfg.init_from and not resume:  # a resumed run has its own weights
        load_init_weights(module, cfg.init_from, data)
    if hasattr(module, "attach_adapter"):
        module.attach_adapter()
    trainer = build_trainer(cfg, module, data, strategy)
    if resume is not None:
        validate_resume(resume, trainer, module, data)
    return Run(trainer, module, data, output_dir, resume)


def build_all(nodes: Any, name: str) -> list[Any]:
    """Build each object of a dictionary name -> node, in its order; null and {} are left out."""
    built = (build(node, f"{name}.{key}") for key, node in (nodes or {}).items())
    return [each for each in built if each is not None]


def build_trainer(
    cfg: DictConfig, module: L.LightningModule, data: Any, strategy: Any
) -> L.Trainer:
    """The trainer, with what only the other objects know."""
    changed = trainer_arguments(
        {str(key): value for key, value in cfg.trainer.items()},
        module,
        data,
        strategy,
        callbacks=build_all(cfg.callbacks, "callbacks"),
        loggers=build_all(cfg.logger, "logger"),
    )
    trainer: L.Trainer = build(cfg.trainer, "trainer", **changed)
    return trainer


def _fit_optimizer(cfg: DictConfig) -> None:
    """Leave out what only our modules can use, for one that calls the optimizer itself.

    They read ``decay``, and clip gradients of fused optimizers. Lightning's own clipping refuses
    these in mixed precision.
    """
    if any(is_a(target_of(cfg.module), each) for each in (StudentModule, TokenizerModule)):
        return
    clips = cfg.trainer.get("gradient_clip_val") and cfg.trainer.get("precision") != "32-true"
    left_out = {"decay", "fused"} if clips else {"decay"}
    cfg.optimizer = {key: cfg.optimizer[key] for key in cfg.optimizer if key not in left_out}


def _defer_init(cfg: DictConfig) -> None:
    """Have the student draw its weights a block at a time while they are spread over devices."""
    net = OmegaConf.select(cfg, "student.net")
    if net is not None and "defer_init" in net:
        net.defer_init = True
