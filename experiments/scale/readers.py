"""What 1,024 ranks with 8 workers each read of the paper's mixture, and of LVM's images.

    python -m experiments.scale.readers

Writes manifests of these corpora, without shards, to a temporary directory; lets the readers set
themselves up on them; and counts what they would read. Writes readers.csv and readers.png next to
this file, and prints the tables of README.md. `--table` reads readers.csv instead of measuring.
"""

import argparse
import csv
import io
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from delvm.data.datasets.sampler import Int64, ResumableBatchSampler
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.datasets.streaming_sentences import StreamingSentences, StreamingSentencesConfig
from delvm.progress import log
from delvm.storage import atomic_path
from delvm.training.data.datamodules import SentenceDataModule
from delvm.training.data.streaming import StreamingSentenceDataModule
from experiments.scale.corpora import CORPORA, Corpus, manifest, write_root
from experiments.scale.estimate import TAR_OVERHEAD, TOKENS
from experiments.scale.readers_table import Row, plot, tables
from experiments.scale.simulation import (
    Run,
    WindowSizes,
    count_reads,
    lost_and_repeated,
    read_all,
    sentences_per_stream,
)

HERE = Path(__file__).resolve().parent
RUN = Run(ranks=1024, workers=8, batch_size=2)  # 4.2 million tokens in a step
OTHER_RUNS = (Run(512, 8, 2), Run(1024, 4, 2), Run(768, 8, 2), Run(2048, 8, 2))
RANKS_PER_NODE = 8
SOME_STEPS = 1000  # after which a run is stopped
SAMPLED_SHARDS = 50  # of a task, in which examples are counted
COMPLETE = ("paper", "LVM")  # of the others only what the window changes
LARGER = 4  # times LVM's images, to see how it grows


def settings(root: Path, corpus: Corpus) -> dict[str, Any]:
    """Arguments that both readers have."""
    return {
        "path": str(root),
        "task_weights": dict(corpus.task_weights),
        "batch_size": RUN.batch_size,
        "num_workers": RUN.workers,
    }


def set_up(reader: str, root: Path, corpus: Corpus) -> SentenceDataset | StreamingSentences:
    """The reader of one rank."""
    if reader == "indexed":
        return SentenceDataset(SentencesConfig(**settings(root, corpus)), seed=0)
    window = {"shuffle_window_shards": corpus.window_shards}
    data = StreamingSentences(StreamingSentencesConfig(**settings(root, corpus) | window), seed=0)
    data.world_size = RUN.ranks
    data.state = data.begin()
    return data


def in_child(function: Callable[..., Any], *args: Any) -> Any:
    """The result of a function in a process of its own, so that memory is counted from zero."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, args)


def start(reader: str, root: Path, corpus: Corpus) -> tuple[float, float]:
    """Seconds until the order of the first batch is known, and MiB that this takes."""
    before, begin = _peak_memory(), time.perf_counter()
    data = set_up(reader, root, corpus)
    layout = data.layout if isinstance(data, StreamingSentences) else data
    for shuffle in layout.shuffles:
        shuffle.window(0, 0)
    return time.perf_counter() - begin, _peak_memory() - before


def _peak_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_sizes(name: str, corpus: Corpus) -> Iterator[Row]:
    """Shards and bytes of each task."""
    for task, images in corpus.images.items():
        found = manifest(task, images)
        size = 2 * TOKENS * found.images_per_example * TAR_OVERHEAD
        yield Row(name, "", task, "images", images)
        yield Row(name, "", task, "shards", len(found.shards))
        yield Row(name, "", task, "bytes", found.count * size)
        yield Row(name, "", task, "bytes of a shard", found.shards[0]["count"] * size)


def measure_mixture(name: str, data: SentenceDataset, epoch: int) -> Iterator[Row]:
    """The largest deviation of a task's part of all sentences from its weight."""
    for steps in (1, 10, 100, SOME_STEPS, epoch):
        part = data.mixture(steps * RUN.step)
        worst = max(abs(part[task] - weight) for task, weight in data.mixture_weights.items())
        yield Row(name, "both", "", f"mixture error after {steps} steps", worst)


def measure_indexed(name: str, data: SentenceDataset) -> Iterator[Row]:
    """What a node and a worker touch, and what another number of ranks loses or repeats."""
    node, used, opened = set(), 0, []
    for rank in range(RANKS_PER_NODE):
        batches = iter(ResumableBatchSampler(0, RUN.batch_size, rank, RUN.ranks))
        for _ in range(64):
            found = data.locate(next(batches))
            shards = {(each["task"], each["shard"]) for each in found}
            node |= shards
            used += len(found)
            opened.append(len(shards))
    yield Row(name, "indexed", "", "shards of a batch", float(np.mean(opened)))
    yield Row(name, "indexed", "", "shards of a node in 64 steps", len(node))
    yield Row(name, "indexed", "", "examples of a node in 64 steps", used)
    for other in OTHER_RUNS:
        begin = [next_indices(0, RUN, 3)]
        begin.append(next_indices(3 * RUN.step, other, 3))
        counts = np.bincount(np.concatenate(begin))
        yield _row_of_change(name, "indexed", other, "lost", int((counts == 0).sum()))
        yield _row_of_change(name, "indexed", other, "repeated", int((counts > 1).sum()))


def next_indices(position: int, run: Run, steps: int) -> Int64:
    """The sentences of all ranks in the next steps."""
    found = []
    for rank in range(run.ranks):
        batches = iter(ResumableBatchSampler(position, run.batch_size, rank, run.ranks))
        found += [next(batches) for _ in range(steps)]
    return np.concatenate(found)


def _row_of_change(name: str, reader: str, run: Run, what: str, value: float) -> Row:
    return Row(name, reader, "", f"{what} on {run.ranks} x {run.workers}", value)


def measure_streams(name: str, data: StreamingSentences) -> Iterator[Row]:
    """How evenly the examples are dealt to the streams, and what is read in an epoch of a task."""
    layout = data.layout
    shard = max(
        row.value for row in measure_sizes(name, CORPORA[name]) if row.what[6:] == "of a shard"
    )
    window = layout.config.shuffle_window_shards * len(layout.shuffles) * shard
    yield Row(name, "streaming", "", "bytes before the first batch", RUN.streams * window)
    yield Row(name, "streaming", "", "bytes in memory of a worker", 2 * window)
    quotas, sizes = layout.schedule.quotas, layout.examples_per_sentence
    per_step = quotas / quotas.sum() * RUN.step * np.array(sizes)
    examples = np.array([shuffle.num_examples for shuffle in layout.shuffles])
    steps = np.maximum(1, (examples / per_step).round()).astype(int).tolist()
    until = sorted(set(steps))
    found = dict(zip(until, sentences_per_stream(layout.schedule, RUN, until), strict=True))
    for number, last in enumerate(steps):
        yield from measure_task(name, data, number, last, found[last][:, number])


def measure_task(
    name: str, data: StreamingSentences, number: int, steps: int, sentences: Int64
) -> Iterator[Row]:
    """The counts of one task after as many examples as it has.

    Args:
        name: Of the corpus.
        data: The reader.
        number: Of the task.
        steps: After which it has been given that many.
        sentences: (streams,) that each stream has made of it by then.
    """
    task, shuffle = data.mixed_tasks[number], data.layout.shuffles[number]
    sequence, sizes = data.state.sequences[number], WindowSizes(shuffle)
    required = (sentences * data.layout.examples_per_sentence[number]).tolist()
    _, parts = read_all(sequence, sizes, sequence.start(RUN.streams), required)
    least = min(SAMPLED_SHARDS, len(shuffle.counts))
    rng = np.random.default_rng(0)
    reads = count_reads(shuffle, parts, rng.choice(len(shuffle.counts), least, replace=False))
    for what, value in {
        "steps of an epoch": steps,
        "windows": shuffle.num_windows,
        "streams without examples": int((sentences == 0).sum()),
        "max / mean examples": sentences.max() / sentences.mean(),
        "never read": float((reads == 0).mean()),
        "read again": float((reads > 1).mean()),
    }.items():
        yield Row(name, "streaming", task, what, value)


class _OfRun(StreamingSentenceDataModule):
    """The data module of rank 0 in a run of many ranks, all of which are here."""

    run = RUN

    def _rank(self) -> tuple[int, int]:
        return 0, self.run.ranks

    def _gather(self, positions: Any) -> Any:
        return positions.copy()


def measure_resume(name: str, root: Path) -> Iterator[Row]:
    """Seconds and bytes of a resume, and what another number of streams loses or repeats."""
    arguments = settings(root, CORPORA[name])
    streaming = arguments | {"shuffle_window_shards": CORPORA[name].window_shards}
    old = _OfRun(**streaming)
    old._set_rank()
    state, layout = old.train.state, old.train.layout
    (counts,) = sentences_per_stream(layout.schedule, RUN, [SOME_STEPS])
    read = []
    for task, size in enumerate(layout.examples_per_sentence):
        sequence, sizes = state.sequences[task], WindowSizes(layout.shuffles[task])
        required = (counts[:, task] * size).tolist()
        after, parts = read_all(sequence, sizes, sequence.start(RUN.streams), required)
        state.positions[:, task] = after
        read.append((sizes, parts))
    old.position = SOME_STEPS * RUN.step
    saved = io.BytesIO()
    seconds = timed(lambda: torch.save(old.state_dict(), saved))
    yield Row(name, "streaming", "", "seconds to save", seconds)
    yield Row(name, "streaming", "", "bytes of state", len(saved.getvalue()))
    for run in (RUN, *OTHER_RUNS):
        new = _OfRun(**streaming | {"num_workers": run.workers})
        new.run = run
        yield _row_of_change(name, "streaming", run, "seconds", timed(lambda: resume(new, saved)))  # noqa: B023
        lost = [
            lost_and_repeated(sizes, parts, sequence)
            for (sizes, parts), sequence in zip(read, new.train.state.sequences, strict=True)
        ]
        if run != RUN:
            yield _row_of_change(name, "streaming", run, "lost", sum(each[0] for each in lost))
            yield _row_of_change(name, "streaming", run, "repeated", sum(each[1] for each in lost))
            again = io.BytesIO()
            torch.save(new.state_dict(), again)
            yield _row_of_change(name, "streaming", run, "bytes", len(again.getvalue()))
    indexed, saved = SentenceDataModule(**arguments), io.BytesIO()
    indexed.position = old.position
    torch.save(indexed.state_dict(), saved)
    yield Row(name, "indexed", "", "bytes of state", len(saved.getvalue()))
    new_indexed = SentenceDataModule(**arguments)
    seconds = timed(lambda: resume(new_indexed, saved))
    yield _row_of_change(name, "indexed", RUN, "seconds", seconds)


def resume(data: SentenceDataModule, saved: io.BytesIO) -> None:
    """Load a position, and compute the order of what comes next."""
    saved.seek(0)
    data.load_state_dict(torch.load(saved, weights_only=True))
    if isinstance(data.train, SentenceDataset):
        data.train.locate(np.arange(data.position, data.position + RUN.batch_size))
        return
    state, shuffles = data.train.state, data.train.layout.shuffles
    for task, shuffle in enumerate(shuffles):
        position = state.sequences[task].position(int(state.positions[0, task, 0]))
        window = state.sequences[task][position.element].window
        shuffle.window(*divmod(window, shuffle.num_windows))


def timed(function: Callable[[], Any]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def measure_corpus(name: str, root: Path) -> list[Row]:
    """All that is measured of a corpus but its start."""
    rows = [*measure_sizes(name, CORPORA[name])]
    streams = set_up("streaming", root, CORPORA[name])
    assert isinstance(streams, StreamingSentences)
    rows += measure_streams(name, streams)
    if name not in COMPLETE:
        return rows
    epoch = -(-streams.layout.sentences_per_epoch // RUN.step)
    rows.append(Row(name, "both", "", "steps of an epoch", epoch))
    indexed = set_up("indexed", root, CORPORA[name])
    assert isinstance(indexed, SentenceDataset)
    rows += measure_mixture(name, indexed, epoch)
    rows += measure_indexed(name, indexed)
    return rows + [*measure_resume(name, root)]


def measure() -> list[Row]:
    """All rows."""
    larger = {task: LARGER * images for task, images in CORPORA["LVM"].images.items()}
    corpora = CORPORA | {f"{LARGER} x LVM": Corpus(larger, {})}
    rows = []
    for name, corpus in corpora.items():
        log(f"readers: {name}")
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            rows.append(Row(name, "", "", "bytes of manifests", in_child(write_root, root, corpus)))
            for reader in ("indexed", "streaming"):
                seconds, memory = in_child(start, reader, root, corpus)
                rows.append(Row(name, reader, "", "seconds to start", seconds))
                rows.append(Row(name, reader, "", "MiB to start", memory))
            if name in CORPORA:
                rows += in_child(measure_corpus, name, root)
    return rows


def read_csv() -> list[Row]:
    """The rows that were measured last."""
    with (HERE / "readers.csv").open(newline="", encoding="utf-8") as file:
        rows = csv.reader(file)
        next(rows)
        return [Row(a, b, c, d, float(value)) for a, b, c, d, value in rows]


def main() -> int:
    """Measure, write the rows and the plot, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="read readers.csv instead")
    if not parser.parse_args().table:
        rows = measure()
        with atomic_path(HERE / "readers.csv") as path, path.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([Row._fields, *rows])
    rows = read_csv()
    with atomic_path(HERE / "readers.png") as path:
        plot(rows, path)
    print("\n\n".join(tables(rows)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
