"""The tables and the plot of what `experiments.scale.readers` measures."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt

from delvm.data.datasets.streaming_sentences import STREAM_WINDOW_SHARDS
from delvm.data.shards.manifest import RECORDS_PER_SHARD, TOKENS_PER_RECORD
from delvm.data.shards.shard_list import MAX_NAMES
from experiments.scale.estimate import TOKENS

STREAMS, NODES, WORKERS_PER_NODE = 8192, 128, 64
IMAGES_PER_SHARD = RECORDS_PER_SHARD * TOKENS_PER_RECORD // TOKENS
CHANGES = ("512 x 8", "1024 x 4", "768 x 8", "2048 x 8")


class Row(NamedTuple):
    """One number.

    Attributes:
        corpus, reader, task: What it is of; "" where it is of all.
        what: With the unit, where it has one.
        value: Of it.
    """

    corpus: str
    reader: str
    task: str
    what: str
    value: float


class Values:
    """Rows by what they are."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._found = {row[:4]: row.value for row in rows}
        self.tasks: dict[str, list[str]] = {row.corpus: [] for row in rows}
        for row in rows:
            if row.what == "shards":
                self.tasks[row.corpus].append(row.task)

    def __call__(self, corpus: str, what: str, reader: str = "", task: str = "") -> float:
        return self._found[corpus, reader, task, what]

    def total(self, corpus: str, what: str) -> float:
        """The sum over the tasks."""
        return sum(self(corpus, what, task=task) for task in self.tasks[corpus])

    def changes(self, corpus: str, what: str, reader: str = "streaming") -> list[float]:
        """On each other number of streams."""
        return [self(corpus, f"{what} on {run}", reader) for run in CHANGES]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text."""
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(rows: Sequence[Row]) -> list[str]:
    """All tables, in the order of README.md."""
    values = Values(rows)
    return [
        corpora_table(values),
        start_table(values),
        resume_table(values),
        task_table(values),
        traffic_table(values),
        mixture_table(values),
        limits_table(values),
    ]


def corpora_table(values: Values) -> str:
    """Shards and bytes."""

    def row(name: str, images: float, shards: float, size: float) -> list[str]:
        return [name, f"{images / 1e6:,.0f} M", f"{shards:,.0f}", f"{size / 1e9:,.1f} GB"]

    what = ("images", "shards", "bytes")
    found = [
        row(task, *(values("paper", each, task=task) for each in what))
        for task in values.tasks["paper"]
    ]
    found.append(row("the paper's mixture", *(values.total("paper", each) for each in what)))
    found.append(row("LVM", *(values.total("LVM", each) for each in what)))
    return markdown(["", "images", "shards", "token shards"], found)


def start_table(values: Values) -> str:
    """Seconds and memory until the order of the first batch is known."""
    found = []
    for corpus in ("paper", "LVM", "4 x LVM"):
        for reader in ("indexed", "streaming"):
            seconds, memory = (
                values(corpus, what, reader) for what in ("seconds to start", "MiB to start")
            )
            size = f"{values(corpus, 'bytes of manifests') / 1e6:,.1f} MB"
            row = [f"{corpus}, {reader}", size, f"{seconds:.1f} s", f"{memory:,.0f} MiB"]
            found.append(row)
    return markdown(["", "manifests", "until the first order", "memory of a rank"], found)


def resume_table(values: Values) -> str:
    """What a resume takes, loses and repeats."""
    found = []
    for corpus in ("paper", "LVM"):
        for reader in ("indexed", "streaming"):
            row = [f"{corpus}, {reader}"]
            row.append(f"{values(corpus, 'bytes of state', reader) / 1e3:,.1f} kB")
            row.append(f"{values(corpus, 'seconds on 1024 x 8', reader):.2f} s")
            lost, again = (values.changes(corpus, what, reader) for what in ("lost", "repeated"))
            if reader == "streaming":
                row.append(f"{max(values.changes(corpus, 'seconds')):.2f} s")
                row.append(f"{max(values.changes(corpus, 'bytes')) / 1e3:,.1f} kB")
            else:  # position and order are all of its state, for any number of ranks
                row += ["the same", "the same"]
            found.append([*row, f"{max(lost):.0f}", f"{max(again):.0f}"])
    head = ["", "state in a checkpoint", "resume", "on another number", "state then"]
    head += ["examples lost", "repeated"]
    return markdown(head, found)


def task_table(values: Values) -> str:
    """What the streams read of each task in the time of one epoch."""
    found = []
    for corpus in ("paper", "LVM"):
        for task in values.tasks[corpus]:

            def value(what: str, corpus: str = corpus, task: str = task) -> float:
                return values(corpus, what, "streaming", task)

            row = [task, f"{value('steps of an epoch'):,.0f}"]
            row += [
                f"{value('streams without examples'):.0f}",
                f"{value('max / mean examples'):.2f}",
            ]
            for name in (corpus, f"{corpus}, window 1"):
                row.append(f"{value('windows', name):,.0f}")
                row += [f"{value(what, name):.0%}" for what in ("never read", "read again")]
            found.append(row)
    head = ["task", "steps", "streams without it", "max / mean"]
    for size in (STREAM_WINDOW_SHARDS, 1):
        head += [f"windows of {size}", "never read", "read again"]
    return markdown(head, found)


def traffic_table(values: Values) -> str:
    """Bytes that are fetched and held."""
    found = []
    for corpus in ("paper", "LVM"):
        for name in (corpus, f"{corpus}, window 1"):
            first = values(name, "bytes before the first batch", "streaming")
            worker = values(name, "bytes in memory of a worker", "streaming")
            row = [name if name != corpus else f"{name}, window {STREAM_WINDOW_SHARDS}"]
            row += [f"{first / 1e9:,.0f} GB", f"{first / NODES / 1e9:,.1f} GB"]
            found.append([*row, f"{worker * WORKERS_PER_NODE / 2**30:,.1f} GiB"])
    head = ["streaming", "all nodes before the first batch", "a node", "memory of a node"]
    return markdown(head, found)


def mixture_table(values: Values) -> str:
    """The largest deviation of a task's part from its weight."""
    epoch = f"{values('paper', 'steps of an epoch', 'both'):.0f}"
    steps = ["1", "10", "100", "1000", epoch]
    row = [f"{values('paper', f'mixture error after {each} steps', 'both'):.6f}" for each in steps]
    return markdown(["steps", *steps], [["largest error of a task's part", *row]])


def limits_table(values: Values) -> str:
    """What fails first, from the smallest size on."""
    spread = STREAMS * STREAM_WINDOW_SHARDS * IMAGES_PER_SHARD
    opened = values("LVM", "shards of a batch", "indexed")
    node = values("LVM", "shards of a node in 64 steps", "indexed")
    used = values("LVM", "examples of a node in 64 steps", "indexed")
    copied = node * IMAGES_PER_SHARD / used
    start, memory = (
        values("4 x LVM", what, "streaming") for what in ("seconds to start", "MiB to start")
    )
    found = [
        ["indexed", "any", f"at 1,024 ranks a batch of {2 * 8} images touches {opened:.0f} shards"],
        ["indexed", "any, from a store",
         f"a node copies {copied:,.0f} times what it uses, and needs a disk for the whole corpus"],
        ["streaming", f"tasks below {STREAMS * IMAGES_PER_SHARD / 1e6:,.0f} M images",
         "fewer shards than streams, which then read epochs of their own: a third of the examples "
         "is not read in the time of an epoch"],
        ["streaming", f"tasks below {spread / 1e6:,.0f} M images",
         f"the same for windows of {STREAM_WINDOW_SHARDS} shards: set "
         "`data.shuffle_window_shards=1`"],
        ["streaming", f"tasks above {MAX_NAMES * IMAGES_PER_SHARD / 1e9:,.1f} G images",
         f"`data.shards` takes patterns of up to {MAX_NAMES:,} names"],
        ["both", f"{4 * 1.64:,.1f} G images",
         f"a rank takes {start:.0f} s and {memory:,.0f} MiB to list the shards, in proportion to "
         f"their number: {8 * memory / 1024:,.0f} GiB for the 8 ranks of a node"],
    ]  # fmt: skip
    return markdown(["reader", "size", "what fails"], found).replace("--:", "---")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Examples that are never read, or read again, in the time of an epoch; and the mixture."""
    values = Values(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    names = [(corpus, task) for corpus in ("paper", "LVM") for task in values.tasks[corpus]]
    kinds = [
        (suffix, what) for suffix in ("", ", window 1") for what in ("never read", "read again")
    ]
    for number, (suffix, what) in enumerate(kinds):
        heights = [100 * values(corpus + suffix, what, "streaming", task) for corpus, task in names]
        positions = [position + (number - 1.5) / 5 for position in range(len(names))]
        label = f"{what}, window {1 if suffix else STREAM_WINDOW_SHARDS}"
        left.bar(positions, heights, 1 / 5, label=label)
    left.set_xticks(range(len(names)), [task for _, task in names], rotation=30, ha="right")
    left.set_ylabel("% of examples, time of an epoch")
    left.set_ylim(0, 55)
    left.legend(fontsize=8, ncols=2, loc="upper left")
    epoch = values("paper", "steps of an epoch", "both")
    steps = [1, 10, 100, 1000, int(epoch)]
    errors = [values("paper", f"mixture error after {each} steps", "both") for each in steps]
    right.loglog(steps, errors, marker="o")
    right.set_xlabel("steps of 2,048 sentences")
    right.set_ylabel("largest error of a task's part")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
