"""Ends a run cleanly at SIGTERM or Ctrl-C: after the current step, with a checkpoint."""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from delvm.errors import Interrupted

logger = logging.getLogger("delvm.training")

# Seconds within which signals count as one: Ctrl-C comes from the terminal and from torchrun.
SIGNAL_DEBOUNCE_S = 2.0


class GracefulShutdown(L.Callback):
    """Stops training after the current step if the process gets SIGTERM or Ctrl-C.

    The checkpoint is written as at the end of any run. A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None  # that this process received
        self.stopped = False  # whether any process received one, so that all of them stop
        self._received_at = 0.0
        self._process = os.getpid()
        self._step = 0

    @contextlib.contextmanager
    def install_handlers(self) -> Iterator[None]:
        """Handle the signals within the context; outside of the main thread, do nothing."""
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
        if os.getpid() != self._process:
            # A data worker. SLURM and `timeout` signal the complete group: batches go on until this
            # step is saved. Its process ends it afterwards, by a second signal if need be.
            if number == signal.SIGTERM and self.signal is not None:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self.signal = signal.Signals(number)
            return
        now = time.monotonic()
        if self.signal is not None and now - self._received_at < SIGNAL_DEBOUNCE_S:
            return
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal, self._received_at = signal.Signals(number), now
        if not getattr(rank_zero_only, "rank", 0):  # torchrun sends it to all ranks
            name = self.signal.name
            logger.warning("%s: saving after this step; send it again to end at once", name)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take the signals back from Lightning, which would raise in the middle of a step."""
        self._step = trainer.global_step
        with contextlib.suppress(ValueError):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step == self._step:  # in the middle of a step of several batches
            return
        self._step = trainer.global_step
        received = self.signal is not None
        if trainer.world_size > 1:  # all ranks stop at the same step
            received = trainer.strategy.reduce_boolean_decision(received, all=False)
        self.stopped = self.stopped or received
        trainer.should_stop = trainer.should_stop or received

    def raise_if_stopped(self, output_dir: Path, step: int, max_steps: int) -> None:
        """Raise what ends the process, if a signal stopped the run before its end.

        Args:
            output_dir: of the run.
            step: steps done.
            max_steps: steps of the complete run; -1 = no limit.

        Raises:
            Interrupted: With the step, and how to resume.
        """
        if self.stopped and (step < max_steps or max_steps < 0):
            by = self.signal.name if self.signal is not None else "another process"
            of = "" if max_steps < 0 else f" of {max_steps:,}"
            raise Interrupted(
                f"stopped by {by} at step {step:,}{of}, saved in {output_dir / 'checkpoints'}: "
                "continue with resume=auto",
                self.signal or signal.SIGTERM,
            )
