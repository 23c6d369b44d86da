"""Encoding by arrays of SLURM jobs, submitted by submitit."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from delvm.data.encode.executors.base import (
    TokenizerFactory,
    Worker,
    WorkerExecutor,
    unwrap,
)
from delvm.data.encode.shard_task import EncodeJob, Report, ShardResult, ShardTask
from delvm.data.executor_settings import require_package
from delvm.data.shards.writer import missing_shards
from delvm.errors import UserError


@dataclass
class SubmititJobs(WorkerExecutor):
    """SLURM jobs, each with its own tokenizer, all in one array.

    A job that reaches its time limit, or is preempted, is queued again and continues.

    Attributes:
        workers: number of jobs; the shards are divided among them when they are submitted.
        log_dir: directory of submitit's logs and pickles, on a disk that all machines share.
        cluster: "slurm", or "local": processes of this machine.
        partition: of SLURM; None is its default.
        timeout_min: time limit of a job, in minutes.
        cpus_per_worker, gpus_per_worker: resources of each job; GPUs are only asked for if the
            device is not cpu.
        mem_gb: memory of a job in GB; None is SLURM's default.
        slurm_additional: any other options of sbatch, such as {account: vision}.
        poll_s: seconds between two checks of the jobs' progress.
    """

    name: ClassVar[str] = "submitit"
    minimum: ClassVar[dict[str, int]] = dict.fromkeys(
        ("workers", "cpus_per_worker", "timeout_min", "mem_gb"), 1
    )
    workers: int = 8
    log_dir: str = "outputs/submitit"
    cluster: str = "slurm"
    partition: str | None = None
    timeout_min: int = 240
    cpus_per_worker: int = 4
    gpus_per_worker: int = 1
    mem_gb: int | None = None
    slurm_additional: dict[str, str] = field(default_factory=dict)
    poll_s: float = 10.0

    def _run(
        self, job: EncodeJob, shards: list[ShardTask], factory: TokenizerFactory, report: Report
    ) -> Iterator[ShardResult]:
        submitter = self._submitter(require_package("submitit", self.name), factory)
        num_workers = min(self.workers, len(shards))
        num_threads = 0 if self.cluster == "local" else self.cpus_per_worker
        jobs = submitter.map_array(
            _JobFunction(job, factory, num_threads),
            [shards[index::num_workers] for index in range(num_workers)],
        )
        try:
            yield from self._wait(job, shards, jobs, report)
        except BaseException:
            for each in jobs:
                each.cancel(check=False)
            raise

    def _submitter(self, submitit: Any, factory: TokenizerFactory) -> Any:
        """submitit's executor with the settings.

        Raises:
            UserError: there is no such cluster, or it does not accept a setting.
        """
        options: dict[str, Any] = {
            f"slurm_{name}": value for name, value in self.slurm_additional.items()
        }
        if self.partition is not None:
            options["slurm_partition"] = self.partition
        if self.mem_gb is not None:
            options["mem_gb"] = self.mem_gb
        try:
            submitter = submitit.AutoExecutor(folder=self.log_dir, cluster=self.cluster)
            submitter.update_parameters(
                name="delvm-encode",
                timeout_min=self.timeout_min,
                cpus_per_task=self.cpus_per_worker,
                gpus_per_node=self.gpus_per_worker if factory.device != "cpu" else 0,
                slurm_array_parallelism=self.workers,
                **options,
            )
        except (RuntimeError, ValueError, NameError, AssertionError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"executor.cluster={self.cluster} cannot be used: {reason}: set "
                "executor.cluster=slurm where sbatch is installed, or executor.cluster=local, and "
                "executor.slurm_additional to options of sbatch"
            ) from error
        return submitter

    def _wait(
        self, job: EncodeJob, shards: list[ShardTask], jobs: list[Any], report: Report
    ) -> Iterator[ShardResult]:
        """Poll the shards for progress, and the jobs for results."""
        waiting, missing = list(jobs), set(shards)
        while waiting:
            for each in [each for each in waiting if each.done()]:
                waiting.remove(each)
                for outcome in self._outcomes(each):
                    yield unwrap(outcome)
            written = missing - _missing_of(job, missing)
            missing -= written
            report(sum(map(job.count, written)))
            if waiting:
                time.sleep(self.poll_s)

    def _outcomes(self, job: Any) -> list[ShardResult | UserError]:
        """The results of a SLURM job.

        Raises:
            UserError: it ended without a result; the message gives the path of its log.
        """
        error = job.exception()
        if error is None:
            outcomes: list[ShardResult | UserError] = job.result()
            return outcomes
        log_file = Path(job.paths.stderr)
        raise UserError(
            f"job {job.job_id} ended without a result, its log is {log_file}: run the same again, "
            "finished shards are kept"
        ) from error


def _missing_of(job: EncodeJob, shards: set[ShardTask]) -> set[ShardTask]:
    """Those of the shards that are not written yet; lists each directory once."""
    missing = {}
    for number in {shard.manifest for shard in shards}:
        missing[number] = set(missing_shards(job.output_dir, job.token_manifests[number]))
    return {shard for shard in shards if shard.index in missing[shard.manifest]}


class _JobFunction:
    """What a SLURM job runs: its shards, one after another."""

    def __init__(self, job: EncodeJob, factory: TokenizerFactory, num_threads: int) -> None:
        self.job, self.factory, self.num_threads = job, factory, num_threads

    def __call__(self, shards: list[ShardTask]) -> list[ShardResult | UserError]:
        """The outcome of each shard, up to the first that failed."""
        worker = Worker(self.job, self.factory, 0, self.num_threads)
        outcomes: list[ShardResult | UserError] = []
        for shard in shards:
            outcome = worker.run_safely(shard)
            outcomes.append(outcome)
            # Printed to the job's own log.
            if isinstance(outcome, UserError):
                print(f"delvm: {outcome}", flush=True)
                break
            print(f"{self.job.title(shard)}: {outcome.seconds:.1f} s", flush=True)
        return outcomes

    def checkpoint(self, shards: list[ShardTask]) -> Any:
        """What submitit queues at the time limit: the same, as shards that exist are kept."""
        import submitit

        return submitit.helpers.DelayedSubmission(self, shards)
