"""The files that an evaluation of students writes.

metrics.json    settings, models and the results of each task, see `results.metrics`
scores.csv      the same results, one row per interval
results.json    metrics.json, and where the numbers come from: versions, hardware, fingerprints of
                models and data, seeds, and each query with the pairs of its prompts
results.csv     every score: one row per task, query, draw, method and metric
report.html     see `report`
TASK.png        the shown queries of a task as a grid
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from delvm.evaluation.answers.store import Scores
from delvm.evaluation.queries.query_set import QuerySet
from delvm.evaluation.results.experiment_log import (
    ResultLogger,
    ShownAnswer,
    flat_means,
    log_evaluation,
)
from delvm.evaluation.results.metrics import task_results, write_csv
from delvm.evaluation.results.result_files import write_json_files, write_rows
from delvm.evaluation.scores.scoring import PromptExample, TaskScores
from delvm.storage import atomic_path, write_text
from delvm.viz.image_grid import image_grid

ROW_COLUMNS = ("task", "query", "key", "draw", "method", "metric", "value")


@dataclass(frozen=True)
class EvaluatedTask:
    """A task that was scored.

    Attributes:
        results: As in metrics.json.
        examples: The queries that the report shows.
        queries: Key, group and prompts of each query, for JSON.
        rows: Of results.csv.
    """

    results: dict[str, Any]
    examples: list[PromptExample]
    queries: list[dict[str, Any]]
    rows: list[tuple[Any, ...]]


def evaluated_task(query_set: QuerySet, scores: TaskScores, seed: int) -> EvaluatedTask:
    """What is kept of a scored task."""
    return EvaluatedTask(
        task_results(scores, seed),
        scores.examples,
        _queries(query_set),
        list(_rows(query_set, scores)),
    )


def _queries(query_set: QuerySet) -> list[dict[str, Any]]:
    """Each query with the keys of the pairs in its prompts, those of the first draw first."""
    return [
        {
            "key": key,
            "group": str(group),
            "prompts": [
                [query_set.pool_keys[index] for index in prompt]
                for prompt in query_set.example_indices[row]
            ],
        }
        for row, (key, group) in enumerate(zip(query_set.keys, query_set.groups, strict=True))
    ]


def _rows(query_set: QuerySet, scores: TaskScores) -> Iterator[tuple[Any, ...]]:
    for draw, measured in enumerate(scores.draws):
        losses: Scores = {f"student/{name}": each for name, each in measured.losses.items()}
        for table in (measured.scores, losses):
            for method, metrics in table.items():
                for metric, values in metrics.items():
                    for row, value in enumerate(values.tolist()):
                        text = "" if math.isnan(value) else f"{value:.6g}"
                        key = query_set.keys[row]
                        yield query_set.task, row, key, draw, method, metric, text


def write_files(
    output_dir: Path,
    metrics: dict[str, Any],
    provenance: dict[str, Any],
    evaluated: Mapping[str, EvaluatedTask],
    report: str,
) -> None:
    """Write all files, metrics.json last."""
    for task, each in evaluated.items():
        with atomic_path(output_dir / f"{task}.png") as tmp:
            example_grid(each.examples).save(tmp)
    write_text(output_dir / "report.html", report)
    write_csv(output_dir / "scores.csv", metrics["tasks"])
    rows = (row for each in evaluated.values() for row in each.rows)
    write_rows(output_dir / "results.csv", ROW_COLUMNS, rows)
    queries = {task: each.queries for task, each in evaluated.items()}
    write_json_files(output_dir, metrics, provenance, queries)


def log_files(
    loggers: Sequence[ResultLogger],
    output_dir: Path,
    metrics: dict[str, Any],
    evaluated: Mapping[str, EvaluatedTask],
) -> None:
    """Give loggers the scores that were written, and the shown answers."""
    answers = [
        ShownAnswer(
            task,
            example.number,
            example.reason,
            name,
            example.metric,
            example.scores[name],
            image_grid([[example.query, answer, example.ground_truth]], ["query", name, "truth"]),
        )
        for task, each in evaluated.items()
        for example in each.examples
        for name, answer in example.answers.items()
    ]
    means = dict(flat_means(metrics["tasks"]))
    log_evaluation(loggers, output_dir / "scores.csv", means, answers)


def example_grid(examples: list[PromptExample]) -> Image.Image:
    """Image grid with one row per query: prompt, query, answers, ground truth, reconstruction."""
    first = examples[0]
    titles = [f"{side} {i}" for i in range(1, len(first.pairs) + 1) for side in ("input", "target")]
    titles += ["query", *first.answers, "ground truth", "reconstruction"]
    rows = [
        [
            *(image for pair in example.pairs for image in pair),
            example.query,
            *example.answers.values(),
            example.ground_truth,
            example.reconstruction,
        ]
        for example in examples
    ]
    return image_grid(rows, titles)
