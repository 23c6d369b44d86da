"""Atomic checkpoints, of which the newest few and the best are kept.

OUTPUT_DIR/checkpoints/step=000400.ckpt    the newest few, and the best one
OUTPUT_DIR/checkpoints/last.ckpt           a link to the newest
OUTPUT_DIR/checkpoints/best.ckpt           a link to the one with the best monitored value
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from delvm.errors import UserError
from delvm.interop.load import read_metadata
from delvm.storage import remove

logger = logging.getLogger("delvm.training")

# What each of our checkpoints has; of a truncated one, not even the list of keys can be read.
REQUIRED_KEYS = {"delvm", "global_step", "state_dict"}


def list_checkpoints(output_dir: Path) -> list[Path]:
    """The checkpoints of a run, the newest first."""
    found = [
        (int(number[1]), path)
        for path in (output_dir / "checkpoints").glob("step=*.ckpt")
        if (number := re.fullmatch(r"step=(\d+)\.ckpt", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def latest_valid_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint of a run that can be read; a warning names those that cannot."""
    for path in list_checkpoints(output_dir):
        try:
            found = read_metadata(path)
        except UserError as error:
            logger.warning("resume: skipped %s", error)
            continue
        if isinstance(found, dict) and found.keys() >= REQUIRED_KEYS:
            return path
        logger.warning("resume: skipped %s, which is not complete", path)
    return None


class AtomicCheckpoint(Checkpoint):
    """Writes checkpoints that are complete or absent; keeps the newest few and the best.

    Unlike Lightning's ModelCheckpoint, a run that is killed while it writes leaves the checkpoint
    before intact, and checkpoints hold the state of all callbacks at one step.

    Lightning lists callbacks of this kind last, after those whose state they save. At the end of
    training it saves before a moving average replaces the weights.

    Attributes:
        best: best monitored value so far, and its step.
        dirpath: directory of the checkpoints, from the start of training.
    """

    def __init__(
        self,
        every_n_train_steps: int | None = None,
        keep_latest_k: int = 2,
        monitor: str = "val/loss",
        mode: str = "min",
    ) -> None:
        """
        Args:
            every_n_train_steps: steps between two checkpoints; None = one at each validation, or
                where it would be if there is none.
            keep_latest_k: newest checkpoints that stay, next to the best one.
            monitor: logged metric that the best checkpoint is chosen by.
            mode: whether the smallest (min) or largest (max) value is the best.

        Raises:
            ValueError: an argument is out of its range.
        """
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode} is not min or max")
        if keep_latest_k < 1:
            raise ValueError(f"keep_latest_k={keep_latest_k} is below 1")
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps={every_n_train_steps} is below 1")
        self.every_n_train_steps, self.keep_latest_k = every_n_train_steps, keep_latest_k
        self.monitor, self.mode = monitor, mode
        self.best: tuple[float, int] | None = None
        self.dirpath: Path | None = None
        self._last_saved = -1

    @property
    def best_model_path(self) -> str:
        """Path of the best checkpoint, as Lightning's ModelCheckpoint has it; "" if none."""
        return self._path_if_exists("best.ckpt")

    @property
    def last_model_path(self) -> str:
        """Path of the newest checkpoint; "" if none."""
        return self._path_if_exists("last.ckpt")

    @property
    def best_model_score(self) -> Tensor | None:
        """The best monitored value, None before there is one."""
        return None if self.best is None else torch.tensor(self.best[0])

    def _path_if_exists(self, name: str) -> str:
        path = None if self.dirpath is None else self.dirpath / name
        return "" if path is None or not path.exists() else str(path)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"] and (state_dict["best"][0], state_dict["best"][1])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.dirpath = Path(trainer.default_root_dir) / "checkpoints"
        self._last_saved = trainer.global_step  # a resumed run has the checkpoint of this step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        every = self._interval(trainer)
        due = every is not None and trainer.global_step % every == 0
        # Lightning validates once more before it stops, for which a signal may leave no time.
        if trainer.should_stop or (due and not _validates_after(trainer, batch_idx)):
            self.save(trainer)

    def _interval(self, trainer: L.Trainer) -> int | None:
        """Steps between two checkpoints; None at each validation."""
        if self.every_n_train_steps is not None or trainer.enable_validation:
            return self.every_n_train_steps
        batches = trainer.val_check_interval
        if not isinstance(batches, int):
            return None
        return max(1, batches // trainer.accumulate_grad_batches)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        improved = self._is_best(trainer.callback_metrics.get(self.monitor))
        if improved:
            self.best = float(trainer.callback_metrics[self.monitor]), trainer.global_step
        every = self.every_n_train_steps
        if improved or every is None or trainer.global_step % every == 0:
            self.save(trainer, overwrite=improved)

    def _is_best(self, value: Tensor | None) -> bool:
        if value is None or not bool(torch.isfinite(value)):
            return False
        if self.best is None:
            return True
        return float(value) < self.best[0] if self.mode == "min" else float(value) > self.best[0]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save at the end of the run: a stream is one epoch, whatever ends it."""
        self.save(trainer)

    def save(self, trainer: L.Trainer, overwrite: bool = False) -> None:
        """Write the checkpoint of this step.

        Args:
            trainer: of the run.
            overwrite: whether to write it again if it exists, because a state has changed.

        Raises:
            UserError: It cannot be written, as on a full disk; earlier checkpoints are intact.
        """
        step = trainer.global_step
        if trainer.fast_dev_run or (step == self._last_saved and not overwrite):  # type: ignore[attr-defined]
            return
        assert self.dirpath is not None
        path = self.dirpath / f"step={step:06d}.ckpt"
        tmp = self.dirpath / f".{path.name}.part"  # the same in every process
        try:
            for each in trainer.loggers:
                each.save()  # a resumed run keeps what was logged up to here
            trainer.save_checkpoint(tmp)
            if trainer.is_global_zero:
                _sync(tmp)
                if path.is_dir():  # os.replace does not replace a directory
                    remove(path)
                os.replace(tmp, path)
        except OSError as error:
            if trainer.is_global_zero:
                remove(tmp)
            existing = list_checkpoints(self.dirpath.parent)
            before = f"{existing[0]} is intact" if existing else "there is none before it"
            raise UserError(
                f"checkpoint {path} cannot be written: {error.strerror}: {before}; make room, then "
                "resume=auto"
            ) from error
        trainer.strategy.barrier()
        self._last_saved = step
        if trainer.is_global_zero:
            self._prune(path)

    def _prune(self, newest: Path) -> None:
        """Link to the newest and the best, and remove those that need not stay."""
        _link(newest.with_name("last.ckpt"), newest.name)
        existing = list_checkpoints(newest.parent.parent)
        keep = set(existing[: self.keep_latest_k])
        if self.best is not None:
            best = newest.with_name(f"step={self.best[1]:06d}.ckpt")
            if best.exists():
                _link(newest.with_name("best.ckpt"), best.name)
                keep.add(best)
        for path in existing:
            if path not in keep:
                remove(path)


def _validates_after(trainer: L.Trainer, batch_idx: int) -> bool:
    """Whether a batch is followed by validation, after which the checkpoint is written.

    One that was written before it, by a run that is then killed, would never be validated.
    """
    interval = trainer.val_check_batch
    if not trainer.enable_validation or not isinstance(interval, int):
        return False
    if trainer.check_val_every_n_epoch is None:
        batch_idx = trainer.fit_loop.total_batch_idx
    return (batch_idx + 1) % interval == 0


def _sync(path: Path) -> None:
    """Flush a file to disk before its final name marks it as complete."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _link(link: Path, name: str) -> None:
    """Point a link to another file of its directory, atomically."""
    tmp = link.with_name(f".{link.name}.part")
    tmp.unlink(missing_ok=True)
    tmp.symlink_to(name)
    os.replace(tmp, link)
