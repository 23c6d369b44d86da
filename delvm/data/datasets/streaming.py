"""What streams of sentences and of images have in common: complete shards in sequence.

For corpora that do not fit on a disk: nothing is kept of what was read. Each task is a WebDataset
pipeline, whose stages are in `delvm.data.datasets.stream_stages`; the schedule of the mixture takes
the tasks in turn and makes batches of their examples.

Each epoch has the examples of the indexed reader, and the tasks follow each other in the same
order. Which examples meet in a batch depends on the number of streams, one for each worker of each
rank, since a shard is read by one of them alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from delvm.data.datasets.images import ImageDataset
from delvm.data.datasets.sampler import Int64, ResumableBatchSampler, out_of_range
from delvm.data.datasets.sentences import SentenceDataset
from delvm.data.datasets.stream_order import Position, WindowSequence, part_of_rank
from delvm.data.datasets.stream_stages import Decoder, ExampleStream, ShardSource, example_stream
from delvm.data.shards.fetch import MAX_SHARDS_IN_A_ROW, Rejects, ShardFetcher
from delvm.data.shards.shard_list import TaskShards


@dataclass
class StreamSettings:
    """How shards are fetched.

    Attributes:
        shards: Task -> pattern of its shards, where they are not in ``path``; see `list_shards`.
        retries: Attempts to fetch a shard after the first one.
        timeout_s: Seconds that an attempt may take.
        rejects: File that lists what failed; None = none.
    """

    shards: dict[str, str] = field(default_factory=dict)
    retries: int = 3
    timeout_s: float = 60.0
    rejects: str | None = None

    def source(self, shards: TaskShards, decode: Decoder, unit: int = 1) -> ShardSource:
        """The shards of a task, each example of which is so many of the stream's."""
        rejects = Rejects(shards.manifest.task, "shard", self.rejects, MAX_SHARDS_IN_A_ROW)
        counts = [unit * shard["count"] for shard in shards.manifest.shards]
        fetcher = ShardFetcher(rejects, self.retries, self.timeout_s)
        return ShardSource(shards.paths, counts, fetcher, decode)


def stream_errors(config: StreamSettings) -> list[str]:
    """Errors of the settings, one line each."""
    errors = out_of_range(config, ("retries",), 0)
    if not config.timeout_s > 0:
        errors.append(f"timeout_s={config.timeout_s} is not above 0: set it to 60")
    return errors


@dataclass
class StreamState:
    """Where all streams of a run are.

    Attributes:
        next_index: Of the next item, over all ranks.
        sequences: Of each task of the mixture.
        positions: (streams, tasks, 2) int64, a `Position` for each task of the stream
            rank * workers + worker.
        first_worker: The worker whose turn it is.
    """

    next_index: int
    sequences: list[WindowSequence]
    positions: Int64
    first_worker: int = 0

    @classmethod
    def begin(
        cls, sequences: list[WindowSequence], streams: int, next_index: int = 0
    ) -> "StreamState":
        """At the beginning of the sequences."""
        positions = np.array([each.start(streams) for each in sequences], np.int64)
        return cls(next_index, sequences, positions.transpose(1, 0, 2).copy())

    def regroup(self, streams: int) -> "StreamState":
        """The same for another number of streams: nothing is lost or read twice."""
        sequences = [
            sequence.regroup([Position(*each) for each in self.positions[:, task].tolist()])
            for task, sequence in enumerate(self.sequences)
        ]
        return StreamState.begin(sequences, streams, self.next_index)


class StreamingDataset(IterableDataset[dict[str, Any]]):
    """Endless training items from streams; what it yields is a complete batch.

    A batch has the keys of the indexed data set, and "stream": the worker that made it, and the
    positions (tasks, 2) where that worker is after it.
    """

    def __init__(
        self, layout: SentenceDataset | ImageDataset, sources: Mapping[str, ShardSource]
    ) -> None:
        """Begin with the first item.

        Args:
            layout: The indexed data set over the same shards, for its schedule and its order.
            sources: The shards of each task.
        """
        super().__init__()
        self.layout, self.sources = layout, sources
        self.num_workers = max(1, layout.config.num_workers)
        self.rank, self.world_size = 0, 1
        self.state = self.begin()

    def make_batch(self, indices: Int64, streams: Sequence[ExampleStream]) -> dict[str, Any]:
        """The items of these indices (B,), from the streams of all tasks of the mixture."""
        raise NotImplementedError

    def begin(self) -> StreamState:
        """The state of the first item."""
        sequences = [WindowSequence() for _ in self.layout.shuffles]
        return StreamState.begin(sequences, self.world_size * self.num_workers)

    @property
    def mixed_tasks(self) -> list[str]:
        """The tasks of the mixture, in its order."""
        return self.layout.schedule.tasks

    @property
    def order(self) -> dict[str, Any]:
        """All that the order depends on, next to the number of streams."""
        return self.layout.order | {"reader": "streaming"}

    def mixture(self, next_index: int) -> dict[str, float]:
        """Fraction of each task among the items before this one; as of the indexed data set."""
        return self.layout.mixture(next_index)

    def __len__(self) -> int:
        """Effectively infinite; Lightning loses a batch at resume if a loader has no length."""
        return len(ResumableBatchSampler(0, 1))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        number, workers = (0, 1) if info is None else (info.id, info.num_workers)
        assert workers == self.num_workers
        # A loader asks its first worker first, whichever stream has the turn.
        worker = (self.state.first_worker + number) % workers
        stream = self.rank * workers + worker
        streams = [self.open_stream(task, stream) for task in range(len(self.layout.shuffles))]
        size = self.layout.config.batch_size
        step = size * self.world_size
        begin = self.state.next_index + number * step
        while True:
            first = begin + size * part_of_rank(self.rank, self.world_size, begin)
            batch = self.make_batch(np.arange(first, first + size), streams)
            positions = np.array([each.position for each in streams], np.int64)
            # As if the part were that of the number of the rank: the step ends at the same index.
            next_index = begin + (self.rank + 1) * size
            yield batch | {"next_index": next_index, "stream": (worker, positions)}
            begin += workers * step

    def open_stream(self, task: int, stream: int) -> ExampleStream:
        """The examples of one task of the mixture that a stream reads."""
        state = self.state
        return example_stream(
            self.sources[self.mixed_tasks[task]],
            self.layout.shuffles[task],
            state.sequences[task],
            Position(*state.positions[stream, task].tolist()),
            len(state.positions),
        )
