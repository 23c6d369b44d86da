"""The report of a comparison of two evaluations, as one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from delvm import tasks
from delvm.evaluation.report.render import render
from delvm.evaluation.report.tables import (
    LOWER_IS_BETTER,
    Cell,
    Row,
    RowGroup,
    Table,
    format_value,
    metric_label,
)

GLOSSARY = (
    (
        "The differences",
        "b - a, the mean over the queries that both answered, with a 95% bootstrap interval that "
        "resamples both together. Bold where the entire interval is on the better side. With "
        "several draws of prompts, a query's value is the mean over them.",
    ),
    (
        "The images",
        "The answers whose primary metric gained most from a to b, then those that lost most.",
    ),
)


@dataclass(frozen=True)
class ComparedAnswer:
    """A query with both answers (a, b) and their scores."""

    key: str
    metric: str
    query: Image.Image
    truth: Image.Image
    answers: tuple[Image.Image, Image.Image]
    scores: tuple[float, float]


@dataclass(frozen=True)
class ComparedTask:
    """A task's table and images."""

    task: str
    tables: list[Table]
    answers: Sequence[ComparedAnswer]


def render_comparison(
    comparison: Mapping[str, Any],
    results: Mapping[str, Any],
    answers: Mapping[str, Sequence[ComparedAnswer]],
) -> str:
    """The report as HTML.

    Args:
        comparison: The content of comparison.json.
        results: The content of results.json of a.
        answers: Task -> those to show.
    """
    changed = {
        name: f"{values[0]} (a), {values[1]} (b)" for name, values in comparison["settings"].items()
    }
    metrics = {
        "title": "Comparison",
        "tokenizer": results["tokenizer"],
        "settings": {"a": comparison["a"], "b": comparison["b"], **changed},
    }
    sections = [
        ComparedTask(
            task, [_table(task, name, found) for name, found in students.items()], answers[task]
        )
        for task, students in comparison["tasks"].items()
    ]
    return render(
        "comparison_report.html.j2",
        metrics=metrics,
        comparison=comparison,
        sections=sections,
        glossary=GLOSSARY,
    )


def _table(task: str, student: str, found: Mapping[str, Any]) -> Table:
    lower = (*tasks.get_or_default(task).lower_is_better, *LOWER_IS_BETTER)
    rows = []
    for metric, each in found.items():
        shown = metric.partition("_")[0] if metric.startswith(("loss_", "accuracy_")) else metric
        change = each["difference"]
        sign = -1 if shown in lower else 1
        better = change["low"] is not None and min(sign * change["low"], sign * change["high"]) > 0
        low, high = (format_value(shown, change[side]) for side in ("low", "high"))
        interval = "" if change["low"] is None else f"{low} to {high}"
        label = f"{metric} ↓" if metric == shown and sign < 0 else metric_label(metric)
        cells = [Cell(format_value(shown, each[side]["mean"])) for side in ("a", "b")]
        rows.append(
            Row(label, [*cells, Cell(format_value(shown, change["mean"]), interval, better)])
        )
    count = max(each["difference"]["n"] for each in found.values())
    return Table(f"{student}: {count} queries", ["a", "b", "b − a"], [RowGroup("", rows)])
