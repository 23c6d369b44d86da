"""The stages between the shards of one task and its shuffled examples, for a WebDataset pipeline.

    windows of shards, split by node and worker    `WindowSequence.windows_from`
    -> shards of an epoch, shuffled                `shuffle_shards`
    -> fetched, tar members, decoded               `read_shards`
    -> shuffle buffer                              `shuffle_examples`
    -> one window ahead of its use                 `read_ahead`

A window is a few shards. Memory holds two of them: the one in use, and the next one.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from webdataset import DataPipeline

from delvm.data.datasets.sampler import Int64, WindowedShuffle
from delvm.data.datasets.stream_order import Position, Turn, WindowSequence
from delvm.data.shards.fetch import ShardFetcher, ShardPath, read_ahead

Examples = npt.NDArray[Any]  # (n, ...), the examples of a task


class Decoder(Protocol):
    """What makes examples of a shard's bytes."""

    def empty(self, count: int) -> Examples:
        """An array for so many examples."""
        ...

    def __call__(self, path: ShardPath, contents: bytes, count: int) -> Examples:
        """The examples of a shard.

        Args:
            path: Of the shard, for messages.
            contents: Of its tar.
            count: Examples that it must hold.

        Raises:
            UserError: It is damaged, or differs from its manifest.
        """
        ...


@dataclass(frozen=True)
class ShardSource:
    """The shards of one task, and how they are read.

    Attributes:
        paths, counts: Of each shard, its path and how many examples it holds.
        fetch: Gets a shard, or rejects it.
        decode: Makes examples of it.
    """

    paths: Sequence[ShardPath]
    counts: Sequence[int]
    fetch: ShardFetcher
    decode: Decoder


class ShuffledShards(NamedTuple):
    """The shards of a window, not yet read.

    Attributes:
        turn: Which window it is.
        epoch: That it belongs to.
        shards: (s,) the numbers of its shards.
        order: (n,) its examples in shuffled order, numbered through these shards.
    """

    turn: Turn
    epoch: int
    shards: Int64
    order: npt.NDArray[np.int32]


class ReadShards(NamedTuple):
    """The shards of a window in memory.

    Attributes:
        window: Which shards.
        examples: (n, ...) in the order of the shards.
        is_there: (n,) whether the shard of an example was read; else the example is undefined.
    """

    window: ShuffledShards
    examples: Examples
    is_there: npt.NDArray[np.bool_]


class Window(NamedTuple):
    """The examples of a window in memory, shuffled.

    Attributes:
        turn: Which window it is.
        epoch: That it belongs to.
        examples: (n, ...) in the order of the shards.
        rows: (m,) which of them to take, in this order, from the position of the stream on.
        ends: (m,) position in the window after each of them.
    """

    turn: Turn
    epoch: int
    examples: Examples
    rows: Int64
    ends: Int64


def example_stream(
    source: ShardSource,
    shuffle: WindowedShuffle,
    sequence: WindowSequence,
    position: Position,
    streams: int,
) -> "ExampleStream":
    """The examples of one task that one stream reads.

    Args:
        source: The shards of the task.
        shuffle: Their order in each epoch.
        sequence: The windows that all streams share.
        position: Where this stream begins.
        streams: How many there are.
    """
    pipeline = DataPipeline(
        partial(sequence.windows_from, position, streams),
        partial(shuffle_shards, shuffle=shuffle),
        partial(read_shards, source=source),
        shuffle_examples,
        read_ahead,
    )
    # Not iter(pipeline), whose loop would still hold a window when the one after the next begins.
    return ExampleStream(pipeline.iterator1(), position)


def shuffle_shards(source: Iterable[Turn], shuffle: WindowedShuffle) -> Iterator[ShuffledShards]:
    """Stage: the shards of each window by (seed, epoch)."""
    for turn in source:
        epoch, number = divmod(turn.window, shuffle.num_windows)
        yield ShuffledShards(turn, epoch, *shuffle.window(epoch, number))


def read_shards(windows: Iterable[ShuffledShards], source: ShardSource) -> Iterator[ReadShards]:
    """Stage: fetch and decode the shards of each window."""
    for window in windows:
        examples = source.decode.empty(len(window.order))
        is_there = np.zeros(len(window.order), bool)
        first = 0
        for number in window.shards.tolist():
            path, count = source.paths[number], source.counts[number]
            decode = partial(source.decode, path, count=count)
            found = source.fetch(path, decode, window.epoch)
            if found is not None:
                examples[first : first + count] = found
                is_there[first : first + count] = True
            first += count
        yield ReadShards(window, examples, is_there)


def shuffle_examples(windows: Iterable[ReadShards]) -> Iterator[Window]:
    """Stage: the shuffle buffer, which holds one window.

    A rejected shard leaves gaps in the order: all other examples keep their positions.
    """
    for (turn, epoch, _, order), examples, is_there in windows:
        left = order[turn.start.example :]
        kept = np.flatnonzero(is_there[left])
        rows, ends = left[kept].astype(np.int64), turn.start.example + kept + 1
        yield Window(turn, epoch, examples, rows, ends)


class ExampleStream:
    """The examples of one task that one stream reads, one after another.

    Attributes:
        position: Of the example that comes next.
        epoch: Of the examples that were taken last.
    """

    def __init__(self, windows: Iterable[Window], position: Position) -> None:
        """Read from windows, the first of which begins at the position."""
        self.position, self.epoch = position, 0
        self._windows, self._next = iter(windows), 0
        self._window: Window | None = None

    def _take_from_window(self, most: int) -> Examples:
        """The next examples (n, ...) of one window, at least one and at most so many."""
        while self._window is None or self._next == len(self._window.rows):
            self._window = None  # freed before the next one is waited for
            self._window, self._next = next(self._windows), 0
        window = self._window
        rows = window.rows[self._next : self._next + most]
        self._next += len(rows)
        if self._next < len(window.rows):
            end = int(window.ends[self._next - 1])
            self.position = Position(window.turn.start.element, end)
        else:
            self.position = window.turn.after
        self.epoch = window.epoch
        return window.examples[rows]

    def take(self, count: int) -> Examples:
        """The next examples (count, ...)."""
        parts = [self._take_from_window(count)]
        while missing := count - sum(map(len, parts)):
            parts.append(self._take_from_window(missing))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
