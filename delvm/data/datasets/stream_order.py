"""Which windows of shards each stream reads, and where it is: the bookkeeping of a resume.

A window is a few shards of one task that are shuffled together. The windows of all epochs are
numbered through: window n is window n % W of epoch n // W, for W windows an epoch. Each stream (one
worker process of one rank) takes every S-th of them, for S streams, so that

- the windows of an epoch hold each of its examples exactly once, whoever reads them;
- no shard is fetched by two streams in the same epoch;
- a task with fewer windows than there are streams is read by all of them, in epochs of their own.

A stream is at an element of its sequence and an example within it, two numbers per task. Where a
run continues with another number of streams, the windows that are left are dealt out again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from delvm.data.datasets.sampler import SCHEDULE_PERIOD, Int64

Index = TypeVar("Index", int, Int64)


def part_of_rank(rank: Index, world_size: int, step_begin: Index) -> Index:
    """Which part of the items of a step a rank makes, of `world_size` equal parts.

    The ranks move on by one part with each period of the mixture's schedule. Where ranks x workers
    x batch size is a multiple of the period, or nearly divides it, a stream would otherwise make
    the same few items of the schedule forever, and a few of all streams would read a rare task.

    Args:
        rank: Of the process.
        world_size: How many there are.
        step_begin: Index of the first item of the step, over all ranks.
    """
    return (rank + step_begin // SCHEDULE_PERIOD) % world_size


class Position(NamedTuple):
    """Where a stream is in the windows of one task.

    Attributes:
        element: Of the `WindowSequence`.
        example: The next one of its window, in shuffled order.
    """

    element: int
    example: int


class WindowPart(NamedTuple):
    """A window, or what is left of one.

    Attributes:
        window: Its number, over all epochs.
        example: The first one that is left, in shuffled order.
    """

    window: int
    example: int = 0


class Turn(NamedTuple):
    """A window that a stream reads.

    Attributes:
        window: Its number, over all epochs.
        start: Where the stream is before it.
        after: Where the stream is after it.
    """

    window: int
    start: Position
    after: Position


@dataclass(frozen=True)
class WindowSequence:
    """The windows of one task in the order in which they are dealt to the streams; endless.

    Attributes:
        leftovers: What earlier streams had left when their number changed.
        base: The first window that none of them had reached.
    """

    leftovers: tuple[WindowPart, ...] = ()
    base: int = 0

    def __getitem__(self, element: int) -> WindowPart:
        if element < len(self.leftovers):
            return self.leftovers[element]
        return WindowPart(self.base + element - len(self.leftovers))

    def start(self, streams: int) -> list[Position]:
        """Where each of so many streams begins."""
        return [self.position(element) for element in range(streams)]

    def position(self, element: int) -> Position:
        """The start of an element."""
        return Position(element, self[element].example)

    def windows_from(self, position: Position, streams: int) -> Iterator[Turn]:
        """What the stream at a position reads from there on, when it is one of so many streams."""
        while True:
            after = self.position(position.element + streams)
            yield Turn(self[position.element].window, position, after)
            position = after

    def regroup(self, positions: Sequence[Position]) -> "WindowSequence":
        """What is left when each stream is at its position, for any other number of them.

        Nothing that was read is in it, and everything that was not.
        """
        end = max(len(self.leftovers), 1 + max(position.element for position in positions))
        left: list[WindowPart] = []
        for element, example in positions:
            left.append(WindowPart(self[element].window, example))
            left += (self[later] for later in range(element + len(positions), end, len(positions)))
        return WindowSequence(tuple(sorted(left)), self[end].window)
