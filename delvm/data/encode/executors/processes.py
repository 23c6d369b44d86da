"""Processes of this machine."""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from delvm.data.encode.executors.base import (
    Engine,
    Factory,
    Worker,
    cores,
    elsewhere,
    result,
    shared_threads,
)
from delvm.data.encode.shard_task import Done, Job, Piece, Report
from delvm.errors import UserError

SECONDS = 0.5  # between two looks at how far the workers are
PATIENCE = 10.0  # seconds that a worker has to leave off


@dataclass
class Processes(Engine):
    """A process with a tokenizer for each worker.

    Attributes:
        workers: 0 is one a GPU, or one a core without; each holds the tokenizer's weights.
        threads: of each; 0 shares out those that torch would use in one process.
    """

    name: str = "process"
    workers: int = 0
    threads: int = 0

    def run(
        self, job: Job, pieces: list[Piece], factory: Factory, report: Report
    ) -> Iterator[Done]:
        """Each piece as it is done."""
        job = elsewhere(job)
        gpus = torch.cuda.device_count() if factory.device != "cpu" else 0
        workers = min(self.workers or gpus or cores(), len(pieces))
        threads = self.threads or shared_threads(max(1, workers))
        crew = _Crew(job, factory, workers, threads)
        try:
            yield from crew.run(pieces, report)
        finally:
            crew.end()


class _Crew:
    """Worker processes, each at the end of a pipe: a piece goes in, its result comes out."""

    def __init__(self, job: Job, factory: Factory, workers: int, threads: int) -> None:
        # Not fork: threads of torch and CUDA do not survive it.
        context = multiprocessing.get_context("spawn")
        # Each worker has a number of its own here and needs no lock, which it could die holding.
        self.counts: Any = context.RawArray("q", max(1, workers))
        self.reported = 0
        self.processes: dict[Connection, BaseProcess] = {}
        for number in range(workers):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(there, job, factory, number, threads, self.counts),
                name=f"encode-{number}",
                daemon=True,
            )
            process.start()
            there.close()
            self.processes[here] = process

    def run(self, pieces: list[Piece], report: Report) -> Iterator[Done]:
        """Give each worker a piece, and the next one when it is done."""
        left = iter(pieces)
        busy = {pipe for pipe in self.processes if self._give(pipe, left)}
        while busy:
            for pipe in wait(busy, SECONDS):
                assert isinstance(pipe, Connection)
                done = result(self._take(pipe))
                if not self._give(pipe, left):
                    busy.remove(pipe)
                self._report(report)
                yield done
            self._report(report)

    def _give(self, pipe: Connection, left: Iterator[Piece]) -> bool:
        piece = next(left, None)
        if piece is not None:
            with suppress(OSError):  # it has died: the next look at the pipe tells
                pipe.send(piece)
        return piece is not None

    def _take(self, pipe: Connection) -> Done | UserError:
        try:
            outcome = pipe.recv()
        except (EOFError, OSError):
            outcome = None
        if isinstance(outcome, (Done, UserError)):
            return outcome
        process = self.processes[pipe]
        if outcome is not None:  # a fault of ours, as text
            raise RuntimeError(f"in {process.name}:\n{outcome}")
        process.join()
        raise UserError(
            f"worker {process.name} died with code {process.exitcode} (-9: killed, most often for "
            "lack of memory): run the same again, what is done stays; or set engine.workers lower"
        )

    def _report(self, report: Report) -> None:
        total = sum(self.counts)
        if total > self.reported:
            report(total - self.reported)
            self.reported = total

    def end(self) -> None:
        """Stop the workers, whatever they are at."""
        for pipe, process in self.processes.items():
            pipe.close()
            process.terminate()
        for process in self.processes.values():
            process.join(PATIENCE)
            process.kill()
            process.join()


def _serve(
    pipe: Connection, job: Job, factory: Factory, number: int, threads: int, counts: Any
) -> None:
    """A worker's life: until its pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started us

    def report(count: int) -> None:
        counts[number] += count

    worker = Worker(job, factory, number, threads)
    with suppress(EOFError, BrokenPipeError):
        while True:
            piece = pipe.recv()
            signal.signal(signal.SIGTERM, _leave_off)
            try:
                outcome: Any = worker.attempt(piece, report)
            except Exception:
                outcome = traceback.format_exc()
            except _LeftOff:  # and what was half written is removed
                os._exit(0)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            pipe.send(outcome)


class _LeftOff(BaseException):
    """Raised in a worker that is told to stop in the middle of a shard."""


def _leave_off(*_: object) -> None:
    raise _LeftOff
