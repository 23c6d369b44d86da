"""Summarize scores per query as the numbers that are reported.

An interval is ``{"mean", "low", "high", "n"}``: a mean over n queries with the 2.5% and 97.5%
bootstrap percentiles; null where it is undefined.

Results of one task:
    description, trained, primary_metric, metrics   `trained` is false for tasks held out
    lower_is_better          the metrics that measure errors
    num_queries, pool_size   queries; validation pairs that the prompts were sampled from
    ceiling                  metric -> interval: the ground truth, encoded and decoded
    baselines                name -> "raw" | "round_trip" -> metric -> interval
    best_baseline            the best after the round trip, by the primary metric
    students                 name -> scores   metric -> interval
                                     gain     answer - best baseline, primary metric: interval
                                     gap_closed   (answer - baseline) / (ceiling - baseline)
                                     loss     "all" | "answer" -> loss, accuracy, perplexity
                                              (exp of the mean loss) and sentence_perplexity
                                              (the mean over sentences of exp of their loss)
                                     draws    of several draws of prompts, metric -> "means" of
                                              each, their "mean" and standard deviation "std"
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from delvm import legacy, tasks
from delvm.evaluation.results.result_files import write_rows
from delvm.evaluation.scores import baselines, bootstrap
from delvm.evaluation.scores.scoring import TaskScores
from delvm.storage import StoragePath, read_json

COLUMNS = ("task", "method", "metric", "mean", "low", "high", "n")
SPANS = ("all", "answer")

Results = dict[str, dict[str, Any]]  # task -> its results


def task_results(scores: TaskScores, seed: int) -> dict[str, Any]:
    """The results of one task, as the docstring of this module lists them."""
    task = tasks.get_or_default(scores.task)

    def intervals(method: str) -> dict[str, Any]:
        values, counts = scores.scores[method], scores.counts.get(method, {})
        means = {name: bootstrap.mean_ci(values[name], seed) for name in task.metrics}
        of_set = {
            name: bootstrap.set_metric_ci(metric.combine, counts[name], scores.groups, seed)
            for name, metric in task.set_metrics.items()
        }
        return {name: interval.as_dict() for name, interval in (means | of_set).items()}

    best = best_baseline(scores)
    return {
        "description": task.description,
        "trained": task.name not in tasks.HELD_OUT,
        "primary_metric": task.primary_metric,
        "metrics": [*task.metrics, *task.set_metrics],
        "lower_is_better": list(task.lower_is_better),
        "num_queries": len(scores.scores["ceiling"][task.primary_metric]),
        "pool_size": scores.pool_size,
        "ceiling": intervals("ceiling"),
        "baselines": {
            name: {form: intervals(f"baseline/{name}/{form}") for form in ("raw", "round_trip")}
            for name in baselines.NAMES
        },
        "best_baseline": best,
        "students": {
            name: {
                "scores": intervals(f"student/{name}"),
                **_vs_baseline(scores, name, best, seed),
                "loss": {span: _loss(scores, name, span, seed) for span in SPANS},
                **({"draws": _draws(scores, name)} if len(scores.draws) > 1 else {}),
            }
            for name in scores.losses
        },
    }


def _draws(scores: TaskScores, student: str) -> dict[str, Any]:
    """How much the metrics of a student depend on which prompts were sampled."""
    task, method = tasks.get_or_default(scores.task), f"student/{student}"
    found: dict[str, Any] = {}
    for name in (*task.metrics, *task.set_metrics):
        if name in task.set_metrics:
            combine = task.set_metrics[name].combine
            means = [combine(draw.counts[method][name], scores.groups) for draw in scores.draws]
        else:
            means = [
                bootstrap.mean_ci(draw.scores[method][name], resamples=0).mean
                for draw in scores.draws
            ]
        values = np.array(means)
        known = not np.isnan(values).any()
        found[name] = {
            "means": means if known else None,
            "mean": float(values.mean()) if known else None,
            "std": float(values.std(ddof=1)) if known else None,
        }
    return found


def best_baseline(scores: TaskScores) -> str:
    """The baseline with the highest primary metric after the round trip."""
    primary = tasks.get_or_default(scores.task).primary_metric

    def mean(name: str) -> float:
        values = scores.scores[f"baseline/{name}/round_trip"][primary]
        valid = values[~np.isnan(values)]
        return float(valid.mean()) if len(valid) else -math.inf

    return max(baselines.NAMES, key=mean)


def _vs_baseline(scores: TaskScores, student: str, best: str, seed: int) -> dict[str, Any]:
    """A student relative to the best baseline and the ceiling."""
    primary = tasks.get_or_default(scores.task).primary_metric
    answer, baseline, ceiling = (
        scores.scores[method][primary]
        for method in (f"student/{student}", f"baseline/{best}/round_trip", "ceiling")
    )
    return {
        "gain": bootstrap.mean_difference_ci(answer, baseline, seed).as_dict(),
        "gap_closed": bootstrap.gap_closed_ci(answer, baseline, ceiling, seed).as_dict(),
    }


def _loss(scores: TaskScores, student: str, span: str, seed: int) -> dict[str, Any]:
    # All sentences of a task have the same length, so the mean over sentences of their mean losses
    # is the mean over tokens.
    loss = bootstrap.mean_ci(scores.losses[student][f"loss_{span}"], seed)
    accuracy = bootstrap.mean_ci(scores.losses[student][f"accuracy_{span}"], seed)
    of_each = np.exp(scores.losses[student][f"loss_{span}"])
    return {
        "loss": loss.as_dict(),
        "accuracy": accuracy.as_dict(),
        "perplexity": loss.exp().as_dict(),
        "sentence_perplexity": bootstrap.mean_ci(of_each, seed).as_dict(),
    }


def summary(results: Results, student: str) -> dict[str, int]:
    """Count the trained tasks on which a student beats the best baseline.

    Returns:
        trained_tasks; beat_baseline, where its mean is higher; clearly_beat, where the entire
        interval of the gain is above 0; half_gap_closed, where it closes half of the gap or more.
    """
    trained = [result["students"][student] for result in results.values() if result["trained"]]
    return {
        "trained_tasks": len(trained),
        "beat_baseline": sum((each["gain"]["mean"] or 0.0) > 0 for each in trained),
        "clearly_beat": sum((each["gain"]["low"] or 0.0) > 0 for each in trained),
        "half_gap_closed": sum((each["gap_closed"]["mean"] or 0.0) >= 0.5 for each in trained),
    }


def _rows(task: str, result: Mapping[str, Any]) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """(task, method, metric, interval) of all measurements of a task."""
    for metric, interval in result["ceiling"].items():
        yield task, "ceiling", metric, interval
    for name, forms in result["baselines"].items():
        for form, scores in forms.items():
            for metric, interval in scores.items():
                yield task, f"baseline/{name}/{form}", metric, interval
    for name, student in result["students"].items():
        for metric, interval in student["scores"].items():
            yield task, f"student/{name}", metric, interval
        for key in ("gain", "gap_closed"):
            yield task, f"student/{name}", f"{key}_{result['primary_metric']}", student[key]
        for span, numbers in student["loss"].items():
            for key, interval in numbers.items():
                yield task, f"student/{name}", f"{key}_{span}", interval


def write_csv(path: Path, results: Results) -> None:
    """Write one row per interval, see COLUMNS; a cell is empty where a value is undefined."""
    rows = (
        [*names, *(interval[key] for key in COLUMNS[3:])]
        for task, result in results.items()
        for *names, interval in _rows(task, result)
    )
    write_rows(path, COLUMNS, rows)


def read_metrics(path: str | StoragePath) -> dict[str, Any]:
    """Read the metrics.json of an evaluation, also one with the key names of earlier versions.

    Raises:
        UserError: The file is missing or not JSON.
    """
    return legacy.upgrade_metrics(read_json(path, "metrics"))
