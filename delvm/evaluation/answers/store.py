"""Answers and scores on disk, in parts: what a killed evaluation has done is not done again.

OUTPUT/answers/request.json                 what the answers depend on
OUTPUT/answers/TASK/draw0-000032.npz        a batch of queries: scores, counts, losses, token ids

A part is written under a temporary name and renamed, so one that is there is complete.
"""

import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from delvm.errors import UserError
from delvm.progress import log
from delvm.storage import atomic_path, read_json, remove_tree, write_json

REQUEST = "request.json"
POLL_S, NOTICE_S = 0.5, 30.0
START_TIMEOUT_S = 600.0

# owner (a method or a student) -> metric -> values of queries (B, ...)
Scores = dict[str, dict[str, npt.NDArray[np.float64]]]


@dataclass(frozen=True)
class Part:
    """A batch of queries of a task with the prompts of one draw."""

    task: str
    draw: int
    start: int
    stop: int

    @property
    def rows(self) -> slice:
        """The queries."""
        return slice(self.start, self.stop)

    @property
    def size(self) -> int:
        """The number of queries."""
        return self.stop - self.start


def batches(task: str, draw: int, num_queries: int, size: int) -> Iterator[Part]:
    """The queries of a task, a batch at a time."""
    for start in range(0, num_queries, size):
        yield Part(task, draw, start, min(start + size, num_queries))


@dataclass
class ScoredRows:
    """What is measured of a batch of B queries.

    Attributes:
        scores: method -> metric -> (B,); NaN where the ground truth of a query has no object.
        counts: method -> metric of the set -> (B, k), see `delvm.tasks.base.SetMetric`.
        losses: student -> "loss_all", "accuracy_all", "loss_answer", "accuracy_answer" -> (B,):
            means over the tokens of a sentence, over all of them or over those of its last image.
        answers: student -> "ids" -> token ids (B, N).
    """

    scores: Scores = field(default_factory=dict)
    counts: Scores = field(default_factory=dict)
    losses: Scores = field(default_factory=dict)
    answers: Scores = field(default_factory=dict)


_GROUPS = ("scores", "counts", "losses", "answers")


def concatenate(parts: Iterable[ScoredRows]) -> ScoredRows:
    """The rows of several batches in one."""
    batches = list(parts)
    joined = ScoredRows()
    for group in _GROUPS:
        first: Scores = getattr(batches[0], group)
        target: Scores = getattr(joined, group)
        for owner, metrics in first.items():
            target[owner] = {
                name: np.concatenate([getattr(each, group)[owner][name] for each in batches])
                for name in metrics
            }
    return joined


def part_path(folder: Path, part: Part) -> Path:
    """The file of a part."""
    return folder / part.task / f"draw{part.draw}-{part.start:06d}.npz"


def load_part(folder: Path, part: Part) -> ScoredRows | None:
    """Read a part; None if it is not there, or damaged."""
    rows = ScoredRows()
    try:
        with np.load(part_path(folder, part), allow_pickle=False) as arrays:
            for index, key in enumerate(arrays["names"].tolist()):
                group, _, rest = key.partition("/")
                owner, _, name = rest.rpartition("/")
                target: Scores = getattr(rows, group)
                target.setdefault(owner, {})[name] = arrays[f"array{index}"]
    except (OSError, ValueError, KeyError, AttributeError, EOFError, zipfile.BadZipFile):
        return None
    return rows


class AnswerStore:
    """The answers of one request in a directory that all ranks share."""

    def __init__(self, folder: Path, request: Mapping[str, Any], *, first_rank: bool) -> None:
        """Open the directory. Rank 0 removes what another request has left there.

        Raises:
            UserError: Another rank waits in vain for rank 0 to start.
        """
        self.folder, self.request = folder, dict(request)
        if first_rank:
            if not self._matches():
                if folder.exists():
                    log(f"evaluate: answers of other settings in {folder} are replaced")
                    remove_tree(folder)
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / REQUEST, self.request)
            return
        end = time.monotonic() + START_TIMEOUT_S
        while not self._matches():
            if time.monotonic() > end:
                raise UserError(
                    f"waited {START_TIMEOUT_S:.0f} s for RANK=0 to start in {folder}: start all "
                    "ranks with the same settings, on a disk that they share"
                )
            time.sleep(POLL_S)

    def _matches(self) -> bool:
        try:
            return read_json(self.folder / REQUEST, "request") == self.request
        except UserError:
            return False

    def path(self, part: Part) -> Path:
        """The file of a part."""
        return part_path(self.folder, part)

    def save(self, part: Part, rows: ScoredRows) -> None:
        """Write a part."""
        arrays = {
            f"{group}/{owner}/{name}": values
            for group in _GROUPS
            for owner, metrics in getattr(rows, group).items()
            for name, values in metrics.items()
        }
        path = self.path(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        names = np.array(list(arrays), np.str_)  # a name may be what a file in a zip cannot have
        with atomic_path(path) as tmp, tmp.open("wb") as file:
            values = {f"array{index}": value for index, value in enumerate(arrays.values())}
            np.savez(file, names=names, **values)

    def load(self, part: Part) -> ScoredRows | None:
        """Read a part; None if it is not there, or damaged."""
        return load_part(self.folder, part)

    def wait_for(self, parts: Iterable[Part]) -> list[ScoredRows]:
        """Read parts in order, those of other ranks when they are there."""
        found = []
        for part in parts:
            notice = time.monotonic() + NOTICE_S
            while (rows := self.load(part)) is None:
                if time.monotonic() > notice:
                    log(f"evaluate: waiting for {self.path(part)} of another rank")
                    notice = time.monotonic() + NOTICE_S
                time.sleep(POLL_S)
            found.append(rows)
        return found
