"""Encoding by actors of Ray, on this machine or on a cluster."""

from collections.abc import Iterator
from dataclasses import dataclass

from delvm.data.encode.executors.base import TokenizerFactory, Worker, WorkerExecutor, unwrap
from delvm.data.encode.shard_task import EncodeJob, Report, ShardResult, ShardTask
from delvm.data.ray_cluster import RayCluster, run_on_actors


@dataclass
class RayActors(RayCluster, WorkerExecutor):
    """Actors, each with its own tokenizer; the shard of an actor that dies is given to another."""

    def _run(
        self, job: EncodeJob, shards: list[ShardTask], factory: TokenizerFactory, report: Report
    ) -> Iterator[ShardResult]:
        # Ray shows each worker only its own GPU, which is therefore the first to all of them.
        arguments = (job, factory, 0, self.cpus_per_worker)
        with (
            self.connected() as ray,
            self.actors(ray, Worker, arguments, factory.device, len(shards)) as actors,
        ):
            for shard, outcome in run_on_actors(ray, actors, shards):
                result = unwrap(outcome)
                report(job.count(shard))
                yield result
