"""Which windows each stream reads, and what is left of them for another number of streams."""

import itertools
from collections import Counter

import numpy as np
import pytest

from delvm.data.datasets.sampler import SCHEDULE_PERIOD, TaskSchedule
from delvm.data.datasets.stream_order import Position, WindowPart, WindowSequence, part_of_rank

SIZE = 5  # examples in a window


def read(sequence, positions, counts):
    """Read so many examples in each stream: the (window, example) of each, and where it ends."""
    seen, after = [], []
    for position, count in zip(positions, counts, strict=True):
        turns, left = sequence.windows_from(position, len(positions)), count
        turn = next(turns)
        example = turn.start.example
        while left:
            seen.append((turn.window, example))
            left, example = left - 1, example + 1
            if example == SIZE:
                turn = next(turns)
                example = turn.start.example
        after.append(Position(turn.start.element, example))
    return seen, after


def test_streams_share_the_windows():
    sequence = WindowSequence()
    seen, _ = read(sequence, sequence.start(3), [2 * SIZE] * 3)
    assert sorted(seen) == [*itertools.product(range(6), range(SIZE))]


@pytest.mark.parametrize("numbers", [(1, 4), (4, 1), (3, 5, 2, 8), (8, 8)])
def test_every_example_is_read_once_whatever_the_number_of_streams(numbers):
    """Also when it changes again before the leftovers of the last change are read."""
    rng, sequence, seen = np.random.default_rng(0), WindowSequence(), []
    for streams in numbers:
        positions = sequence.start(streams)
        for _ in range(2):
            found, positions = read(
                sequence, positions, rng.integers(0, 3 * SIZE, streams).tolist()
            )
            seen += found
        sequence = sequence.regroup(positions)
    last = max(window for window, _ in seen) + 3
    positions = sequence.start(1)
    for _ in range(SIZE * last):
        found, positions = read(sequence, positions, [1])
        seen += found
    once = Counter(seen)
    assert set(once.values()) == {1}
    assert {(w, e) for w, e in once if w < last} == {*itertools.product(range(last), range(SIZE))}


def test_leftovers_come_before_later_windows():
    sequence = WindowSequence().regroup([Position(0, 3), Position(3, 1)])
    assert sequence.leftovers == (WindowPart(0, 3), WindowPart(2), WindowPart(3, 1))
    assert sequence.base == 4 and sequence[3] == WindowPart(4)
    assert sequence.start(2) == [Position(0, 3), Position(1, 0)]


@pytest.mark.parametrize("begin", [0, 65_535, 65_536, 5 * 65_536 + 3])
def test_parts_of_ranks_are_all_parts_of_a_step(begin):
    assert sorted(part_of_rank(rank, 7, begin) for rank in range(7)) == [*range(7)]
    if begin < SCHEDULE_PERIOD:
        assert [part_of_rank(rank, 7, begin) for rank in range(7)] == [*range(7)]


def test_each_stream_reads_a_rare_task():
    # 128 ranks x 8 workers x 64 sentences are one period of the schedule.
    schedule, ranks, workers, size = TaskSchedule({"common": 0.99, "rare": 0.01}), 128, 8, 64
    counts = np.zeros((workers, ranks), int)
    for step in range(200):
        begin = step * ranks * size
        parts = part_of_rank(np.arange(ranks), ranks, np.full(ranks, begin))
        indices = begin + parts[:, None] * size + np.arange(size)
        counts[step % workers] += schedule(indices)[0].sum(axis=1)
    assert counts.min() > 0 and counts.max() < 1.5 * counts.mean()
