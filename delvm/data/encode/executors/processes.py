"""Encoding by several processes of this machine."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, ClassVar

import torch

from delvm.data.encode.executors.base import (
    TokenizerFactory,
    Worker,
    WorkerExecutor,
    threads_per_worker,
    unwrap,
)
from delvm.data.encode.shard_task import EncodeJob, Report, ShardResult, ShardTask
from delvm.data.executor_settings import num_cpus
from delvm.errors import UserError

POLL_S = 0.5  # between two reports of progress
TERMINATE_TIMEOUT_S = 10.0  # then a worker that still runs is killed


@dataclass
class Processes(WorkerExecutor):
    """Worker processes, each with its own tokenizer.

    Attributes:
        workers: number of processes; 0 is one per GPU, or one per core where there is none. Each
            holds the tokenizer's weights.
        threads: threads of torch per worker; 0 divides those of one process among the workers.
    """

    name: ClassVar[str] = "processes"
    minimum: ClassVar[dict[str, int]] = {"workers": 0, "threads": 0}
    workers: int = 0
    threads: int = 0

    def _run(
        self, job: EncodeJob, shards: list[ShardTask], factory: TokenizerFactory, report: Report
    ) -> Iterator[ShardResult]:
        gpus = torch.cuda.device_count() if factory.device != "cpu" else 0
        num_workers = min(self.workers or gpus or num_cpus(), len(shards))
        num_threads = self.threads or threads_per_worker(num_workers)
        pool = _WorkerPool(job, factory, num_workers, num_threads)
        try:
            yield from pool.run(shards, report)
        finally:
            pool.terminate()


class _WorkerPool:
    """Worker processes, each connected by a pipe: a shard is sent, its result is received."""

    def __init__(
        self, job: EncodeJob, factory: TokenizerFactory, num_workers: int, num_threads: int
    ) -> None:
        # Not fork: threads of torch and CUDA do not survive it.
        context = multiprocessing.get_context("spawn")
        # Each worker writes its own entry, so no lock is needed, which it could die holding.
        self.counts: Any = context.RawArray("q", num_workers)
        self.reported = 0
        self.processes: dict[Connection, BaseProcess] = {}
        for index in range(num_workers):
            parent_end, child_end = context.Pipe()
            process = context.Process(
                target=_worker_main,
                args=(child_end, job, factory, index, num_threads, self.counts),
                name=f"encode-{index}",
                daemon=True,
            )
            process.start()
            child_end.close()
            self.processes[parent_end] = process

    def run(self, shards: list[ShardTask], report: Report) -> Iterator[ShardResult]:
        """Send each worker a shard, and the next one when it is done."""
        left = iter(shards)
        busy = {pipe for pipe in self.processes if self._send(pipe, left)}
        while busy:
            for pipe in wait(busy, POLL_S):
                assert isinstance(pipe, Connection)
                result = unwrap(self._recv(pipe))
                if not self._send(pipe, left):
                    busy.remove(pipe)
                self._report(report)
                yield result
            self._report(report)

    def _send(self, pipe: Connection, left: Iterator[ShardTask]) -> bool:
        shard = next(left, None)
        if shard is not None:
            with suppress(OSError):  # the worker died: receiving from the pipe will show it
                pipe.send(shard)
        return shard is not None

    def _recv(self, pipe: Connection) -> ShardResult | UserError:
        try:
            outcome = pipe.recv()
        except (EOFError, OSError):
            outcome = None
        if isinstance(outcome, (ShardResult, UserError)):
            return outcome
        process = self.processes[pipe]
        if outcome is not None:  # a bug, as the text of its traceback
            raise RuntimeError(f"in {process.name}:\n{outcome}")
        process.join()
        raise UserError(
            f"worker {process.name} died with code {process.exitcode} (-9: killed, most often for "
            "lack of memory): run the same again, finished shards are kept; or set "
            "executor.workers lower"
        )

    def _report(self, report: Report) -> None:
        total = sum(self.counts)
        if total > self.reported:
            report(total - self.reported)
            self.reported = total

    def terminate(self) -> None:
        """Stop the workers, even in the middle of a shard."""
        for pipe, process in self.processes.items():
            pipe.close()
            process.terminate()
        for process in self.processes.values():
            process.join(TERMINATE_TIMEOUT_S)
            process.kill()
            process.join()


def _worker_main(
    pipe: Connection,
    job: EncodeJob,
    factory: TokenizerFactory,
    index: int,
    num_threads: int,
    counts: Any,
) -> None:
    """Encode the shards that come through the pipe, until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent

    def report(count: int) -> None:
        counts[index] += count

    worker = Worker(job, factory, index, num_threads)
    with suppress(EOFError, BrokenPipeError):
        while True:
            shard = pipe.recv()
            signal.signal(signal.SIGTERM, _on_terminate)
            try:
                outcome: Any = worker.run_safely(shard, report)
            except Exception:
                outcome = traceback.format_exc()
            except _Terminated:  # by now the unfinished shard is removed
                os._exit(0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            pipe.send(outcome)


class _Terminated(BaseException):
    """Raised in a worker that is terminated in the middle of a shard."""


def _on_terminate(*_: object) -> None:
    raise _Terminated
