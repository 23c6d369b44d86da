"""The simulation of the readers at scale counts what the readers themselves read."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from delvm.data.datasets import stream_order, streaming
from delvm.data.datasets.sampler import TaskSchedule
from delvm.data.datasets.stream_order import Position, WindowSequence
from experiments.scale.readers import read_csv
from experiments.scale.readers_table import tables
from experiments.scale.simulation import (
    Part,
    Run,
    WindowSizes,
    count_reads,
    lost_and_repeated,
    read_all,
    sentences_per_stream,
)
from tests.data.datasets.streams import examples_of, open_streams, write_corpus

WEIGHTS = {"derain": 0.7, "video": 0.3}


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_corpus(tmp_path, monkeypatch)


def simulate(data, run, steps):
    """Parts that each task's streams read in so many steps, and the positions after them."""
    (counts,) = sentences_per_stream(data.layout.schedule, run, [steps])
    found = []
    for task, shuffle in enumerate(data.layout.shuffles):
        sequence = data.state.sequences[task]
        required = (counts[:, task] * data.layout.examples_per_sentence[task]).tolist()
        begin = sequence.start(run.streams)
        found.append(read_all(sequence, WindowSizes(shuffle), begin, required))
    return found


def really_read(datasets, run, steps, monkeypatch):
    """(task, number) of each example that the readers give in so many steps, with repeats."""
    read, positions = Counter(), {}
    for rank, data in enumerate(datasets):
        loaders = []
        for worker in range(run.workers):
            info = SimpleNamespace(id=worker, num_workers=run.workers)
            monkeypatch.setattr(streaming, "get_worker_info", lambda info=info: info)
            loaders.append(iter(data))
            first = next(loaders[-1])  # it asks for its worker when it begins
            loaders[-1] = iter([first, *(next(loaders[-1]) for _ in range(steps // run.workers))])
        for step in range(steps):
            batch = next(loaders[step % run.workers])
            read.update(examples_of(batch, data.tasks))
            worker, after = batch["stream"]
            positions[rank * run.workers + worker] = after
    return read, positions


@pytest.mark.parametrize(("ranks", "workers", "steps"), [(1, 1, 5), (2, 3, 14), (3, 2, 7)])
def test_simulated_reads_are_those_of_the_reader(root, monkeypatch, ranks, workers, steps):
    monkeypatch.setattr(stream_order, "SCHEDULE_PERIOD", 16)  # so that ranks move on
    run = Run(ranks, workers, 2)
    datasets = open_streams(root, ranks, workers, task_weights=WEIGHTS)
    read, positions = really_read(datasets, run, steps, monkeypatch)
    data = datasets[0]
    for task, (after, parts) in enumerate(simulate(data, run, steps)):
        name, shuffle = data.mixed_tasks[task], data.layout.shuffles[task]
        reads = count_reads(shuffle, parts, np.arange(len(shuffle.counts)))
        assert reads.tolist() == [read[name, number] for number in range(shuffle.num_examples)]
        some = count_reads(shuffle, parts, np.array([3, 1]))
        assert some.tolist() == [*reads[6:8], *reads[2:4]]
        for stream, table in positions.items():
            assert tuple(table[task]) == after[stream]
    assert sum(read.values()) == sum(
        part.stop - part.start for _, parts in simulate(data, run, steps) for part in parts
    )


@pytest.mark.parametrize("run", [Run(3, 2, 5), Run(4, 4, 2), Run(1, 1, 7)])
def test_sentences_per_stream_is_a_count_of_each_sentence(run, monkeypatch):
    monkeypatch.setattr(stream_order, "SCHEDULE_PERIOD", 64)  # so that ranks move on
    schedule, steps = TaskSchedule({"a": 0.9, "b": 0.08, "c": 0.02}), 61
    expected = np.zeros((run.streams, 3), int)
    for step in range(steps):
        if step == 40:
            earlier = expected.copy()
        for rank in range(run.ranks):
            part = (rank + step * run.step // 64) % run.ranks
            for index in range(run.batch_size):
                number = step * run.step + part * run.batch_size + index
                task = schedule(np.array([number]))[0][0]
                expected[rank * run.workers + step % run.workers, task] += 1
    found = sentences_per_stream(schedule, run, [40, steps])
    assert (found[0] == earlier).all() and (found[1] == expected).all()


@pytest.mark.parametrize(("before", "after"), [(4, 2), (2, 5), (3, 3)])
def test_another_number_of_streams_loses_and_repeats_nothing(root, before, after):
    data = open_streams(root)[0]
    shuffle = data.layout.shuffles[0]
    sizes, sequence = WindowSizes(shuffle), WindowSequence()
    counts = [3 + 2 * number for number in range(before)]
    positions, parts = read_all(sequence, sizes, sequence.start(before), counts)
    left = sequence.regroup(positions)
    assert lost_and_repeated(sizes, parts, left) == (0, 0)
    rest, more = read_all(left, sizes, left.start(after), [9] * after)
    assert lost_and_repeated(sizes, parts + more, left.regroup(rest)) == (0, 0)
    # And it counts what goes wrong.
    assert lost_and_repeated(sizes, parts[1:], left)[0] == parts[0].stop - parts[0].start
    again = Part(parts[0].window, 0, 1)
    assert lost_and_repeated(sizes, [*parts, again], left) == (0, 1)


def test_window_sizes_are_those_of_the_shuffle(root):
    shuffle = open_streams(root)[0].layout.shuffles[0]
    sizes = WindowSizes(shuffle)
    for window in range(2 * shuffle.num_windows):
        _, order = shuffle.window(*divmod(window, shuffle.num_windows))
        assert sizes(window) == len(order)
    assert Position(0, 0) == WindowSequence().start(1)[0]


@pytest.mark.parametrize("name", ["experiments/scale/README.md", "docs/scale.md"])
def test_tables_are_those_of_the_csv(name):
    text = (Path(__file__).resolve().parents[1] / name).read_text(encoding="utf-8")
    found = tables(read_csv())
    assert sum(table in text for table in found) == (7 if name.startswith("exp") else 6)
