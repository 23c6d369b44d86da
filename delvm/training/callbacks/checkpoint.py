"""What is kept of a run so that nothing is lost: whole checkpoints, randomness, a clean stop.

FOLDER/checkpoints/step=000400.ckpt    the newest few, and the best one
FOLDER/checkpoints/last.ckpt           a link to the newest
FOLDER/checkpoints/best.ckpt           a link to the one with the lowest val/loss
"""

import contextlib
import os
import random
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

from delvm.errors import Interrupted, UserError
from delvm.interop.load import read_metadata
from delvm.progress import log
from delvm.storage import remove

# What every checkpoint of ours has; of a torn one, not even the list of its keys can be read.
REQUIRED_KEYS = {"delvm", "global_step", "state_dict"}
# Seconds within which signals count as one: Ctrl-C comes from the terminal and from torchrun.
SIGNAL_DEBOUNCE_S = 2.0


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run's folder, the newest first."""
    found = [
        (int(number[1]), path)
        for path in (folder / "checkpoints").glob("step=*.ckpt")
        if (number := re.fullmatch(r"step=(\d+)\.ckpt", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]


def latest_valid_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that can be read; says which ones it passed over."""
    for path in list_checkpoints(folder):
        try:
            found = read_metadata(path)
        except UserError as error:
            log(f"resume: passed over, {error}")
            continue
        if isinstance(found, dict) and found.keys() >= REQUIRED_KEYS:
            return path
        log(f"resume: passed over, {path} is not whole")
    return None


class AtomicCheckpoint(L.Callback):
    """Writes checkpoints, whole or not at all, and keeps the newest few and the best.

    Listed after whatever has a state to be kept, a moving average of the weights among them. It
    saves before such an average takes the weights' place, at the end of training.
    """

    def __init__(self, folder: Path, every: int | None, keep: int) -> None:
        """Say where and how many.

        Args:
            folder: Of the run.
            every: Steps between two; None = at each validation.
            keep: The newest ones that stay.
        """
        self.folder, self.every, self.keep = folder / "checkpoints", every, keep
        self.best: tuple[float, int] | None = None  # lowest val/loss, and its step
        self._saved = -1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"] and (state["best"][0], state["best"][1])

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._saved = trainer.global_step  # of a resumed run: what it came from is there

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if self.every and trainer.global_step % self.every == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        loss = trainer.callback_metrics.get("val/loss")
        better = loss is not None and bool(torch.isfinite(loss))
        if better and loss is not None:
            better = self.best is None or float(loss) < self.best[0]
            if better:
                self.best = float(loss), trainer.global_step
        if better or not self.every:
            self.save(trainer, again=better)

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Save where the run ends: the stream is one epoch, whatever ends it."""
        self.save(trainer)

    def save(self, trainer: L.Trainer, again: bool = False) -> None:
        """Write the checkpoint of this step, if it is not there yet or is to be written again.

        Raises:
            UserError: The disk is full, or there may not be written; those before it are intact.
        """
        step = trainer.global_step
        if step == self._saved and not again:
            return
        path = self.folder / f"step={step:06d}.ckpt"
        part = self.folder / f".{path.name}.part"  # the same in every process
        try:
            for logger in trainer.loggers:
                logger.save()  # a resumed run keeps what was logged up to here
            trainer.save_checkpoint(part)
            if trainer.is_global_zero:
                _sync(part)
                if path.is_dir():  # whose place no other folder takes by itself
                    remove(path)
                os.replace(part, path)
        except OSError as error:
            if trainer.is_global_zero:
                remove(part)
            there = list_checkpoints(self.folder.parent)
            before = f"{there[0]} is intact" if there else "there is none before it"
            raise UserError(
                f"checkpoint {path} cannot be written: {error.strerror}: {before}; make room, then "
                "resume=auto"
            ) from error
        trainer.strategy.barrier()
        self._saved = step
        if trainer.is_global_zero:
            self._prune(path)

    def _prune(self, newest: Path) -> None:
        """Point to the newest and the best, and remove those that need not stay."""
        _link(self.folder / "last.ckpt", newest.name)
        keep = set(list_checkpoints(self.folder.parent)[: self.keep])
        if self.best is not None:
            best = self.folder / f"step={self.best[1]:06d}.ckpt"
            if best.exists():
                _link(self.folder / "best.ckpt", best.name)
                keep.add(best)
        for path in list_checkpoints(self.folder.parent):
            if path not in keep:
                remove(path)


def _sync(path: Path) -> None:
    """Have the disk hold a file before its name says that it is whole."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _link(link: Path, name: str) -> None:
    """Point a link to another file of its folder, at once."""
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(name)
    os.replace(part, link)


class RNGState(L.Callback):
    """Keeps the state of every generator that training draws from, of each rank its own."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._states: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        mine: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
        if torch.cuda.is_available():
            mine["cuda"] = torch.cuda.get_rng_state()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [mine]}
        states: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, mine)
        return {"ranks": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._states = state["ranks"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take up the states; begin anew, each rank for itself, where there is none of each."""
        if len(self._states) != trainer.world_size:
            if self._states or trainer.world_size > 1:
                step, rank = trainer.global_step, trainer.global_rank
                torch.manual_seed(hash((self.seed, step, rank)) % 2**63)
            return
        mine = self._states[trainer.global_rank]
        torch.set_rng_state(mine["torch"].cpu())
        random.setstate(_tuples(mine["python"]))
        if "cuda" in mine and torch.cuda.is_available():
            torch.cuda.set_rng_state(mine["cuda"].cpu())


def _tuples(value: Any) -> Any:
    """Python's state as it wants it, whatever a checkpoint has made of its tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


class GracefulShutdown(L.Callback):
    """Ends a run after the step it is at, when it is told to by SIGTERM or Ctrl-C.

    The checkpoint is written as at any end. A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # that this process was told
        self.stopped = False  # whether any process was, and so all of them stop
        self._heard = 0.0
        self._process = os.getpid()
        self._step = 0

    @contextlib.contextmanager
    def install_handlers(self) -> Iterator[None]:
        """Hear signals for a while; in a thread, where Python gives none, do nothing."""
        before = {}
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that reads data: it ends with its process
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self.signal is not None and now - self._heard < SIGNAL_DEBOUNCE_S:
            return
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal, self._heard = signal.Signals(number), now
        said = f"train: {self.signal.name}: saving after this step; once more ends it at once"
        log(said)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Take the signals back from Lightning, which would raise in the middle of a step."""
        self._step = trainer.global_step
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == self._step:  # in the middle of a step of several batches
            return
        self._step = trainer.global_step
        told = self.signal is not None
        if trainer.world_size > 1:  # all ranks stop at one step, though one alone has been told
            told = trainer.strategy.reduce_boolean_decision(told, all=False)
        self.stopped = self.stopped or told
        trainer.should_stop = trainer.should_stop or told

    def raise_if_stopped(self, folder: Path, step: int, total: int) -> None:
        """Raise what ends the process, if the run was stopped before its end.

        Raises:
            Interrupted: With the step, and how to go on.
        """
        if self.stopped and step < total:
            by = self.signal.name if self.signal is not None else "another process"
            raise Interrupted(
                f"stopped by {by} at step {step:,} of {total:,}, saved in "
                f"{folder / 'checkpoints'}: go on with resume=auto",
                self.signal or signal.SIGTERM,
            )
