"""Actors of Ray, on this machine or on a cluster."""

import logging
import os
import socket
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from delvm.data.encode.executors.base import (
    Engine,
    Factory,
    Worker,
    cores,
    elsewhere,
    needs,
    result,
)
from delvm.data.encode.shard_task import Done, Job, Piece, Report
from delvm.errors import UserError

# Shards pass through files, so Ray's own store needs next to nothing.
STORE_BYTES = 100 << 20


@dataclass
class RayActors(Engine):
    """An actor with a tokenizer for each worker; the pieces of one that dies are done again.

    Attributes:
        workers: 0 is one a GPU of the cluster, or as many as its cores serve.
        address: of a cluster ("auto" is the one that this machine is part of); None starts Ray here
            and ends it afterwards.
        cpus, gpus: of each worker; gpus count where the cluster has any and device is not cpu.
        restarts: how often a worker that died is started again.
    """

    name: str = "ray"
    workers: int = 0
    address: str | None = None
    cpus: int = 1
    gpus: float = 1.0
    restarts: int = 3

    def run(
        self, job: Job, pieces: list[Piece], factory: Factory, report: Report
    ) -> Iterator[Done]:
        """Each piece as it is done."""
        job = elsewhere(job)
        if not pieces:
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = needs("ray", self.name)
        mine = not ray.is_initialized()
        if mine:
            self._start(ray)
        try:
            actors = self._actors(ray, job, factory, len(pieces))
            try:
                yield from _run(ray, actors, pieces, job, report)
            finally:
                for actor in actors:
                    with suppress(Exception):  # it may be dead
                        ray.kill(actor)
        finally:
            if mine:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        settings: dict[str, Any] = {"address": self.address}
        host, _, port = (self.address or "").rpartition("://")[2].rpartition(":")
        if self.address is None:
            wanted = max(1, self.workers) * self.cpus
            settings = {
                "address": "local",
                "num_cpus": max(cores(), wanted),
                "object_store_memory": STORE_BYTES,
                "include_dashboard": False,
            }
        try:
            if host and port.isdigit():  # Ray itself would ask for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **settings)
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"engine.address={self.address} cannot be used: {reason}: set engine.address=null "
                "to start Ray here"
            ) from error

    def _actors(self, ray: Any, job: Job, factory: Factory, most: int) -> list[Any]:
        there = ray.cluster_resources()
        gpus = there.get("GPU", 0) if factory.device != "cpu" else 0
        slots = {"cpu": int(there.get("CPU", 0) // self.cpus)}
        if gpus:
            slots["gpu"] = int(gpus / self.gpus)
        fit = min(slots.values())
        workers = self.workers or fit
        if workers > fit or not fit:
            asked = f"{self.cpus} cpus" + (f" and {self.gpus} gpus" if gpus else "")
            raise UserError(
                f"engine.workers={workers} of {asked} each, and the cluster has room for {fit}: "
                f"set engine.workers={fit or 1}, or engine.cpus"
                f"{' and engine.gpus' if gpus else ''} lower"
            )
        remote = ray.remote(Worker).options(
            num_cpus=self.cpus,
            num_gpus=self.gpus if gpus else 0,
            max_restarts=self.restarts,
            max_task_retries=self.restarts,
        )
        shared = ray.put(job)
        # Ray shows each worker its own GPU alone: to all of them it is the first.
        return [remote.remote(shared, factory, 0, self.cpus) for _ in range(min(workers, most))]


def _run(
    ray: Any, actors: list[Any], pieces: list[Piece], job: Job, report: Report
) -> Iterator[Done]:
    """Give each actor a piece, and the next one when it is done."""
    left, idle = deque(pieces), deque(actors)
    busy: dict[Any, tuple[Any, Piece]] = {}
    while left or busy:
        while left and idle:
            actor, piece = idle.popleft(), left.popleft()
            busy[actor.attempt.remote(piece)] = (actor, piece)
        if not busy:
            raise UserError(
                "all of Ray's workers died, most often for lack of memory: run the same again, "
                "what is done stays; or set engine.workers lower"
            )
        (ready,), _ = ray.wait([*busy], num_returns=1)
        actor, piece = busy.pop(ready)
        try:
            done = result(ray.get(ready))
        except ray.exceptions.RayActorError:
            left.appendleft(piece)  # for the others: this one is not started again
            continue
        idle.append(actor)
        report(job.count(piece))
        yield done
