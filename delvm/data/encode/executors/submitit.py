"""Arrays of SLURM jobs, by submitit."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from delvm.data.encode.executors.base import Engine, Factory, Worker, elsewhere, needs, result
from delvm.data.encode.shard_task import Done, Job, Piece, Report
from delvm.data.shards.writer import missing_shards
from delvm.errors import UserError


@dataclass
class SubmititJobs(Engine):
    """A job with a tokenizer for each worker, all in one array.

    A job that runs into its time limit, or is preempted, is queued again and goes on.

    Attributes:
        workers: jobs; the pieces are dealt out to them when they are submitted.
        folder: of submitit's logs and pickles, which all machines see.
        cluster: "slurm", or "local": processes of this machine.
        partition: of SLURM; None is its default.
        timeout: of a job, in minutes.
        cpus, gpus: of a job; gpus count where device is not cpu.
        memory: of a job in GB; None is SLURM's default.
        slurm: any other option of sbatch, as {account: vision}.
        poll: seconds between two looks at how far the jobs are.
    """

    name: str = "submitit"
    workers: int = 8
    folder: str = "outputs/submitit"
    cluster: str = "slurm"
    partition: str | None = None
    timeout: int = 240
    cpus: int = 4
    gpus: int = 1
    memory: int | None = None
    slurm: dict[str, str] = field(default_factory=dict)
    poll: float = 10.0

    def run(
        self, job: Job, pieces: list[Piece], factory: Factory, report: Report
    ) -> Iterator[Done]:
        """Each piece when the job that wrote it has ended."""
        job = elsewhere(job)
        if not pieces:
            return
        executor = self._executor(needs("submitit", self.name), factory)
        workers = min(self.workers, len(pieces))
        shares = [pieces[number::workers] for number in range(workers)]
        jobs = executor.map_array(
            _Batch(job, factory, 0 if self.cluster == "local" else self.cpus), shares
        )
        try:
            yield from self._wait(job, pieces, jobs, report)
        except BaseException:
            for each in jobs:
                each.cancel(check=False)
            raise

    def _executor(self, submitit: Any, factory: Factory) -> Any:
        """Where to submit, with the settings.

        Raises:
            UserError: there is no such place, or it takes no such setting.
        """
        gpus = self.gpus if factory.device != "cpu" else 0
        others: dict[str, Any] = {f"slurm_{name}": value for name, value in self.slurm.items()}
        if self.partition is not None:
            others["slurm_partition"] = self.partition
        if self.memory is not None:
            others["mem_gb"] = self.memory
        try:
            executor = submitit.AutoExecutor(folder=self.folder, cluster=self.cluster)
            executor.update_parameters(
                name="delvm-encode",
                timeout_min=self.timeout,
                cpus_per_task=self.cpus,
                gpus_per_node=gpus,
                slurm_array_parallelism=self.workers,
                **others,
            )
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"engine.cluster={self.cluster} cannot be used: {reason}: set engine.cluster=slurm "
                "where sbatch is, or engine.cluster=local, and engine.slurm to what sbatch takes"
            ) from error
        return executor

    def _wait(
        self, job: Job, pieces: list[Piece], jobs: list[Any], report: Report
    ) -> Iterator[Done]:
        """Look at the shards for progress, and at the jobs for results."""
        waiting, unseen = list(jobs), set(pieces)
        while waiting:
            for each in [each for each in waiting if each.done()]:
                waiting.remove(each)
                for outcome in self._outcomes(each):
                    yield result(outcome)
            seen = unseen - _missing(job, unseen)
            unseen -= seen
            report(sum(map(job.count, seen)))
            if waiting:
                time.sleep(self.poll)

    def _outcomes(self, job: Any) -> list[Done | UserError]:
        """What a job gave back.

        Raises:
            UserError: it ended without a result; the message says where its log is.
        """
        error = job.exception()
        if error is None:
            found: list[Done | UserError] = job.result()
            return found
        log = Path(job.paths.stderr)
        raise UserError(
            f"job {job.job_id} ended without a result, its log is {log}: run the same again, what "
            "is done stays"
        ) from error


def _missing(job: Job, pieces: set[Piece]) -> set[Piece]:
    """Those whose shards are not there yet; one listing a folder."""
    there = {}
    for number in {piece.plan for piece in pieces}:
        there[number] = set(missing_shards(job.output, job.plans[number]))
    return {piece for piece in pieces if piece.number in there[piece.plan]}


class _Batch:
    """What a job runs: its pieces, one after the other."""

    def __init__(self, job: Job, factory: Factory, threads: int) -> None:
        self.job, self.factory, self.threads = job, factory, threads

    def __call__(self, pieces: list[Piece]) -> list[Done | UserError]:
        """What became of each piece, up to the first that failed."""
        worker, outcomes = Worker(self.job, self.factory, 0, self.threads), []
        for piece in pieces:
            outcomes.append(worker.attempt(piece))
            said = outcomes[-1]
            if isinstance(said, UserError):
                print(f"delvm: {said}", flush=True)
                break
            print(f"{self.job.title(piece)}: {said.seconds:.1f} s", flush=True)
        return outcomes

    def checkpoint(self, pieces: list[Piece]) -> Any:
        """What submitit queues when time is up: the same, as shards that are there are kept."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, pieces)
