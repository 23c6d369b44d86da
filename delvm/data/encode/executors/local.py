"""Encoding in this process; under torchrun, each process writes its own shards."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from delvm.data.encode.executors.base import Rank, TokenizerFactory, Worker, rank_from_env
from delvm.data.encode.shard_task import EncodeJob, Report, ShardResult, ShardTask


@dataclass
class Local:
    """One shard after another, in this process."""

    name: ClassVar[str] = "local"
    in_process: ClassVar[bool] = True

    def rank(self) -> Rank:
        """From RANK and WORLD_SIZE, where they are set."""
        return rank_from_env()

    def run(
        self, job: EncodeJob, shards: list[ShardTask], factory: TokenizerFactory, report: Report
    ) -> Iterator[ShardResult]:
        """Yield each shard when it is written."""
        worker = Worker(job, factory, local_rank())
        for shard in shards:
            yield worker.encode(shard, report)


def local_rank() -> int:
    """The rank of this process among those that torchrun has started on this machine."""
    value = os.environ.get("LOCAL_RANK", "0")
    return int(value) if value.isdigit() else 0
