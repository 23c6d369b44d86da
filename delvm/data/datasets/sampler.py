"""The order of a training stream, by arithmetic: any position can be computed directly.

A training stream is an endless sequence of items, numbered from 0. The task of item n and the
examples in it are computed from n, so nothing has to be replayed: a run resumes from one number,
and ranks and workers divide the stream by taking different numbers.

    item n  --TaskSchedule-->     task id, and occurrence index within the task
            --WindowedShuffle-->  (shard, index in the shard) of each of its examples

The items of one task go through all its examples, in a new random order each time (one epoch of
the task). Shards are shuffled, and examples within windows of a few shards, so reads stay within
the files of one window, which suits a disk and the page cache.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from delvm.data.shards.manifest import Manifest
from delvm.errors import UserError, did_you_mean

Int64 = npt.NDArray[np.int64]

# Items after which the task schedule repeats: mixture weights are exact to 1 / 65,536.
SCHEDULE_PERIOD = 65_536
SHUFFLE_WINDOW_SHARDS = 32


def out_of_range(config: object, names: Sequence[str], least: int) -> list[str]:
    """One line for each of the settings that is below `least`; None counts as not set."""
    values = {name: getattr(config, name) for name in names}
    return [
        f"{name}={value} is below {least}: set it to {least} or more"
        for name, value in values.items()
        if value is not None and value < least
    ]


def loader_errors(config: object) -> list[str]:
    """Errors in the settings that sentences and images have in common, one line each."""
    positive = ("batch_size", "num_val_examples", "shuffle_window_shards")
    return [*out_of_range(config, positive, 1), *out_of_range(config, ("num_workers",), 0)]


def seeded_rng(*parts: int | str) -> np.random.Generator:
    """A random generator whose seed depends on all the parts."""
    numbers = [
        part if isinstance(part, int) else int.from_bytes(part.encode(), "little") for part in parts
    ]
    return np.random.default_rng(np.random.SeedSequence(numbers))


def mixture_weights(
    task_weights: Mapping[str, float], tasks: Sequence[str], held_out: Sequence[str] = ()
) -> dict[str, float]:
    """Fraction of the items for each task, summing to 1; tasks of weight 0 are left out.

    Args:
        task_weights: Relative weight of each task; others are left out, unless all that are given
            are 0. Empty means equal weights.
        tasks: Tasks that have training shards.
        held_out: Tasks that have validation shards alone.

    Raises:
        UserError: A weight for a task without shards, a negative weight, one too small to ever
            be scheduled, or no task left.
    """
    known = sorted({*tasks, *held_out})
    for task, weight in task_weights.items():
        if task not in known:
            raise UserError(f"data.task_weights.{task}: no such task; {did_you_mean(task, known)}")
        if not weight >= 0:  # nor is a NaN
            raise UserError(f"data.task_weights.{task}={weight} is negative: set it to 0 or more")
        if weight and task not in tasks:
            raise UserError(
                f"data.task_weights.{task}={weight}: it has no training shards, set it to 0"
            )
    chosen = {t: w for t, w in task_weights.items() if w > 0}
    if not chosen:
        chosen = {task: 1.0 for task in tasks if task not in task_weights}
    if not chosen:
        raise UserError(f"data.task_weights are all 0: set data.task_weights.{sorted(tasks)[0]}=1")
    total = sum(chosen.values())
    for task, weight in chosen.items():
        if weight / total * SCHEDULE_PERIOD < 1 - 1e-9:
            raise UserError(
                f"data.task_weights.{task}={weight} is below 1 in {SCHEDULE_PERIOD:,} of all the "
                f"weights: set it to 0, or to {total / SCHEDULE_PERIOD:.3g} or more"
            )
    return {task: weight / total for task, weight in chosen.items()}


def validated_tasks(
    task_weights: Mapping[str, float],
    trained: Iterable[str],
    train: Iterable[str],
    val: Iterable[str],
) -> list[str]:
    """The tasks that validation is over: those trained on, and those held out with no weight of 0.

    Args:
        task_weights: As for `mixture_weights`.
        trained: Tasks of the mixture.
        train, val: Tasks that have shards of these splits.
    """
    left_out = set(train) - set(trained) | {task for task, w in task_weights.items() if not w}
    return sorted(set(val) - left_out)


def shard_signature(manifest: Manifest) -> str:
    """What the order depends on in a task's shards: examples in total, and in each shard."""
    counts = [shard["count"] for shard in manifest.shards]
    digest = blake2b(repr(counts).encode(), digest_size=4).hexdigest()
    return f"{manifest.count} x {manifest.images_per_example} in {len(counts)} ({digest})"


class TaskSchedule:
    """The task of each item: tasks are spread evenly, in proportion to their mixture weights.

    In any stretch of items the count of a task is its fraction of the stretch, to within a few.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Lay out one period.

        Args:
            weights: Of each task, summing to 1, each at least 1 / SCHEDULE_PERIOD.
        """
        self.tasks = list(weights)
        self.quotas = _quotas(np.array([weights[task] for task in self.tasks]))
        # Occurrence j of q is in the middle of the j-th of q equal stretches of the period.
        positions = np.concatenate([(np.arange(q) + 0.5) / q for q in self.quotas])
        task_ids = np.repeat(np.arange(len(self.tasks)), self.quotas)
        occurrence = np.concatenate([np.arange(q) for q in self.quotas])
        order = np.argsort(positions, kind="stable")
        self._task_ids: Int64 = task_ids[order]
        self._occurrence: Int64 = occurrence[order]

    def __call__(self, indices: Int64) -> tuple[Int64, Int64]:
        """The task id and the occurrence index within the task of items (n,), both (n,) int64."""
        period, slot = np.divmod(indices, SCHEDULE_PERIOD)
        task_ids = self._task_ids[slot]
        return task_ids, period * self.quotas[task_ids] + self._occurrence[slot]

    def counts(self, next_index: int) -> Int64:
        """How many of the items before this one belong to each task, (tasks,) int64."""
        periods, slot = divmod(next_index, SCHEDULE_PERIOD)
        rest = np.bincount(self._task_ids[:slot], minlength=len(self.tasks))
        counts: Int64 = periods * self.quotas + rest
        return counts


def _quotas(weights: npt.NDArray[np.float64]) -> Int64:
    """Weights as integers that sum to SCHEDULE_PERIOD, by largest remainder, none of them 0."""
    exact = weights * SCHEDULE_PERIOD
    # A weight of 1 / SCHEDULE_PERIOD must not be rounded down to 0.
    quotas = np.floor(exact + 1e-9).astype(np.int64)
    missing = SCHEDULE_PERIOD - int(quotas.sum())
    largest = np.argsort(quotas - exact, kind="stable")
    quotas[largest[:missing]] += 1
    return quotas


class WindowedShuffle:
    """Where the examples of one task are, in an order that is shuffled again every epoch.

    Position p of the endless sequence is position p % num_examples of epoch p // num_examples.
    """

    def __init__(
        self,
        task: str,
        counts: Sequence[int],
        seed: int,
        window_shards: int = SHUFFLE_WINDOW_SHARDS,
    ) -> None:
        """Set up the shuffle of one task; nothing is computed before it is asked for.

        Args:
            task: Name of the task; part of the seed, so that tasks are shuffled independently.
            counts: Number of examples (>= 1) in each shard.
            seed: Of the order.
            window_shards: Shards whose examples are shuffled together.
        """
        self.task, self.seed, self.window_shards = task, seed, window_shards
        self.counts = np.asarray(counts, np.int64)
        self.num_examples = int(self.counts.sum())
        # Caches of the object, not of the class: a stream moves through one epoch at a time.
        self._epoch = lru_cache(maxsize=2)(self._shuffle_shards)
        self._inner = lru_cache(maxsize=2)(self._shuffle_window)

    def __call__(self, positions: Int64) -> tuple[Int64, Int64]:
        """The shard and the index within it of positions (n,), both (n,) int64."""
        epochs, rest = np.divmod(positions, self.num_examples)
        shards, index = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            _, starts = self._epoch(int(epoch))
            windows = np.searchsorted(starts, rest, side="right") - 1
            for number in np.unique(windows[in_epoch]):
                here = in_epoch & (windows == number)
                files, first, order = self._inner(int(epoch), int(number))
                position = order[rest[here] - starts[number]]
                slot = np.searchsorted(first, position, side="right") - 1
                shards[here], index[here] = files[slot], position - first[slot]
        return shards, index

    @property
    def num_windows(self) -> int:
        """Windows of an epoch."""
        return -(-len(self.counts) // self.window_shards)

    def window(self, epoch: int, number: int) -> tuple[Int64, npt.NDArray[np.int32]]:
        """The shards of a window, and the order of its examples, numbered through these shards."""
        files, _, order = self._shuffle_window(epoch, number)
        return files, order

    def _shuffle_shards(self, epoch: int) -> tuple[Int64, Int64]:
        """The shards in the order of an epoch, and the position at which each window begins."""
        files = seeded_rng(self.seed, epoch, self.task).permutation(len(self.counts))
        ends = np.cumsum(self.counts[files])
        step = self.window_shards
        return files, np.concatenate(([0], ends[step - 1 : -1 : step]))

    def _shuffle_window(
        self, epoch: int, number: int
    ) -> tuple[Int64, Int64, npt.NDArray[np.int32]]:
        """The shards of a window, the position of each one's first example, and the order."""
        files, _ = self._epoch(epoch)
        step = self.window_shards
        in_window = files[number * step : (number + 1) * step]
        counts = self.counts[in_window]
        first = np.cumsum(counts) - counts
        rng = seeded_rng(self.seed, epoch, self.task, number)
        order = rng.permutation(int(counts.sum())).astype(np.int32)
        return in_window, first, order

    def __getstate__(self) -> dict[str, object]:
        """The state without its caches: a worker process fills its own."""
        return {k: v for k, v in vars(self).items() if k not in ("_epoch", "_inner")}

    def __setstate__(self, state: dict[str, object]) -> None:
        vars(self).update(state)
        self._epoch = lru_cache(maxsize=2)(self._shuffle_shards)
        self._inner = lru_cache(maxsize=2)(self._shuffle_window)


class ResumableBatchSampler:
    """Endless batches of item indices, from any index on: the sampler of a `DataLoader`.

    Batch g over all ranks is the next `batch_size` x `world_size` indices. Each rank takes a
    contiguous stretch of them, so that each rank sees every task.
    """

    def __init__(
        self,
        start: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        overfit_batches: int = 0,
    ) -> None:
        """Set up the stream of one rank.

        Args:
            start: Index of the first item over all ranks.
            batch_size: Items per batch and rank.
            rank, world_size: Which rank this is, and how many there are.
            overfit_batches: Above 0, only the first so many batches, over and over.
        """
        self.start, self.batch_size = start, batch_size
        self.rank, self.world_size = rank, world_size
        self.overfit_batches = overfit_batches

    def __len__(self) -> int:
        """Effectively infinite; Lightning loses a batch at resume if a loader has no length."""
        return 10**12

    def __iter__(self) -> Iterator[Int64]:
        step = self.batch_size * self.world_size
        first = self.start
        while True:
            if self.overfit_batches:
                first %= self.overfit_batches * step
            start = first + self.rank * self.batch_size
            yield np.arange(start, start + self.batch_size)
            first += step
