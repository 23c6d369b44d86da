"""The arithmetic order of a stream, against replaying it."""

import pickle
from collections import Counter

import numpy as np
import pytest

from delvm.data.datasets.sampler import (
    SCHEDULE_PERIOD,
    ResumableBatchSampler,
    TaskSchedule,
    WindowedShuffle,
    mixture_weights,
)
from delvm.errors import UserError

WEIGHTS = [
    {"a": 1.0},
    {"a": 0.5, "b": 0.3, "c": 0.2},
    {"a": 0.97, "b": 0.02, "c": 0.01},
    dict.fromkeys("abcdefg", 1 / 7),
    {"a": 1 - 2 / SCHEDULE_PERIOD, "b": 1 / SCHEDULE_PERIOD, "c": 1 / SCHEDULE_PERIOD},
]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_occurrence_index_counts_the_items_of_each_task(weights):
    """Each task counts its own items 0, 1, 2, ..., also across the end of a period."""
    task_ids, occurrence = TaskSchedule(weights)(np.arange(2 * SCHEDULE_PERIOD + 100))
    seen: Counter[int] = Counter()
    for task, number in zip(task_ids.tolist(), occurrence.tolist(), strict=True):
        assert number == seen[task]
        seen[task] += 1


@pytest.mark.parametrize("weights", WEIGHTS[:4], ids=str)
def test_mixture_weights_hold_over_any_prefix(weights):
    task_ids, _ = TaskSchedule(weights)(np.arange(20_000))
    for number, expected in enumerate(weights.values()):
        so_far = np.cumsum(task_ids == number)
        assert np.abs(so_far - expected * np.arange(1, 20_001)).max() <= 1 + len(weights) / 2
        assert so_far[-1] == pytest.approx(20_000 * expected, rel=0.01)


def test_a_contiguous_stretch_holds_every_task():
    """Ranks take contiguous stretches: every second number would leave a task out."""
    task_ids, _ = TaskSchedule({"a": 0.5, "b": 0.5})(np.arange(64))
    assert all(set(part) == {0, 1} for part in task_ids.reshape(-1, 4))


COUNTS = [5, 1, 7, 3, 9, 2, 4]


def replayed(shuffle, epoch):
    return list(zip(*(each.tolist() for each in shuffle(epoch * 31 + np.arange(31))), strict=True))


@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
def test_an_epoch_has_each_example_once(window):
    shuffle = WindowedShuffle("pose", COUNTS, 0, window)
    every = {(shard, index) for shard, count in enumerate(COUNTS) for index in range(count)}
    for epoch in (0, 1, 5):
        assert len(replayed(shuffle, epoch)) == 31
        assert set(replayed(shuffle, epoch)) == every
    assert replayed(shuffle, 0) != replayed(shuffle, 1)


def test_reads_stay_within_a_window():
    shuffle = WindowedShuffle("pose", [100] * 12, 0, 3)
    shards, _ = shuffle(np.arange(1200))
    for part in shards.reshape(-1, 300):
        assert len(set(part.tolist())) == 3
    assert len(set(shards[:300].tolist())) == 3 and shards[0] != shards[299]


def test_any_position_can_be_looked_up_directly():
    shuffle = WindowedShuffle("pose", COUNTS, 3, 2)
    together = [each.tolist() for each in shuffle(np.arange(20, 80))]
    fresh = pickle.loads(pickle.dumps(WindowedShuffle("pose", COUNTS, 3, 2)))
    one_by_one = [fresh(np.array([n])) for n in reversed(range(20, 80))][::-1]
    assert together == [[int(each[i][0]) for each in one_by_one] for i in (0, 1)]


def test_order_depends_on_seed_and_task():
    first = replayed(WindowedShuffle("pose", COUNTS, 0, 7), 0)
    assert first == replayed(WindowedShuffle("pose", COUNTS, 0, 7), 0)
    assert first != replayed(WindowedShuffle("pose", COUNTS, 1, 7), 0)
    assert first != replayed(WindowedShuffle("derain", COUNTS, 0, 7), 0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_divide_the_indices(world_size):
    streams = [iter(ResumableBatchSampler(10, 4, rank, world_size)) for rank in range(world_size)]
    taken = [next(stream) for _ in range(5) for stream in streams]
    assert np.concatenate(taken).tolist() == list(range(10, 10 + 5 * 4 * world_size))


def test_invalid_task_weights_are_refused():
    with pytest.raises(UserError, match="did you mean 'derain'"):
        mixture_weights({"derian": 1.0}, ["derain"])
    with pytest.raises(UserError, match="negative"):
        mixture_weights({"derain": -1.0}, ["derain"])
    with pytest.raises(UserError, match="all 0"):
        mixture_weights({"derain": 0.0}, ["derain"])
    with pytest.raises(UserError, match="data.task_weights.b=1e-05 is below 1 in 65,536"):
        mixture_weights({"a": 1.0, "b": 1e-5}, ["a", "b"])
    assert mixture_weights({"a": 3.0, "b": 1.0, "c": 0.0}, ["a", "b", "c"]) == {
        "a": 0.75,
        "b": 0.25,
    }
