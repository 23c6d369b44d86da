"""Actors of Ray, on this machine or on a cluster, and how they share work."""

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from delvm.data.executor_settings import minimum_errors, num_cpus, require_package
from delvm.errors import UserError

# What is passed are files and their names, so Ray's own object store needs next to nothing.
STORE_BYTES = 100 << 20

T = TypeVar("T")


@dataclass
class RayCluster:
    """Actors, each with its own models; the work of an actor that dies is given to another.

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

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        return minimum_errors(self)

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """The module ray, connected; what was started here is stopped at the end.

        Raises:
            UserError: Ray is not installed, or the cluster cannot be reached.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray = require_package("ray", self.name)
        started_here = not ray.is_initialized()
        if started_here:
            self._start(ray)
        try:
            yield ray
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

    @contextmanager
    def actors(
        self, ray: Any, worker: type, arguments: tuple[Any, ...], device: str, max_workers: int
    ) -> Iterator[list[Any]]:
        """The actors, which are stopped at the end.

        Args:
            worker: their class.
            arguments: of the class; the first one may be large.
            device: "cpu" asks for no GPU.
            max_workers: more are not started.

        Raises:
            UserError: the cluster has no room for them.
        """
        resources = ray.cluster_resources()
        gpus = resources.get("GPU", 0) if device != "cpu" else 0
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
        remote = ray.remote(worker).options(
            num_cpus=self.cpus_per_worker,
            num_gpus=self.gpus_per_worker if gpus else 0,
            max_restarts=self.max_restarts,
            max_task_retries=self.max_restarts,
        )
        shared, *rest = arguments
        shared = ray.put(shared)
        started = [remote.remote(shared, *rest) for _ in range(min(workers, max_workers))]
        try:
            yield started
        finally:
            for actor in started:
                with suppress(Exception):  # it may be dead
                    ray.kill(actor)


def run_on_actors(
    ray: Any,
    actors: list[Any],
    items: Iterable[T],
    *,
    while_waiting: Callable[[], None] = lambda: None,
    poll_s: float | None = None,
) -> Iterator[tuple[T, Any]]:
    """Give each actor an item, and the next one when it is done, by its method `run_safely`.

    Args:
        while_waiting: called every ``poll_s`` seconds.

    Yields:
        (item, what the actor returned)

    Raises:
        UserError: all actors died.
    """
    left, idle = deque(items), deque(actors)
    busy: dict[Any, tuple[Any, T]] = {}
    while left or busy:
        while left and idle:
            actor, item = idle.popleft(), left.popleft()
            busy[actor.run_safely.remote(item)] = (actor, item)
        if not busy:
            raise UserError(
                "all of Ray's workers died, most often for lack of memory: run the same again, "
                "what is finished is kept; or set executor.workers lower"
            )
        done, _ = ray.wait([*busy], num_returns=1, timeout=poll_s)
        if not done:
            while_waiting()
            continue
        actor, item = busy.pop(done[0])
        try:
            result = ray.get(done[0])
        except ray.exceptions.RayActorError:
            left.appendleft(item)  # for the other actors: this one is not restarted
            continue
        idle.append(actor)
        yield item, result
