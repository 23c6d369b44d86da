"""Which windows each stream reads, and what is left of them for another number of streams."""

import itertools
from collections import Counter

import numpy as np
import pytest

from delvm.data.datasets.stream_order import Position, WindowPart, WindowSequence

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
