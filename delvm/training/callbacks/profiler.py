"""Traces a few steps with torch's profiler, and records what GPU memory is used for."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.profiler import ProfilerActivity, profile, schedule

logger = logging.getLogger("delvm.training")


class TorchProfiler(L.Callback):
    """Writes ``profile/trace.json`` and ``profile/operators.txt`` to the run's directory.

    The trace opens in Perfetto or chrome://tracing; the table lists the operators that take
    longest. On a GPU ``profile/memory.pickle`` is a snapshot of all allocations for
    https://pytorch.org/memory_viz, which is also written when memory runs out. Each rank but the
    first adds its number to the names. Lightning's ``trainer.profiler=simple`` times the hooks of a
    complete run instead.
    """

    def __init__(
        self, skip_steps: int = 5, warmup_steps: int = 1, steps: int = 3, memory: bool = True
    ) -> None:
        """
        Args:
            skip_steps: steps before the profiler starts, which compile and allocate.
            warmup_steps: steps that are profiled and not recorded.
            steps: steps that are recorded.
            memory: whether allocations on a GPU are recorded until then.
        """
        self.skip_steps, self.warmup_steps, self.steps = skip_steps, warmup_steps, steps
        self.memory = memory
        self._profile: profile | None = None
        self._folder, self._suffix = Path(), ""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._folder = Path(trainer.default_root_dir) / "profile"
        self._suffix = f"_{trainer.global_rank}" if trainer.global_rank else ""
        gpu = pl_module.device.type == "cuda"
        if gpu and self.memory:
            torch.cuda.memory._record_memory_history()
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])],
            schedule=schedule(
                wait=self.skip_steps, warmup=self.warmup_steps, active=self.steps, repeat=1
            ),
            on_trace_ready=self._write,
        )
        self._profile.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._profile is not None:
            self._profile.step()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(exception, torch.cuda.OutOfMemoryError):
            self._write_memory()
        self._close()

    def _close(self) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, recorded: profile) -> None:
        """Called by the profiler after the last recorded step."""
        self._folder.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(self._folder / f"trace{self._suffix}.json"))
        table = recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=40)
        (self._folder / f"operators{self._suffix}.txt").write_text(table, encoding="utf-8")
        self._write_memory()
        logger.info("profile of %d steps: %s", self.steps, self._folder)

    def _write_memory(self) -> None:
        if self.memory and torch.cuda.is_available():
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"memory{self._suffix}.pickle"
            torch.cuda.memory._dump_snapshot(str(file))  # type: ignore[no-untyped-call]
            torch.cuda.memory._record_memory_history(enabled=None)
