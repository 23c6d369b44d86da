"""This process, or every so many-th shard where torchrun has started several."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from delvm.data.encode.executors.base import Engine, Factory, Share, Worker, ranked
from delvm.data.encode.shard_task import Done, Job, Piece, Report


@dataclass
class Local(Engine):
    """One piece after the other, in this process."""

    name: str = "local"

    def share(self) -> Share:
        """By RANK and WORLD_SIZE, where they are set."""
        return ranked()

    def run(
        self, job: Job, pieces: list[Piece], factory: Factory, report: Report
    ) -> Iterator[Done]:
        """Each piece as it is done."""
        worker = Worker(job, factory, local_rank())
        for piece in pieces:
            yield worker.encode(piece, report)


def local_rank() -> int:
    """The number of this process among those that torchrun has started on this machine."""
    given = os.environ.get("LOCAL_RANK", "0")
    return int(given) if given.isdigit() else 0
