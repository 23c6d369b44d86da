"""What many streams read of a corpus, counted with the readers' own order and no shards.

A run is simulated by counting. The schedule of the mixture gives the task of each sentence, its
position in the step the stream that makes it, and the windows of shards the examples that the
stream takes for it; all three by the functions that the readers call.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from delvm.data.datasets.sampler import Int64, TaskSchedule, WindowedShuffle
from delvm.data.datasets.stream_order import Position, WindowSequence, part_of_rank


@dataclass(frozen=True)
class Run:
    """How many processes read.

    Attributes:
        ranks: processes that train.
        workers: of each rank.
        batch_size: sentences of a rank in a step.
    """

    ranks: int
    workers: int
    batch_size: int

    @property
    def streams(self) -> int:
        """Workers of all ranks."""
        return self.ranks * self.workers

    @property
    def step(self) -> int:
        """Sentences in a step."""
        return self.ranks * self.batch_size


class Part(NamedTuple):
    """Examples of a window that a stream read.

    Attributes:
        window: its number, over all epochs.
        start, stop: of the examples, in the shuffled order of the window.
    """

    window: int
    start: int
    stop: int


def sentences_per_stream(schedule: TaskSchedule, run: Run, steps: Sequence[int]) -> list[Int64]:
    """How many sentences of each task every stream makes in the first steps.

    Args:
        schedule: Of the mixture.
        run: How many streams there are.
        steps: After which to count, in ascending order.

    Returns:
        (streams, tasks) for each of `steps`.
    """
    tasks = len(schedule.tasks)
    counts, found, done = np.zeros(run.streams * tasks, np.int64), [], 0
    rank, inside = np.arange(run.ranks)[:, None], np.arange(run.batch_size)
    at_once = max(1, 2**19 // run.step)
    for until in steps:
        while done < until:
            step = np.arange(done, min(done + at_once, until))[:, None, None]
            begin = step * run.step
            part = part_of_rank(rank, run.ranks, begin)  # (steps, ranks, 1)
            task_ids, _ = schedule((begin + part * run.batch_size + inside).reshape(-1))
            stream = rank * run.workers + step % run.workers
            key = np.repeat(stream.reshape(-1), run.batch_size) * tasks + task_ids
            counts += np.bincount(key, minlength=len(counts))
            done += len(step)
        found.append(counts.reshape(run.streams, tasks).copy())
    return found


class WindowSizes:
    """Examples in each window of a task, by epoch."""

    def __init__(self, shuffle: WindowedShuffle) -> None:
        self.shuffle = shuffle
        self._known: dict[int, list[int]] = {}

    def __call__(self, window: int) -> int:
        """Examples in a window, by its number over all epochs."""
        epoch, number = divmod(window, self.shuffle.num_windows)
        if epoch not in self._known:
            starts = self.shuffle._epoch(epoch)[1]
            self._known[epoch] = np.diff(starts, append=self.shuffle.num_examples).tolist()
        return self._known[epoch][number]


def read(
    sequence: WindowSequence, sizes: WindowSizes, position: Position, streams: int, count: int
) -> tuple[Position, list[Part]]:
    """What a stream reads that takes so many examples, and where it is then."""
    parts = []
    turns = sequence.windows_from(position, streams)
    while count:
        turn = next(turns)
        start, size = turn.start.example, sizes(turn.window)
        stop = min(size, start + count)
        if stop > start:
            parts.append(Part(turn.window, start, stop))
        count -= stop - start
        position = turn.after if stop == size else Position(turn.start.element, stop)
    return position, parts


def read_all(
    sequence: WindowSequence,
    sizes: WindowSizes,
    positions: Sequence[Position],
    counts: Sequence[int],
) -> tuple[list[Position], list[Part]]:
    """What all streams read that take so many examples each, and where they are then."""
    after, parts = [], []
    for position, count in zip(positions, counts, strict=True):
        end, mine = read(sequence, sizes, position, len(positions), count)
        after.append(end)
        parts += mine
    return after, parts


def count_reads(
    shuffle: WindowedShuffle, parts: Iterable[Part], shards: Int64
) -> npt.NDArray[np.uint16]:
    """How often each example of some shards was read.

    Args:
        shuffle: Of the task.
        parts: What was read.
        shards: (s,) numbers of different shards.

    Returns:
        (n,) for the examples of the first shard, then those of the second, and so on.
    """
    sizes = shuffle.counts[shards]
    reads = np.zeros(int(sizes.sum()), np.uint16)
    base = np.full(len(shuffle.counts), -1)  # of each shard, where its examples are in `reads`
    base[shards] = np.cumsum(sizes) - sizes
    by_window = defaultdict(list)
    for window, start, stop in parts:
        by_window[window].append(slice(start, stop))
    for window in sorted(by_window):
        epoch, number = divmod(window, shuffle.num_windows)
        step = shuffle.window_shards
        if (base[shuffle._epoch(epoch)[0][number * step : (number + 1) * step]] < 0).all():
            continue
        files, order = shuffle.window(epoch, number)
        counts = shuffle.counts[files]
        inside = np.concatenate([np.arange(count) for count in counts.tolist()])
        first = np.repeat(base[files], counts)
        example = np.where(first < 0, -1, first + inside)
        for piece in by_window[window]:
            found = example[order[piece]]
            reads[found[found >= 0]] += 1
    return reads


def lost_and_repeated(
    sizes: WindowSizes, parts: Iterable[Part], sequence: WindowSequence
) -> tuple[int, int]:
    """Examples that a new number of streams would not read, and those that it would read again.

    Args:
        sizes: Of the windows.
        parts: What was read before.
        sequence: What is left, for any number of streams.
    """
    have: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for window, start, stop in parts:
        have[window].append((start, stop))
    for window, example in sequence.leftovers:
        have[window].append((example, sizes(window)))
    lost = repeated = 0
    for window in range(sequence.base):
        end = 0
        for start, stop in sorted(have[window]):
            lost += max(0, start - end)
            repeated += max(0, min(stop, end) - start)
            end = max(end, stop)
        lost += sizes(window) - end
    # Of later windows nothing may have been read: they are all read from here on.
    repeated += sum(b - a for window in have if window >= sequence.base for a, b in have[window])
    return lost, repeated
