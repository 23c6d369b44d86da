"""What evaluations of pairs and of videos share: arguments, batches, and who answers them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from delvm.data.encode.executors.base import Rank
from delvm.evaluation.answers.store import AnswerStore, Part, batches
from delvm.inference.decoding import SamplingConfig
from delvm.storage import remove_tree


@dataclass(frozen=True)
class AnswerOptions:
    """Arguments of an evaluation, as metrics.json repeats them.

    Attributes:
        num_queries: of each task.
        batch_size: of queries that are answered at once.
    """

    input_dir: str
    num_queries: int
    batch_size: int
    sampling: SamplingConfig

    @property
    def settings(self) -> dict[str, Any]:
        """All arguments, those of the sampling among them."""
        settings = asdict(self)
        sampling: dict[str, Any] = settings.pop("sampling")
        return settings | sampling

    def batches(self, task: str, draw: int = 0) -> Iterator[Part]:
        """The queries of a task, a batch at a time."""
        return batches(task, draw, self.num_queries, self.batch_size)


def plain_json(value: dict[str, Any]) -> dict[str, Any]:
    """A value as it is when it is read back from JSON, to be compared with that."""
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def open_store(
    output_dir: Path, sources: Mapping[str, Any], rank: Rank, *, overwrite: bool
) -> AnswerStore:
    """The answers of an output directory; with overwrite without those that are there."""
    folder = output_dir / "answers"
    if overwrite:
        remove_tree(folder)
    return AnswerStore(folder, sources, first_rank=rank.rank == 0)


def missing_parts(
    parts: Sequence[Part], rank: Rank, store: AnswerStore
) -> tuple[list[Part], int, int]:
    """A rank's parts that are to be answered, and its queries: those answered already, and all."""
    own = parts[rank.rank :: rank.world_size]
    missing = [part for part in own if store.load(part) is None]
    total = sum(part.size for part in own)
    return missing, total - sum(part.size for part in missing), total
