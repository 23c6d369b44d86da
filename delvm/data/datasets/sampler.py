"""In which order a corpus comes: arithmetic, so that any place in it can be looked up.

A training stream is an endless row of items, numbered from 0. Which task item n is of, and which
examples it holds, is computed from n; nothing needs to be replayed. So a run resumes by one
number, and ranks and workers share the stream out by taking different numbers.

    item n  --Turns-->  task, and the how-manieth of that task
            --Shuffle-->  (shard, place in it) of each of its examples

Items of one task go through all its examples, in an order drawn anew each time (an epoch of the
task). Examples are shuffled within windows of a few shards, the shards among all: reading stays
within the files of a window, as a disk or the page cache would have it.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np

from delvm.data.shards.manifest import Manifest
from delvm.errors import UserError, did_you_mean

CYCLE = 65_536  # items after which the turns repeat: shares are kept to 1 / 65,536
WINDOW = 32  # shards among whose examples is shuffled


def generator(*parts: int | str) -> np.random.Generator:
    """A generator seeded by all of the parts."""
    numbers = [
        part if isinstance(part, int) else int.from_bytes(part.encode(), "little") for part in parts
    ]
    return np.random.default_rng(np.random.SeedSequence(numbers))


def shares(weights: Mapping[str, float], tasks: Sequence[str]) -> dict[str, float]:
    """Share of each task, summing to 1; tasks of weight 0 are left out.

    Raises:
        UserError: A weight for a task that has no shards, a negative one, one too small to ever
            have a turn, or none above 0.
    """
    for task, weight in weights.items():
        if task not in tasks:
            raise UserError(f"data.weights.{task}: no such task; {did_you_mean(task, tasks)}")
        if weight < 0:
            raise UserError(f"data.weights.{task}={weight} is negative: set it to 0 or more")
    chosen = {t: w for t, w in weights.items() if w > 0} if weights else dict.fromkeys(tasks, 1.0)
    if not chosen:
        raise UserError("data.weights are all 0: give at least one task a weight above 0")
    total = sum(chosen.values())
    for task, weight in chosen.items():
        if weight / total * CYCLE < 1 - 1e-9:
            raise UserError(
                f"data.weights.{task}={weight} is below 1 in {CYCLE:,} of all the weights: set it "
                f"to 0, or to {total / CYCLE:.3g} or more"
            )
    return {task: weight / total for task, weight in chosen.items()}


def shape(manifest: Manifest) -> str:
    """What of a task's shards its order depends on: examples, and how they lie in shards."""
    counts = [shard["count"] for shard in manifest.shards]
    digest = blake2b(repr(counts).encode(), digest_size=4).hexdigest()
    return f"{manifest.count} x {manifest.pictures} in {len(counts)} ({digest})"


class Turns:
    """Whose turn it is: tasks spread evenly, each as often as its share asks.

    In any run of items a task comes as often as its share of them, to within a few.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        """Lay out one cycle.

        Args:
            shares: Of each task, summing to 1, each at least 1 / CYCLE.
        """
        self.tasks = list(shares)
        self.quotas = _quotas(np.array([shares[task] for task in self.tasks]))
        # Item j of q lies in the middle of its q-th part of the cycle.
        places = np.concatenate([(np.arange(q) + 0.5) / q for q in self.quotas])
        owners = np.repeat(np.arange(len(self.tasks)), self.quotas)
        ranks = np.concatenate([np.arange(q) for q in self.quotas])
        order = np.argsort(places, kind="stable")
        self._owners, self._ranks = owners[order], ranks[order]

    def __call__(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The task and the number within the task of items (n,), both (n,) int64."""
        cycle, slot = np.divmod(numbers, CYCLE)
        owners = self._owners[slot]
        return owners, cycle * self.quotas[owners] + self._ranks[slot]

    def counts(self, until: int) -> np.ndarray:
        """How many of the items before this one are of each task, (tasks,) int64."""
        cycles, slot = divmod(until, CYCLE)
        rest = np.bincount(self._owners[:slot], minlength=len(self.tasks))
        return cycles * self.quotas + rest


def _quotas(shares: np.ndarray) -> np.ndarray:
    """Shares as whole numbers that sum to CYCLE, by largest remainder, none of them 0."""
    exact = shares * CYCLE
    quotas = np.floor(exact + 1e-9).astype(np.int64)  # a share of 1 / CYCLE is not rounded to 0
    missing = CYCLE - int(quotas.sum())
    largest = np.argsort(quotas - exact, kind="stable")
    quotas[largest[:missing]] += 1
    return quotas


class Shuffle:
    """Where the examples of one task lie, in an order drawn anew each time all have been seen.

    Place p of the endless row is place p % count of epoch p // count.
    """

    def __init__(self, task: str, counts: Sequence[int], seed: int, window: int = WINDOW) -> None:
        """Say how many examples (n >= 1) each shard holds.

        Args:
            task: Its name takes part in the seed, so that tasks are shuffled independently.
            counts: Examples of each shard.
            seed: Of the order.
            window: Shards among whose examples is shuffled.
        """
        self.task, self.seed, self.window = task, seed, window
        self.counts = np.asarray(counts, np.int64)
        self.count = int(self.counts.sum())
        # Caches of the object, not of the class: a stream moves through one epoch at a time.
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._inner = lru_cache(maxsize=2)(self._draw_window)

    def __call__(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The shard and the place within it of places (n,) of the row, both (n,) int64."""
        epochs, rest = np.divmod(places, self.count)
        shards, inside = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs):
            mine = epochs == epoch
            _, starts = self._epoch(int(epoch))
            windows = np.searchsorted(starts, rest, side="right") - 1
            for number in np.unique(windows[mine]):
                here = mine & (windows == number)
                files, first, drawn = self._inner(int(epoch), int(number))
                place = drawn[rest[here] - starts[number]]
                slot = np.searchsorted(first, place, side="right") - 1
                shards[here], inside[here] = files[slot], place - first[slot]
        return shards, inside

    def _draw_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of an epoch, and the place at which each window begins."""
        files = generator(self.seed, epoch, self.task).permutation(len(self.counts))
        ends = np.cumsum(self.counts[files])
        return files, np.concatenate(([0], ends[self.window - 1 : -1 : self.window]))

    def _draw_window(self, epoch: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The shards of a window, the place of each one's first example, and the drawn order."""
        files, _ = self._epoch(epoch)
        mine = files[number * self.window : (number + 1) * self.window]
        counts = self.counts[mine]
        first = np.cumsum(counts) - counts
        rng = generator(self.seed, epoch, self.task, number)
        drawn = rng.permutation(int(counts.sum())).astype(np.int32)
        return mine, first, drawn

    def __getstate__(self) -> dict[str, object]:
        """Without the caches: a worker draws its own."""
        return {k: v for k, v in vars(self).items() if k not in ("_epoch", "_inner")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)
        self._inner = lru_cache(maxsize=2)(self._draw_window)


class Numbers:
    """Endless batches of item numbers: what a `DataLoader` asks its data set for, in turn.

    Batch g of all the ranks together is the next `batch` x `ranks` numbers; each rank takes a
    stretch of them, so that each sees every task.
    """

    def __init__(
        self, start: int, batch: int, rank: int = 0, ranks: int = 1, again: int = 0
    ) -> None:
        """Say where to begin, and whose numbers; above 0, the first `again` batches come anew."""
        self.start, self.batch, self.rank, self.ranks = start, batch, rank, ranks
        self.again = again

    def __len__(self) -> int:
        """As good as endless. (Of a loader without a length Lightning would lose a batch.)"""
        return 10**12

    def __iter__(self) -> Iterator[np.ndarray]:
        step = self.batch * self.ranks
        first = self.start
        while True:
            if self.again:
                first %= self.again * step
            mine = first + self.rank * self.batch
            yield np.arange(mine, mine + self.batch)
            first += step
