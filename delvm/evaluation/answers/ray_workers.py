"""Answering by actors of Ray: each is a rank that answers its own batches, as under torchrun.

The process that starts them answers nothing: it waits, and then reads all answers from the
directory, which all machines share.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from delvm.data.encode.executors.base import Rank, rank_from_env
from delvm.data.ray_cluster import RayCluster, run_on_actors
from delvm.errors import UserError, to_user_error
from delvm.evaluation.answers.store import AnswerStore, Part
from delvm.models.protocols import StudentNet, TokenizerNet
from delvm.progress import Progress, log

POLL_S = 1.0

Models = tuple[TokenizerNet, Mapping[str, StudentNet]]


@dataclass(frozen=True)
class RayWorkers:
    """A cluster, and how each of its workers loads the tokenizer and the students.

    Attributes:
        load_models: Can be pickled.
    """

    cluster: RayCluster
    load_models: Callable[[], Models]


class AnswerRank(Protocol):
    """What a worker does as a rank; can be pickled.

    It raises a UserError if what it would answer from differs from what was asked for.
    """

    def __call__(
        self, tokenizer: TokenizerNet, students: Mapping[str, StudentNet], rank: Rank
    ) -> None:
        """Answer what is missing of the rank's batches."""
        ...


@dataclass(frozen=True)
class LoadModels:
    """Loads models by their paths, in any process.

    Attributes:
        students: Name -> path.
        device: auto, cpu, cuda or cuda:N; a worker of Ray sees its own GPU alone.
    """

    tokenizer: str
    students: dict[str, str]
    device: str
    precision: str

    def __call__(self) -> Models:
        """The tokenizer and the students."""
        from delvm.interop.load import load_student, load_tokenizer
        from delvm.models.precision import resolve_device

        device = self.device if ":" in self.device else resolve_device(self.device)
        return load_tokenizer(self.tokenizer, device), {
            name: load_student(path, device, self.precision, key=f"students.{name}")
            for name, path in self.students.items()
        }


@dataclass(frozen=True)
class _Job:
    """What each worker is given; paths are relative to the directory."""

    load_models: Callable[[], Models]
    answer: AnswerRank
    directory: str


class _Worker:
    """A worker, which loads the models of a rank and answers its batches."""

    def __init__(self, job: _Job, num_threads: int) -> None:
        self.job = job
        torch.set_num_threads(num_threads)

    def run_safely(self, rank: Rank) -> UserError | None:
        """Answer the batches of a rank; a UserError is returned, since it must be pickled."""
        try:
            os.chdir(self.job.directory)
            models = self.job.load_models()
            self.job.answer(*models, rank)
        except UserError as error:
            return type(error)(*error.args)  # without the traceback, which cannot be pickled
        except OSError as error:
            return UserError(*to_user_error(error, self.job.directory).args)
        return None


def check_rank(overwrite: bool, workers: RayWorkers | None) -> Rank:
    """This process's rank.

    Raises:
        UserError: There are several ranks, and this is not for several. One that starts late would
            take answers for its own that rank 0 is about to remove.
    """
    rank = rank_from_env()
    if rank.world_size > 1 and overwrite:
        raise UserError(
            f"overwrite=true with WORLD_SIZE={rank.world_size}: set overwrite=false and another "
            "output_dir, or remove the answers in it"
        )
    if rank.world_size > 1 and workers:
        raise UserError(
            f"WORLD_SIZE={rank.world_size} and executor=ray, which starts workers itself: set "
            "executor=local, or run it without torchrun"
        )
    return rank


def answer_on_ray(
    workers: RayWorkers, answer: AnswerRank, store: AnswerStore, parts: Sequence[Part], device: str
) -> None:
    """Have workers answer what is missing.

    Args:
        answer: Answers the missing parts of a rank.
        store: Where the answers go.
        parts: All batches.
        device: Of the models here; "cpu" asks for no GPUs.

    Raises:
        UserError: Ray cannot be started, or the first that a worker met.
    """
    missing = [part for part in parts if store.load(part) is None]
    if not missing:
        return
    cluster = workers.cluster
    job = _Job(workers.load_models, answer, str(Path.cwd()))
    arguments = (job, cluster.cpus_per_worker)
    total = sum(part.size for part in missing)
    counted: set[Part] = set()
    with (
        Progress(total, "evaluate", "queries") as bar,
        cluster.connected() as ray,
        cluster.actors(ray, _Worker, arguments, device, len(missing)) as actors,
    ):
        log(f"evaluate: {len(actors)} workers of Ray")

        def report() -> None:
            for part in missing:
                if part not in counted and store.path(part).exists():
                    counted.add(part)
                    bar.update(part.size, part.task)

        ranks = [Rank(number, len(actors)) for number in range(len(actors))]
        outcomes = run_on_actors(ray, actors, ranks, while_waiting=report, poll_s=POLL_S)
        for _, error in outcomes:
            report()
            if error is not None:
                raise error


def check_same_sources(found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuse to answer from other models, data or versions than those that were asked for.

    Raises:
        UserError: What differs.
    """
    keys = [key for key in {**found, **expected} if found.get(key) != expected.get(key)]
    if keys:
        raise UserError(
            f"a worker has other {', '.join(keys)} than the process that started it: install the "
            "same versions on all machines, and put models and data where all of them see the same"
        )
