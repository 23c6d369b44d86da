"""What engines share: their settings, and the worker that each of them runs, one or many."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Protocol

import torch

from delvm.data.encode.shard_task import Done, Job, Piece, Report, Tokenizer, encode_piece
from delvm.errors import UserError, to_user_error
from delvm.storage import RemotePath, absolute_path


class Factory(Protocol):
    """Makes a worker's tokenizer; pickles, as it goes to where the worker is."""

    @property
    def device(self) -> str:
        """Either "cpu", "cuda", or "auto": a GPU where the worker sees one."""
        ...

    def __call__(self, worker: int) -> Tokenizer:
        """The tokenizer on the device of a worker with this number.

        Raises:
            UserError: it cannot be loaded, or is not the one that the job was planned with.
        """
        ...


@dataclass(frozen=True)
class Share:
    """Which of several processes that were started alike this one is."""

    rank: int = 0
    ranks: int = 1


@dataclass
class Engine:
    """Writes pieces of a job, in any order."""

    name: str = "???"

    def share(self) -> Share:
        """This process's share of the pieces.

        Raises:
            UserError: it is one of many, and the engine has workers of its own.
        """
        share = ranked()
        if share.ranks > 1:
            raise UserError(
                f"WORLD_SIZE={share.ranks} and engine={self.name}, which starts workers itself: "
                "set engine=local, or run it without torchrun"
            )
        return share

    def run(
        self, job: Job, pieces: list[Piece], factory: Factory, report: Report
    ) -> Iterator[Done]:
        """Each piece as it is done.

        Args:
            report: told of examples that are encoded, some time after.

        Raises:
            UserError: the first that a worker met; nothing is left running.
        """
        raise NotImplementedError


def ranked() -> Share:
    """The share that torchrun (or a user's script) gives by RANK and WORLD_SIZE.

    Raises:
        UserError: the two do not go together.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if all(value is None for value in given.values()):
        return Share()
    try:
        share = Share(*(int(value or "") for value in given.values()))
    except ValueError:
        share = Share(0, 0)
    if not 0 <= share.rank < share.ranks:
        said = ", ".join(f"{name}={value or 'nothing'}" for name, value in given.items())
        raise UserError(f"{said} in the environment: set RANK from 0 to WORLD_SIZE - 1, or neither")
    return share


class Worker:
    """A tokenizer and the job that it is for, in whatever process."""

    def __init__(self, job: Job, factory: Factory, number: int = 0, threads: int = 0) -> None:
        """Remember what for; the tokenizer is loaded with the first piece.

        Args:
            number: of the worker, for the choice of a device.
            threads: of torch; 0 leaves them.
        """
        self.job, self.factory, self.number = job, factory, number
        self.tokenizer: Tokenizer | None = None
        if threads:
            torch.set_num_threads(threads)

    def encode(self, piece: Piece, report: Report = lambda count: None) -> Done:
        """Write a piece.

        Raises:
            UserError: for all that a user can mend.
        """
        if self.tokenizer is None:
            self.tokenizer = self.factory(self.number)
        try:
            return encode_piece(self.job, piece, self.tokenizer, report)
        except OSError as error:
            raise to_user_error(error, f"{self.job.output}/{self.job.title(piece)}") from error

    def attempt(self, piece: Piece, report: Report = lambda count: None) -> Done | UserError:
        """The same with a user's error as the result, so that it crosses to another process."""
        try:
            return self.encode(piece, report)
        except UserError as error:
            return type(error)(*error.args)  # without the traceback that only this process has


def elsewhere(job: Job) -> Job:
    """The job for other processes, which may work in another folder.

    Raises:
        UserError: input or output is memory://.
    """
    for root in (job.input, job.output):
        if isinstance(root, RemotePath) and root.url.startswith("memory:"):
            raise UserError(f"{root} is in the memory of one process: set engine=local")
    return replace(job, input=absolute_path(job.input), output=absolute_path(job.output))


def needs(package: str, engine: str) -> Any:
    """An optional package.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(
            f"engine={engine} needs a package that is not installed ({error}): run "
            "`pip install 'delvm[scale]'`, or set engine=process"
        ) from None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def shared_threads(workers: int) -> int:
    """Threads a worker, of those that torch would use here."""
    return max(1, torch.get_num_threads() // workers)


def result(outcome: Done | UserError) -> Done:
    """What a worker gave back.

    Raises:
        UserError: what it met instead.
    """
    if isinstance(outcome, UserError):
        raise outcome
    return outcome
