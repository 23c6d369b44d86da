"""Encoding by actors of Ray, on this machine or on a cluster."""

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, ClassVar

from delvm.data.encode.executors.base import (
    TokenizerFactory,
    Worker,
    WorkerExecutor,
    num_cpus,
    require_package,
    unwrap,
)
from delvm.data.encode.shard_task import EncodeJob, Report, ShardResult, ShardTask
from delvm.errors import UserError

# Shards are passed as files, so Ray's own object store needs next to nothing.
STORE_BYTES = 100 << 20


@dataclass
class RayActors(WorkerExecutor):
    """Actors, each with its own tokenizer; the shard of an actor that dies is given to another.

    Attributes:
        workers: number of actors; 0 is one per GPU of the cluster, or as many as its cores allow.
        address: of a cluster ("auto" is the one that this machine belongs to); None starts Ray on
            this machine and stops it afterwards.
        cpus_per_worker, gpus_per_worker: resources of each actor; GPUs are only asked for if the
            cluster has any and the device is not cpu.
        max_restarts: how often an actor that died is started again.
    """

    name: ClassVar[str] = "ray"
    minimum: ClassVar[dict[str, int]] = {"workers": 0, "cpus_per_worker": 1, "max_restarts": 0}
    workers: int = 0
    address: str | None = None
    cpus_per_worker: int = 1
    gpus_per_worker: float = 1.0
    max_restarts: int = 3

    def _run(
        self, job: EncodeJob, shards: list[ShardTask], factory: TokenizerFactory, report: Report
    ) -> Iterator[ShardResult]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = require_package("ray", self.name)
        started_here = not ray.is_initialized()
        if started_here:
            self._start(ray)
        try:
            actors = self._actors(ray, job, factory, len(shards))
            try:
                yield from _encode_by(ray, actors, shards, job, report)
            finally:
                for actor in actors:
                    with suppress(Exception):  # it may be dead
                        ray.kill(actor)
        finally:
            if started_here:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        """Connect to the cluster, or start Ray here.

        Raises:
            UserError: the cluster cannot be reached.
        """
        settings: dict[str, Any] = {"address": self.address}
        host, _, port = (self.address or "").rpartition("://")[2].rpartition(":")
        if self.address is None:
            settings = {
                "address": "local",
                "num_cpus": max(num_cpus(), max(1, self.workers) * self.cpus_per_worker),
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
            }
        try:
            if host and port.isdigit():  # Ray itself would retry for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"executor.address={self.address} cannot be used: {reason}: set "
                "executor.address=null to start Ray here"
            ) from error

    def _actors(
        self, ray: Any, job: EncodeJob, factory: TokenizerFactory, max_workers: int
    ) -> list[Any]:
        """The actors.

        Raises:
            UserError: the cluster has no room for them.
        """
        resources = ray.cluster_resources()
        gpus = resources.get("GPU", 0) if factory.device != "cpu" else 0
        slots = [int(resources.get("CPU", 0) // self.cpus_per_worker)]
        if gpus:
            slots.append(int(gpus / self.gpus_per_worker))
        room = min(slots)
        workers = self.workers or room
        if workers > room or not room:
            each = f"{self.cpus_per_worker} CPUs"
            each += f" and {self.gpus_per_worker} GPUs" if gpus else ""
            raise UserError(
                f"executor.workers={workers} of {each} each, and the cluster has room for {room}: "
                f"set executor.workers={room or 1}, or executor.cpus_per_worker"
                f"{' and executor.gpus_per_worker' if gpus else ''} lower"
            )
        remote = ray.remote(Worker).options(
            num_cpus=self.cpus_per_worker,
            num_gpus=self.gpus_per_worker if gpus else 0,
            max_restarts=self.max_restarts,
            max_task_retries=self.max_restarts,
        )
        shared = ray.put(job)
        # Ray shows each worker only its own GPU, which is therefore the first to all of them.
        return [
            remote.remote(shared, factory, 0, self.cpus_per_worker)
            for _ in range(min(workers, max_workers))
        ]


def _encode_by(
    ray: Any, actors: list[Any], shards: list[ShardTask], job: EncodeJob, report: Report
) -> Iterator[ShardResult]:
    """Give each actor a shard, and the next one when it is done."""
    left, idle = deque(shards), deque(actors)
    busy: dict[Any, tuple[Any, ShardTask]] = {}
    while left or busy:
        while left and idle:
            actor, shard = idle.popleft(), left.popleft()
            busy[actor.run_safely.remote(shard)] = (actor, shard)
        if not busy:
            raise UserError(
                "all of Ray's workers died, most often for lack of memory: run the same again, "
                "finished shards are kept; or set executor.workers lower"
            )
        (ready,), _ = ray.wait([*busy], num_returns=1)
        actor, shard = busy.pop(ready)
        try:
            result = unwrap(ray.get(ready))
        except ray.exceptions.RayActorError:
            left.appendleft(shard)  # for the other actors: this one is not restarted
            continue
        idle.append(actor)
        report(job.count(shard))
        yield result
