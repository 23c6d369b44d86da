"""The report of an evaluation of students, as one HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from delvm.evaluation.report.plots import AxisRange, Curve, curve_plot, interval_bar
from delvm.evaluation.report.render import render, spaced
from delvm.evaluation.report.tables import (
    Table,
    draws_table,
    format_percent,
    format_value,
    loss_table,
    metric_label,
    score_table,
)
from delvm.evaluation.scores.scoring import PromptExample
from delvm.evaluation.training_curves import History, downsample

Metrics = Mapping[str, Any]

GLOSSARY = (
    (
        "The scale",
        "Every answer is decoded by the tokenizer, so no model can do much better than the ground "
        "truth, encoded and decoded: this is the ceiling, 100%. The best of three answers that "
        "need no model is what a model must beat. It is measured after the same round trip through "
        "the tokenizer, by the task's primary metric (★), and it is 0%. A model closes the "
        "fraction (answer − baseline) / (ceiling − baseline) of this gap, computed from the means.",
    ),
    (
        "The baselines",
        "Copy query: the query itself. Nearest target: the target of the example whose input is "
        "nearest to the query in pixel distance. Mean target: the mean of the targets that "
        "examples are sampled from. Before the round trip they have no tokenizer error and may "
        "exceed the ceiling, which means nothing for a model.",
    ),
    (
        "The intervals",
        "95% percentile bootstrap over queries. For differences and gaps, all methods are "
        "resampled together. The intervals show how much a number depends on the choice of "
        "queries, not how much it depends on the seed of the training. In tables, bold is the "
        "best of its group.",
    ),
    (
        "The metrics",
        "PSNR (in dB) and SSIM compare pixels. mIoU matches predicted to true instances and "
        "averages their overlaps. PCK is the fraction of true keypoints found within a tenth of "
        "the image size. Images whose ground truth has no object are left out.",
    ),
    (
        "Next-token metrics",
        "Loss, accuracy and perplexity are teacher-forced: each token of a sentence (pairs, query, "
        "ground truth) is predicted from the true tokens before it. Perplexity is the exponential "
        "of the mean loss. The DeLVM paper reports them over all tokens. They depend on the "
        "tokenizer, so compare only models that share one.",
    ),
)


@dataclass(frozen=True)
class Bar:
    """A model between the best baseline and the ceiling: an SVG with its description."""

    model: str
    index: int
    svg: str
    description: str
    gap_closed: str
    score: str


@dataclass(frozen=True)
class Gap:
    """A task's models between the best baseline and the ceiling; scores are formatted."""

    task: str
    metric: str
    baseline: str
    baseline_score: str
    ceiling_score: str
    bars: list[Bar]
    is_defined: bool


@dataclass(frozen=True)
class TaskSection:
    """A task's queries and tables; `metric` is the primary one."""

    task: str
    description: str
    metric: str
    examples: Sequence[PromptExample]
    tables: list[Table]


@dataclass(frozen=True)
class Plot:
    """A plot of learning curves as SVG; the legend is (name, index of the color)."""

    title: str
    unit: str
    legend: list[tuple[str, int]]
    svg: str
    description: str


def render_report(
    metrics: Metrics,
    examples: Mapping[str, Sequence[PromptExample]],
    histories: Mapping[str, History],
) -> str:
    """The report as HTML.

    Args:
        metrics: The content of metrics.json.
        examples: Task -> the queries to show.
        histories: Name of a model -> its learning curves.
    """
    results = metrics["tasks"]
    intervals = [
        one["gap_closed"] for result in results.values() for one in result["students"].values()
    ]
    axis_range = AxisRange.around(intervals)
    trained = [name for name, result in results.items() if result["trained"]]
    held_out = [name for name in results if name not in trained]
    return render(
        "student_report.html.j2",
        metrics=metrics,
        gaps={
            title: [_gap(name, results[name], axis_range) for name in names]
            for title, names in (("Trained tasks", trained), ("Held-out tasks", held_out))
            if names
        },
        trained=[_section(name, results[name], examples[name]) for name in trained],
        held_out=[_section(name, results[name], examples[name]) for name in held_out],
        plots=_student_plots(list(metrics["students"]), histories)
        + _other_plots(list(metrics["students"]), histories),
        glossary=GLOSSARY,
    )


def _section(name: str, result: Metrics, examples: Sequence[PromptExample]) -> TaskSection:
    tables = [score_table(result), loss_table(result)]
    if any("draws" in student for student in result["students"].values()):
        tables.append(draws_table(result))
    metric = result["primary_metric"]
    return TaskSection(name, result["description"], metric, examples, tables)


def _gap(name: str, result: Metrics, axis_range: AxisRange) -> Gap:
    metric, best = result["primary_metric"], result["best_baseline"]
    students = result["students"]
    return Gap(
        task=name,
        metric=metric,
        baseline=best,
        baseline_score=format_value(
            metric, result["baselines"][best]["round_trip"][metric]["mean"]
        ),
        ceiling_score=format_value(metric, result["ceiling"][metric]["mean"]),
        bars=[
            _bar(model, index, one, metric, axis_range)
            for index, (model, one) in enumerate(students.items())
        ],
        is_defined=any(one["gap_closed"]["mean"] is not None for one in students.values()),
    )


def _bar(model: str, index: int, student: Metrics, metric: str, axis_range: AxisRange) -> Bar:
    score = format_value(metric, student["scores"][metric]["mean"])
    gap_closed = format_percent(student["gap_closed"]["mean"])
    return Bar(
        model=model,
        index=index,
        svg=interval_bar(axis_range, index, student["gap_closed"]),
        description=f"{model}: {metric_label(metric)} {score}, {gap_closed} of the gap closed",
        gap_closed=gap_closed,
        score=score,
    )


def _plot(title: str, unit: str, curves: list[Curve]) -> Plot:
    return Plot(
        title=title,
        unit=unit,
        legend=[(curve.name, curve.model) for curve in curves],
        svg=curve_plot(curves, "steps"),
        description=f"{title} over steps: {', '.join(curve.name for curve in curves)}",
    )


def _student_plots(students: list[str], histories: Mapping[str, History]) -> list[Plot]:
    """One plot per loss, with a curve for each student."""
    plots = []
    for column, title in (
        ("val/loss", "Validation loss, all tokens"),
        ("val/target_loss", "Validation loss, tokens of targets"),
        ("train/loss", "Training loss"),
    ):
        curves = [
            Curve(name, index, downsample(histories[name][column]))
            for index, name in enumerate(students)
            if histories.get(name, {}).get(column)
        ]
        if curves:
            plots.append(_plot(title, "nats per token", curves))
    return plots


def _other_plots(students: list[str], histories: Mapping[str, History]) -> list[Plot]:
    """One plot per metric of models that are not students, such as the tokenizer."""
    plots = []
    for name, history in histories.items():
        if name in students:
            continue
        for column in ("train/loss", "val/psnr", "val/loss"):
            if history.get(column):
                curve = Curve(column, len(students), downsample(history[column]))
                plots.append(_plot(f"{spaced(name)}: {column}", "", [curve]))
    return plots
