"""Log an evaluation where experiments are tracked: scores, and the answers that reports show.

Any logger of Lightning gets the means. One that takes tables and images, wandb's, gets the table
"scores", which is the content of scores.csv, and the images "answers/TASK": the first, worst,
median and best answer of each student with the query and the ground truth, captioned by its score.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image


class ResultLogger(Protocol):
    """What is used of a Lightning logger; wandb's has `log_table` and `log_image` besides."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log numbers by name."""
        ...

    def save(self) -> None:
        """Write what was logged."""
        ...


@dataclass(frozen=True)
class ShownAnswer:
    """An answer that a report shows.

    Attributes:
        query: From 1.
        reason: Why it is shown, "" for the first ones.
        metric, score: The primary metric.
        image: The answer next to the query and the ground truth.
    """

    task: str
    query: int
    reason: str
    student: str
    metric: str
    score: float
    image: Image.Image

    @property
    def caption(self) -> str:
        """For example "query 3, half: psnr 17.25 (worst answer of half)"."""
        reason = f" ({self.reason})" if self.reason else ""
        return f"query {self.query}, {self.student}: {self.metric} {self.score:.4g}{reason}"


def log_evaluation(
    loggers: Iterable[ResultLogger],
    scores_csv: Path,
    means: Mapping[str, float],
    answers: Sequence[ShownAnswer],
) -> None:
    """Log an evaluation.

    Args:
        scores_csv: As the evaluation wrote it.
        means: Name -> value, for charts over several runs.
        answers: Those that the report shows.
    """
    for logger in loggers:
        logger.log_metrics(dict(means), step=0)
        if hasattr(logger, "log_table"):
            _log_table_and_images(logger, scores_csv, answers)
        logger.save()


def _log_table_and_images(logger: Any, scores_csv: Path, answers: Sequence[ShownAnswer]) -> None:
    with scores_csv.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    logger.log_table("scores", columns=header, data=[[*map(_number, row)] for row in rows], step=0)
    for task in dict.fromkeys(each.task for each in answers):
        shown = [each for each in answers if each.task == task]
        captions = [each.caption for each in shown]
        logger.log_image(
            f"answers/{task}", [each.image for each in shown], step=0, caption=captions
        )


def _number(cell: str) -> float | str | None:
    """A cell of a CSV file as what it was; an empty one is an undefined number."""
    try:
        return float(cell) if cell else None
    except ValueError:
        return cell


def flat_means(tasks: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """(TASK/STUDENT/METRIC, mean) of every metric that is defined, of a metrics.json's tasks."""
    for task, result in tasks.items():
        for student, found in result["students"].items():
            for metric, each in found["scores"].items():
                if isinstance(each, list):  # of frames ahead
                    for number, interval in enumerate(each, 1):
                        yield f"{task}/{student}/{metric}_frame{number}", interval["mean"]
                elif each["mean"] is not None:
                    yield f"{task}/{student}/{metric}", each["mean"]
