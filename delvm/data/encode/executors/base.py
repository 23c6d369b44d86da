"""What all executors share: the protocol, the rank of a process, and the worker they run."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol, cast, runtime_checkable

import torch

from delvm.data.encode.shard_task import (
    EncodeJob,
    Report,
    ShardResult,
    ShardTask,
    Tokenizer,
    encode_shard,
)
from delvm.data.executor_settings import minimum_errors
from delvm.errors import UserError, check_members, to_user_error
from delvm.storage import RemotePath, absolute_path


class TokenizerFactory(Protocol):
    """Builds a worker's tokenizer; can be pickled, as it is sent to the worker."""

    @property
    def device(self) -> str:
        """Either "cpu", "cuda", or "auto": a GPU where the worker has one."""
        ...

    def __call__(self, worker: int) -> Tokenizer:
        """The tokenizer on the device of the worker with this index.

        Raises:
            UserError: it cannot be loaded, or is not the one that the job was planned with.
        """
        ...


@dataclass(frozen=True)
class Rank:
    """The rank of this process among those that were started alike, as by torchrun."""

    rank: int = 0
    world_size: int = 1


@runtime_checkable
class Executor(Protocol):
    """Writes the shards of a job: what `delvm encode executor=...` needs of an object.

    Attributes:
        in_process: whether it encodes in this process, with a tokenizer that is loaded already.
    """

    in_process: bool

    def rank(self) -> Rank:
        """This process's rank; each rank is given its own shards.

        Raises:
            UserError: there are several ranks, and the executor starts workers itself.
        """
        ...

    def run(
        self, job: EncodeJob, shards: list[ShardTask], factory: TokenizerFactory, report: Report
    ) -> Iterator[ShardResult]:
        """Yield each shard when it is written, in any order.

        Args:
            job: The job.
            shards: The shards to write.
            factory: Builds the workers' tokenizers.
            report: Called with the number of further examples encoded, possibly with a delay.

        Raises:
            UserError: the first that a worker met; no worker is left running.
        """
        ...


def check_executor(executor: object) -> Executor:
    """The same object, if it has everything that `Executor` asks for.

    Raises:
        UserError: it has not; the message names what is missing.
    """
    check_members(executor, Executor, "executor")
    return cast(Executor, executor)


class WorkerExecutor:
    """An executor that starts workers of its own; subclasses write `_run`.

    Attributes:
        minimum: of each setting that is a number.
    """

    name: ClassVar[str]
    in_process: ClassVar[bool] = False
    minimum: ClassVar[dict[str, int]]

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        return minimum_errors(self)

    def rank(self) -> Rank:
        """The only rank.

        Raises:
            UserError: this process is one of several.
        """
        rank = rank_from_env()
        if rank.world_size > 1:
            raise UserError(
                f"WORLD_SIZE={rank.world_size} and executor={self.name}, which starts workers "
                "itself: set executor=local, or run it without torchrun"
            )
        return rank

    def run(
        self, job: EncodeJob, shards: list[ShardTask], factory: TokenizerFactory, report: Report
    ) -> Iterator[ShardResult]:
        """Yield each shard when it is written."""
        job = for_remote_worker(job)
        if shards:
            yield from self._run(job, shards, factory, report)

    def _run(
        self, job: EncodeJob, shards: list[ShardTask], factory: TokenizerFactory, report: Report
    ) -> Iterator[ShardResult]:
        """Yield each of at least one shard when it is written."""
        raise NotImplementedError


def rank_from_env() -> Rank:
    """The rank that torchrun (or a user's script) sets by RANK and WORLD_SIZE.

    Raises:
        UserError: the two do not fit each other.
    """
    values = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    if all(value is None for value in values.values()):
        return Rank()
    try:
        rank = Rank(*(int(value or "") for value in values.values()))
    except ValueError:
        rank = Rank(0, 0)
    if not 0 <= rank.rank < rank.world_size:
        found = ", ".join(f"{name}={value or 'nothing'}" for name, value in values.items())
        raise UserError(
            f"{found} in the environment: set RANK from 0 to WORLD_SIZE - 1, or neither"
        )
    return rank


class Worker:
    """A tokenizer and the job it encodes for, in any process."""

    def __init__(
        self, job: EncodeJob, factory: TokenizerFactory, index: int = 0, num_threads: int = 0
    ) -> None:
        """Keep the job; the tokenizer is loaded with the first shard.

        Args:
            job: The job.
            factory: Builds the tokenizer.
            index: Of the worker; the factory may choose a device by it.
            num_threads: Threads of torch; 0 leaves them as they are.
        """
        self.job, self.factory, self.index = job, factory, index
        self.tokenizer: Tokenizer | None = None
        if num_threads:
            torch.set_num_threads(num_threads)

    def encode(self, shard: ShardTask, report: Report = lambda count: None) -> ShardResult:
        """Write a shard.

        Raises:
            UserError: for every error that a user can fix.
        """
        if self.tokenizer is None:
            self.tokenizer = self.factory(self.index)
        try:
            return encode_shard(self.job, shard, self.tokenizer, report)
        except OSError as error:
            raise to_user_error(error, f"{self.job.output_dir}/{self.job.title(shard)}") from error

    def run_safely(
        self, shard: ShardTask, report: Report = lambda count: None
    ) -> ShardResult | UserError:
        """Write a shard; a UserError is returned, so that it can be sent to another process."""
        try:
            return self.encode(shard, report)
        except UserError as error:
            return type(error)(*error.args)  # without the traceback, which cannot be pickled


def for_remote_worker(job: EncodeJob) -> EncodeJob:
    """The job with absolute paths, for processes that may have another working directory.

    Raises:
        UserError: input or output is memory://.
    """
    for root in (job.input_dir, job.output_dir):
        if isinstance(root, RemotePath) and root.url.startswith("memory:"):
            raise UserError(f"{root} is in the memory of one process: set executor=local")
    return replace(
        job, input_dir=absolute_path(job.input_dir), output_dir=absolute_path(job.output_dir)
    )


def threads_per_worker(num_workers: int) -> int:
    """Threads of torch per worker, when those of this process are divided among the workers."""
    return max(1, torch.get_num_threads() // num_workers)


def unwrap(outcome: ShardResult | UserError) -> ShardResult:
    """The result that a worker returned.

    Raises:
        UserError: that the worker returned instead.
    """
    if isinstance(outcome, UserError):
        raise outcome
    return outcome
